"""`nst stylize` with a server that is a function; tests/end_to_end/test_stylize.py has a real server."""

import io
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import nst_client.base_client
import nst_client.stylize.cli
import nst_client.stylize.processing
from nst_client import MockTransport, Rejected, Request, StyleClient, TimedOut, Unreachable
from nst_client.options import read_token
from nst_client.styles import parse_style_weights
from nst_client.stylize.cli import stylize_app
from nst_client.stylize.jobs import Job, Outcome, find_jobs
from nst_client.stylize.processing import StylizeOptions
from nst_client.stylize.runner import run_jobs
from nst_client.stylize.stdio import STDIO
from nst_client.transports.base import Array
from nst_core.errors import ImageError, InputError, WriteError
from nst_core.images import Pixels, open_image, process_of_file

MODELS = {"negative": {"min_side": "16", "max_pixels": "10000"}, "gallery": {"styles": "wave,scream"}}


def echo(request: Request) -> Array:
    """A style that changes nothing."""
    return request.inputs["image"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> MockTransport:
    """Its models invert colours, and every `StyleClient` connects to it."""
    transport = MockTransport(lambda request: 255 - request.inputs["image"], MODELS)
    monkeypatch.setattr(nst_client.base_client, "connect", lambda url, **settings: transport)
    return transport


def stylize(*arguments: object, style: str = "negative", stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(stylize_app, [*map(str, arguments), "-s", style], input=stdin)


def levels(seed: int, height: int = 20, width: int = 30) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def contents(tmp_path: Path) -> Path:
    """A tree of five images."""
    folder = tmp_path / "contents"
    for number, name in enumerate(("a.png", "b.png", "deep/a.png", "deep/er/c.PNG", "d.tif")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels(number)).save(folder / name, "TIFF" if name.endswith("tif") else "PNG")
    (folder / "notes.txt").write_text("not an image")
    return folder


TREE = ["a.png", "b.png", "d.png", "deep/a.png", "deep/er/c.PNG"]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_interpolation_on_the_command_line() -> None:
    assert parse_style_weights("wave") == {"wave": 1.0}
    assert parse_style_weights("wave:0.7, gallery/scream:0.3") == {"wave": 0.7, "gallery/scream": 0.3}
    with pytest.raises(InputError, match="'much' in 'wave:much' is not a number"):
        parse_style_weights("wave:much")


def test_where_images_go(tmp_path: Path) -> None:
    def targets(*contents: object, output: Path, suffix: str | None = None) -> list[Path]:
        return [job.target for job in find_jobs([str(content) for content in contents], output, suffix)]

    a, b, out = tmp_path / "a.jpg", tmp_path / "deep" / "b.tif", tmp_path / "out"
    assert targets(a, output=Path("out.png")) == [Path("out.png")]
    assert targets(a, output=out) == [out / "a.jpg"]
    assert targets(a, b, output=out) == [out / "a.jpg", out / "b.png"]
    assert targets(a, b, output=out, suffix=".webp") == [out / "a.webp", out / "b.webp"]
    assert targets(a, a, output=out) == [out / "a.jpg"]
    assert targets("-", output=STDIO) == [STDIO]
    assert targets("-", output=Path("out.png")) == [Path("out.png")]
    for contents, output, words in (
        ([a], tmp_path, "overwritten"),
        ([a, tmp_path / "deep" / "a.jpg"], out, "rename one"),
        ([a], Path("out.xyz"), r"cannot write \.xyz"),
        ([a, b], Path("out.png"), "out.png is a file"),
        ([tmp_path], out, "no images found"),
        ([tmp_path / "*.gif"], out, "no image matches"),
        (["-", a], out, "give it without other images"),
        (["-"], out, "has no name in the folder"),
        ([a, b], STDIO, "give it without other images"),
    ):
        with pytest.raises(InputError, match=words):
            targets(*contents, output=output)
    with pytest.raises(InputError, match="name different formats"):
        targets(a, output=Path("out.png"), suffix=".webp")


def test_a_tree_is_kept(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    result = stylize(contents, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert tree(tmp_path / "out") == TREE
    for name in TREE:
        source = contents / name if (contents / name).exists() else contents / "d.tif"
        assert np.array_equal(open_image(tmp_path / "out" / name).pixels, 255 - open_image(source).pixels)
    lines = [line.partition(" -> ")[0] for line in result.stderr.splitlines() if " -> " in line]
    assert lines == sorted(lines), "outcomes come in the order of the images"
    assert "images 5/5" in result.stderr


def test_stylized_images_inside_the_folder_of_content_images_are_left_out(
    server: MockTransport, contents: Path
) -> None:
    for _ in range(2):
        assert stylize(contents, "-o", contents / "stylized").exit_code == 0
        assert tree(contents / "stylized") == TREE
    assert len(server.requests) == 5


def test_patterns_that_the_shell_did_not_expand(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    assert stylize(contents / "*", "-o", tmp_path / "flat").exit_code == 0
    assert tree(tmp_path / "flat") == ["a.png", "b.png", "d.png"]
    assert stylize(contents / "**" / "[c-d].*", "-o", tmp_path / "deep").exit_code == 0
    assert tree(tmp_path / "deep") == ["c.PNG", "d.png"]
    # A file's own name is no pattern.
    Image.fromarray(levels(9)).save(contents / "[1].png")
    assert stylize(contents / "[1].png", "-o", tmp_path / "own").exit_code == 0
    assert tree(tmp_path / "own") == ["[1].png"]


def test_finished_images_are_skipped(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert stylize(contents, "-o", out).exit_code == 0
    before = {name: (out / name).stat().st_mtime_ns for name in TREE}
    (out / "b.png").unlink()
    result = stylize(contents, "-o", out)
    assert result.exit_code == 0
    assert "skipped 4 of 5 images, which are stylized already" in result.stderr
    assert len(server.requests) == 6
    assert {name: (out / name).stat().st_mtime_ns for name in TREE if name != "b.png"} == {
        name: when for name, when in before.items() if name != "b.png"
    }
    assert stylize(contents, "-o", out).exit_code == 0
    assert len(server.requests) == 6
    assert stylize(contents, "-o", out, "--overwrite").exit_code == 0
    assert len(server.requests) == 11


@pytest.mark.parametrize(
    "other",
    [
        ["-s", "wave"],
        ["-s", "negative", "--strength", "0.5"],
        ["-s", "negative", "--preserve-color"],
        ["-s", "negative", "--max-side", "25"],
        ["-s", "negative", "--quality", "50"],
    ],
)
def test_a_stylized_image_of_another_recipe_is_not_taken_for_done(
    server: MockTransport, contents: Path, tmp_path: Path, other: list[str]
) -> None:
    out = tmp_path / "out"
    assert stylize(contents / "a.png", contents / "b.png", "-o", out).exit_code == 0
    before = (out / "a.png").read_bytes()
    (out / "b.png").unlink()
    result = CliRunner().invoke(stylize_app, [str(contents / "a.png"), str(contents / "b.png"), "-o", str(out), *other])
    assert result.exit_code == 1
    assert (
        f"{out / 'a.png'} exists and was not stylized with these options; give --overwrite to replace it"
        in result.stderr
    )
    assert "1 of 2 images failed" in result.stderr
    assert (out / "a.png").read_bytes() == before
    assert (out / "b.png").exists(), "the others are stylized"
    again = [str(contents / "a.png"), "-o", str(out), *other, "--overwrite"]
    assert CliRunner().invoke(stylize_app, again).exit_code == 0
    assert (out / "a.png").read_bytes() != before


def test_a_file_of_the_users_is_not_replaced_unless_it_is_named(
    server: MockTransport, contents: Path, tmp_path: Path
) -> None:
    own = tmp_path / "out" / "a.png"
    own.parent.mkdir()
    for content in (b"", b"not even an image", (contents / "b.png").read_bytes()):
        own.write_bytes(content)
        result = stylize(contents / "a.png", "-o", own.parent)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert own.read_bytes() == content
    assert stylize(contents / "a.png", "-o", own).exit_code == 0
    assert np.array_equal(open_image(own).pixels, 255 - levels(0))


def test_the_record_is_a_command() -> None:
    options = StylizeOptions({"vague à l'âme": 0.7, "scream": 0.3}, 0.5, True, 512, 80)
    assert options.command == (
        "nst stylize --style 'vague \\xe0 l'\"'\"'\\xe2me:0.7,scream:0.3' --quality 80 "
        "--strength 0.5 --preserve-color --max-side 512"
    )
    assert StylizeOptions({"a": 1.0}, max_pixels=5).command == StylizeOptions({"a": 1.0}).command


def test_strength_and_colours(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    content = levels(0).astype(float)
    luma = (255 - 2 * content) @ [0.299, 0.587, 0.114]
    kept = (content + luma[..., None]).clip(0, 255)
    for options, expected in (
        (["--strength", 0.25], 0.75 * content + 0.25 * (255 - content)),
        (["--strength", 0], content),
        (["--preserve-color"], kept),
        (["--preserve-color", "--strength", 0.5], (content + kept) / 2),
    ):
        assert stylize(contents / "a.png", "-o", tmp_path / "a.png", *options).exit_code == 0
        assert np.abs(open_image(tmp_path / "a.png").pixels - expected).max() <= 1, options
    assert stylize(contents / "a.png", "-o", tmp_path / "a.png", "--strength", 1.5).exit_code == 2


def test_one_bad_image_does_not_stop_the_others(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    (contents / "b.png").write_text("not an image")
    Image.fromarray(levels(1, 8, 8)).save(contents / "deep" / "a.png")
    result = stylize(contents, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    *_, bad, small, count = result.stderr.splitlines()
    assert bad.startswith(f"error: {contents / 'b.png'}: not an image")
    assert small.startswith(f"error: {contents / 'deep' / 'a.png'}: 8x8 is too small for negative")
    assert count == "error: 2 of 5 images failed; run the same command to retry them"
    assert tree(tmp_path / "out") == ["a.png", "d.png", "deep/er/c.PNG"]


@pytest.mark.parametrize(("kind", "side"), [("webp", 17_000), ("jpg", 66_000)])
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_image_that_its_format_cannot_hold_is_one_line(
    server: MockTransport, contents: Path, tmp_path: Path, kind: str, side: int, jobs: int
) -> None:
    Image.fromarray(np.zeros((20, side, 3), np.uint8)).save(contents / "b.png")
    result = stylize(contents, "-o", tmp_path / "out", "--format", kind, "--jobs", jobs)
    assert result.exit_code == 1 and result.exception.__class__ is SystemExit
    *_, wide, count = result.stderr.splitlines()
    assert wide.startswith(f"error: {contents / 'b.png'}: {side}x20 is more than")
    assert count == "error: 1 of 5 images failed; run the same command to retry them"
    assert len(tree(tmp_path / "out")) == 4
    assert all(request.inputs["image"].shape[2] < 100 for request in server.requests)  # it was not stylized for nothing


def test_an_image_that_the_memory_does_not_hold_is_one_line(
    server: MockTransport, contents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open_image

    def opened(source: Path, **options: int) -> object:
        if source.name == "b.png":
            raise MemoryError
        return real(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(nst_client.stylize.processing, "open_image", opened)
    result = stylize(contents, "-o", tmp_path / "out")
    assert result.exit_code == 1
    *_, large, count = result.stderr.splitlines()
    assert large == f"error: {contents / 'b.png'} does not fit into memory; shrink it with --max-side"
    assert count == "error: 1 of 5 images failed; run the same command to retry them"


def test_a_name_that_the_disk_does_not_take_is_one_line(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    (contents / "b.png").rename(contents / f"{251 * 'b'}.png")
    result = stylize(contents, "-o", tmp_path / "out", "--format", "webp")
    *_, long, count = result.stderr.splitlines()
    assert "File name too long" in long
    assert count == "error: 1 of 5 images failed; run the same command to retry them"
    assert len(tree(tmp_path / "out")) == 4


def test_what_is_not_read_is_counted_and_named(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    for name in ("deep/x.DNG", "y.dng", "z.jxl", ".hidden.jxl"):
        (contents / name).write_bytes(b"something")
    result = stylize(contents, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "3 files were not read: 2 .dng, 1 .jxl"
    result = stylize(contents, "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["unreadable"] == 3
    result = stylize(contents / "*.jxl", contents / "a.png", "-o", tmp_path / "out")
    assert result.exit_code == 1 and "no image matches" in result.stderr


def test_what_phones_and_cameras_write_becomes_jpeg(server: MockTransport, tmp_path: Path) -> None:
    folder = tmp_path / "contents"
    folder.mkdir()
    image = Image.fromarray(np.full((32, 48, 3), 90, np.uint8))
    pillow_heif.from_pillow(image).save(folder / "a.HEIC")
    image.save(folder / "b.avif")
    image.save(folder / "c.jfif", "JPEG")
    image.save(folder / "d.mpo", "MPO", save_all=True, append_images=[image])
    image.save(folder / "e.bmp")
    result = stylize(folder, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert tree(tmp_path / "out") == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.png"]
    for name in tree(tmp_path / "out"):
        assert abs(int(open_image(tmp_path / "out" / name).pixels.mean()) - 165) <= 2


def test_links_to_folders_are_followed_and_links_to_files_stay(
    server: MockTransport, contents: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (contents / "a.png").rename(tmp_path / "elsewhere" / "far.png")
    (contents / "away").symlink_to(tmp_path / "elsewhere")
    (contents / "deep" / "loop").symlink_to(contents)
    result = stylize(contents, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert tree(tmp_path / "out") == ["away/far.png", *TREE[1:]]
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere" / "stylized.png")
    assert stylize(contents / "b.png", "-o", tmp_path / "link.png").exit_code == 0
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "elsewhere" / "stylized.png").is_file()
    (tmp_path / "own.png").symlink_to(contents / "b.png")
    result = stylize(contents / "b.png", "-o", tmp_path / "own.png")
    assert result.exit_code == 1 and "would be overwritten" in result.stderr


def test_a_link_in_the_output_folder_does_not_lead_to_a_content_image(
    server: MockTransport, contents: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").symlink_to(contents / "a.png")
    before = (contents / "a.png").read_bytes()
    result = stylize(contents, "-o", out, "--overwrite")
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: {contents / 'a.png'}, a content image, would be overwritten; choose another --output\n"
    )
    (out / "b.png").unlink()
    (out / "b.png").symlink_to(out / "a.png")
    result = stylize(contents, "-o", out, "--overwrite")
    assert result.exit_code == 1 and "rename one" in result.stderr
    assert (contents / "a.png").read_bytes() == before and not server.requests


def test_an_output_inside_the_input_by_a_link_is_no_content(
    server: MockTransport, contents: Path, tmp_path: Path
) -> None:
    (contents / "out").mkdir()
    (tmp_path / "link").symlink_to(contents / "out")
    for output in (contents / "out", tmp_path / "link", contents / "out"):
        assert stylize(contents, "-o", output).exit_code == 0
        assert tree(contents / "out") == TREE
    assert len(server.requests) == len(TREE)


@pytest.mark.parametrize("name", [300 * "x", f"{300 * 'x'}.png", "circle", "circle.png", "a.png/x.png"])
def test_names_that_no_file_can_have_are_one_line(server: MockTransport, contents: Path, name: str) -> None:
    for circle in ("circle", "circle.png"):
        (contents / circle).symlink_to(circle)
    result = stylize(contents / name, "-o", contents / "out.png")
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    if name != "circle.png":  # a link to nothing that makes sense gives way
        result = stylize(contents / "a.png", "-o", contents / name)
        assert result.exit_code == 1 and result.stderr.startswith(f"error: cannot write {contents / name}")


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("<&-", "from stdin, which is closed"),
        ("</dev/null", "stdin is empty; pass an image with < or |"),
        ("<&- 2>&-", ""),
    ],
)
def test_standard_streams_that_are_closed(tmp_path: Path, closed: str, message: str) -> None:
    nst = Path(sys.executable).parent / "nst"
    command = f"'{nst}' stylize - -s negative -u http://127.0.0.1:1 -o out.png {closed}"
    result = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr and message in result.stderr and not result.stdout


def test_a_standard_output_that_is_closed(
    server: MockTransport, contents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(WriteError, match="stdout: it is closed"):
        StylizeOptions({"negative": 1.0}).stylize_file(Job(contents / "a.png", STDIO), StyleClient(transport=server))


def test_json(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    (contents / "b.png").write_text("not an image")
    stylize(contents / "a.png", "-o", tmp_path / "out")
    result = stylize(contents, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    *records, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["input"] for line in records] == [
        str(contents / name) for name in ("a.png", "b.png", "d.tif", "deep/a.png", "deep/er/c.PNG")
    ]
    skipped, failed, fine = records[:3]
    assert all(line.keys() == fine.keys() for line in records)
    assert skipped["skipped"]
    assert skipped["error"] is None
    assert failed["error"].startswith(f"{contents / 'b.png'}: not an image")
    assert (failed["width"], failed["milliseconds"]) == (None, None)
    assert fine.pop("milliseconds") > 0
    assert fine == {
        "input": str(contents / "d.tif"),
        "output": str(tmp_path / "out" / "d.png"),
        "width": 30,
        "height": 20,
        "style_weights": {"negative": 1.0},
        "skipped": False,
        "error": None,
    }
    assert summary.pop("seconds") > 0
    assert summary == {"stylized": 3, "skipped": 1, "failed": 1, "unreadable": 0}
    assert " -> " not in result.stderr


@pytest.mark.parametrize(("kind", "written"), [("PNG", "PNG"), ("WEBP", "WEBP"), ("JPEG", "JPEG"), ("GIF", "PNG")])
def test_stdin_to_stdout(server: MockTransport, kind: str, written: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(levels(1)).save(buffer, kind)
    result = stylize("-", "-o", "-", stdin=buffer.getvalue())
    assert result.exit_code == 0, result.stderr
    assert Image.open(io.BytesIO(result.stdout_bytes)).format == written
    result = stylize("-", "-o", "-", "--format", "png", stdin=buffer.getvalue())
    answer = open_image(io.BytesIO(result.stdout_bytes))
    assert answer.metadata.kind == "PNG"
    assert np.array_equal(answer.pixels, 255 - open_image(buffer).pixels)


def test_stdin_that_is_no_image(server: MockTransport) -> None:
    for stdin, words in ((b"", "is empty"), (b"text", "not an image"), (bytes(70_000_000), "over 67 MB")):
        result = stylize("-", "-o", "-", "--max-pixels", 100, stdin=stdin)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout_bytes == b""
    assert "both write to stdout" in stylize("-", "-o", "-", "--json").stderr


def test_a_wrong_style_is_one_error(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    for style, words in (
        ("mosaic", "no style 'mosaic'; it has: negative"),
        ("negatif", "no style 'negatif'; did you mean 'negative'?"),
        ("wave:1,negative:1", "interpolate styles of one model"),
    ):
        result = stylize(contents, "-o", tmp_path / "out", style=style)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def answers(*, fail_at: int, error: Exception) -> Callable[[Request], Pixels]:
    """A handler that inverts, and raises from the request `fail_at` on."""
    lock, count = threading.Lock(), 0

    def handle(request: Request) -> Pixels:
        nonlocal count
        with lock:
            count += 1
            if count >= fail_at:
                raise error
        return 255 - request.inputs["image"]

    return handle


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_server_that_is_gone_ends_the_run_and_the_next_goes_on(
    server: MockTransport, contents: Path, tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nst_client.stylize.cli, "RETRIES", 0)
    server.handler = answers(fail_at=3, error=Unreachable("no server answers at mock:"))
    result = stylize(contents, "-o", tmp_path / "out", "--json", "--jobs", jobs)
    assert result.exit_code == 1
    *records, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(records) == 5
    assert (summary["stylized"], summary["failed"]) == (2, 3)
    assert sum("not tried: no server answers" in (line["error"] or "") for line in records) >= 3 - jobs
    assert "3 of 5 images failed" in result.stderr
    assert [line["output"] for line in records if not line["error"]] == [
        str(tmp_path / "out" / name) for name in TREE if (tmp_path / "out" / name).exists()
    ]
    server.handler = lambda request: 255 - request.inputs["image"]
    result = stylize(contents, "-o", tmp_path / "out", "--json", "--jobs", jobs)
    assert result.exit_code == 0
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["stylized"], summary["skipped"]) == (3, 2)
    assert tree(tmp_path / "out") == TREE


@pytest.mark.parametrize("error", [TimedOut("took too long"), Rejected("the model failed")])
def test_an_answer_that_fails_is_that_images_own(
    server: MockTransport, contents: Path, tmp_path: Path, error: Exception
) -> None:
    original = server.handler

    def handle(request: Request) -> Pixels:
        if np.array_equal(request.inputs["image"][0], levels(1)):
            raise error
        answer: Pixels = original(request)
        return answer

    server.handler = handle
    result = stylize(contents, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"error: {contents / 'b.png'}: {error}" in result.stderr
    assert tree(tmp_path / "out") == ["a.png", "d.png", "deep/a.png", "deep/er/c.PNG"]


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """No file can become longer than `after` bytes: what a write meets on a full disk, as an error of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_ends_the_run_and_the_next_goes_on(
    server: MockTransport, contents: Path, tmp_path: Path, jobs: int
) -> None:
    Image.fromarray(levels(7, 90, 90)).save(contents / "b.png")  # of noise: as a PNG 24 kB, the others 2 kB
    with full_disk(after=8_000):
        result = stylize(contents, "-o", tmp_path / "out", "--jobs", jobs)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert f"{contents / 'b.png'}: cannot write {tmp_path / 'out' / 'b.png'}: File too large" in errors[0]
    assert "of 5 images failed" in errors[1]
    if jobs == 1:
        assert tree(tmp_path / "out") == ["a.png"], "nothing half-written, nothing beside it"
        assert "4 of 5 images failed, 3 of them not tried" in errors[1]
    assert "b.png" not in tree(tmp_path / "out")
    result = stylize(contents, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert tree(tmp_path / "out") == TREE


def test_several_at_a_time_in_order() -> None:
    """The first image waits for the third: with two workers that would never end."""
    jobs = [Job(Path(f"{number}.png"), Path(f"out/{number}.png")) for number in range(6)]
    third = threading.Event()
    threads: set[int] = set()

    def stylized_by(job: Job, client: StyleClient) -> Outcome:
        threads.add(threading.get_ident())
        if job == jobs[2]:
            third.set()
        assert third.wait(30)
        return Outcome(job)

    with_three = run_jobs(jobs, stylized_by, lambda: StyleClient(transport=MockTransport(echo)), 3)
    assert [outcome.job for outcome in with_three] == jobs
    assert len(threads) == 3


def test_a_run_that_is_left_begins_no_more_images() -> None:
    jobs = [Job(Path(f"{number}.png"), Path(f"out/{number}.png")) for number in range(100)]
    begun: list[Job] = []

    def stylized_by(job: Job, client: StyleClient) -> Outcome:
        begun.append(job)
        time.sleep(0.02)
        return Outcome(job)

    outcomes = run_jobs(jobs, stylized_by, lambda: StyleClient(transport=MockTransport(echo)), 2)
    assert next(outcomes).job == jobs[0]
    outcomes.close()
    count = len(begun)
    assert count < 10
    time.sleep(0.1)
    assert len(begun) == count


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    def stylized_by(job: Job, client: StyleClient) -> Outcome:
        raise ZeroDivisionError

    jobs = [Job(Path("a.png"), Path("b.png"))] * 2
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(jobs, stylized_by, lambda: StyleClient(transport=MockTransport(echo)), 2))


def test_progress_by_tile(server: MockTransport, tmp_path: Path) -> None:
    server.configs |= MockTransport(
        echo,
        {
            "negative_statistics": {"purpose": "statistics"},
            "negative_tiled": {"purpose": "tiled", "multiple": "4", "overlap": "8", "max_pixels": "10000"},
        },
    ).configs

    def handle(request: Request) -> np.ndarray:
        if request.output == "statistics":
            return np.zeros((1, 5), np.float32)
        return 255 - request.inputs["image"]

    server.handler = handle
    Image.fromarray(levels(3, 200, 300)).save(tmp_path / "large.png")
    result = stylize(tmp_path / "large.png", "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.stderr
    tiles = len(server.requests) - 1
    assert tiles > 1
    assert f"tiles {tiles}/{tiles}" in result.stderr
    assert np.array_equal(open_image(tmp_path / "a.png").pixels, 255 - levels(3, 200, 300))


def test_the_token_is_of_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    monkeypatch.delenv("NST_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("NST_TOKEN", "of the environment")
    assert read_token(None) == "of the environment"
    file.write_text("of the file\n")
    assert read_token(file) == "of the file"
    for content, words in ((b" \n", "is empty"), (b"\xff\xfe", "cannot read the token")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_token(file)
    with pytest.raises(InputError, match="No such file"):
        read_token(tmp_path / "none")


def test_the_way_to_the_server_is_passed_on(
    contents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: MockTransport
) -> None:
    given: list[tuple[str, dict[str, object]]] = []

    def connect(url: str, **settings: object) -> MockTransport:
        given.append((url, settings))
        return server

    monkeypatch.setattr(nst_client.base_client, "connect", connect)
    monkeypatch.setenv("NST_TOKEN", "secret")
    monkeypatch.setenv("NST_CA", str(tmp_path / "ca.pem"))
    result = stylize(contents / "a.png", "-o", tmp_path / "a.png", "-u", "grpcs://there:1", "--timeout", 5)
    assert result.exit_code == 0, result.stderr
    ((url, settings),) = given
    assert url == "grpcs://there:1"
    assert (settings["token"], settings["ca"], settings["timeout"]) == ("secret", tmp_path / "ca.pem", 5.0)
    assert "secret" not in process_of_file(tmp_path / "a.png")


def test_a_recipe_alone(server: MockTransport, contents: Path, tmp_path: Path) -> None:
    """As the web page uses it."""
    with StyleClient(transport=server) as client:
        outcome = StylizeOptions({"negative": 1.0}).stylize_file(Job(contents / "a.png", tmp_path / "a.webp"), client)
        assert (outcome.width, outcome.height, outcome.error) == (30, 20, None)
        with pytest.raises(ImageError):
            StylizeOptions({"negative": 1.0}).stylize_file(Job(contents / "notes.txt", tmp_path / "a.webp"), client)
