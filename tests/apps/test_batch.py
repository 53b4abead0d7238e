"""What `nst batch` stylizes, and how it writes; tests/end_to_end/test_batch.py has Ray and models."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nst_apps.batch import sections
from nst_apps.batch.cli import batch_app
from nst_apps.batch.cluster import keyboard_interrupts
from nst_apps.batch.job import JOB_FILE, BatchJob
from nst_apps.batch.storage import OWN_FOLDER, Folder
from nst_apps.video.codec.decoder import VideoSource
from nst_client import MockTransport, StyleClient
from nst_client.stylize.processing import StylizeOptions
from nst_core.distribution import install_command
from nst_core.errors import ImageError, InputError, NstError, WriteError
from nst_core.images import open_image, process_of_file

from .clips import clip, panned


@pytest.fixture
def contents(tmp_path: Path) -> Path:
    root = tmp_path / "contents"
    for name in ("one.png", "deep/er/two.jpg", "deep/three.bmp", ".hidden/four.png", "deep/.five.png", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "notes.txt":
            (root / name).write_text("not an image")
        else:
            Image.fromarray(np.full((20, 30, 3), 40, np.uint8)).save(root / name)
    (root / "deep" / "loop").symlink_to(root)
    return root


@pytest.fixture
def client() -> StyleClient:
    return StyleClient(transport=MockTransport(lambda request: 255 - request.inputs["image"]))


def batch_of(source: Path | str, target: Path | str, **options: float) -> BatchJob:
    return BatchJob(Folder.at(str(source)), Folder.at(str(target)), StylizeOptions({"style": 1.0}, **options))  # type: ignore[arg-type]


def todo(batch: BatchJob) -> list[str]:
    return [name for listing in batch.listings(batch.begin()) for name in listing.missing]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_input_less_the_output_is_what_is_to_be_done(contents: Path, tmp_path: Path, client: StyleClient) -> None:
    batch = batch_of(contents, tmp_path / "out")
    assert todo(batch) == ["one.png", "deep/three.bmp", "deep/er/two.jpg"]
    assert not (tmp_path / "out").exists()  # nothing is written before it is claimed
    batch.claim()
    batch.stylize("deep/three.bmp", client)
    batch.stylize("deep/er/two.jpg", client)
    assert todo(batch) == ["one.png"]
    assert files(tmp_path / "out") == {"deep/three.png", "deep/er/two.jpg", JOB_FILE}
    assert (open_image(tmp_path / "out" / "deep/three.png").pixels == 215).all()
    assert process_of_file(tmp_path / "out" / "deep/three.png") == batch.options.command


def test_links_out_are_followed_once_and_what_is_not_read_is_kept(contents: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(np.full((20, 30, 3), 40, np.uint8)).save(tmp_path / "elsewhere" / "far.jpg")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    for name in ("a", "b"):
        (contents / name).symlink_to(tmp_path / "elsewhere")
    (contents / "raw.NEF").write_bytes(b"raw")
    batch = batch_of(contents, tmp_path / "out")
    found = todo(batch)
    assert len([name for name in found if name.endswith("far.jpg")]) == 1 and len(found) == 4
    assert batch.unreadable == [Path("raw.NEF")]


def test_an_image_that_its_format_cannot_hold_is_refused_before_it_is_stylized(contents: Path, tmp_path: Path) -> None:
    transport = MockTransport(lambda request: 255 - request.inputs["image"])
    Image.fromarray(np.zeros((20, 17_000, 3), np.uint8)).save(contents / "one.png")
    batch = replace(batch_of(contents, tmp_path / "out"), suffix=".webp")
    with pytest.raises(InputError, match="17000x20 is more than"):
        batch.stylize("one.png", StyleClient(transport=transport))
    assert not transport.requests


def test_an_output_inside_the_input_is_no_content(contents: Path, client: StyleClient) -> None:
    batch = batch_of(contents, contents / "deep" / "out")
    batch.claim()
    batch.stylize("one.png", client)
    assert todo(batch) == ["deep/three.bmp", "deep/er/two.jpg"]


@pytest.fixture
def video(contents: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five seconds with sound, in sections of a second; the third section has no frame."""
    monkeypatch.setattr(sections, "SECTION_SECONDS", 1.0)
    stamps = [512 * n for n in range(125) if not 45 <= n < 80]
    return clip(contents / "deep" / "video.mp4", panned(90, 64, 48), stamps=stamps, sound=True, key_every=20)


def test_a_video_is_stylized_in_sections_by_anyone_in_any_order(
    video: Path, tmp_path: Path, client: StyleClient
) -> None:
    batch = batch_of(video.parent, tmp_path / "out")
    names = [name for name in todo(batch) if name.startswith("video")]
    assert names == [f"video.mp4#{number}/5" for number in range(5)]
    batch.claim()
    for name in names[:0:-1]:
        batch.stylize(name, client)
        assert not (tmp_path / "out" / "video.mp4").exists()
    assert [name for name in todo(batch) if name.startswith("video")] == names[:1]  # a run that is stopped goes on
    batch.stylize(names[0], client)
    assert files(tmp_path / "out") == {"video.mp4", JOB_FILE}
    assert not any(name.startswith("video") for name in todo(batch))
    batch.stylize(names[0], client)  # as Ray does after a worker was lost
    assert files(tmp_path / "out") == {"video.mp4", JOB_FILE}

    given, stylized = list(VideoSource(video).frames()), list(VideoSource(tmp_path / "out" / "video.mp4").frames())
    assert [frame.pts for frame in stylized] == [frame.pts for frame in given]
    for frame, frame_after in zip(given, stylized, strict=True):
        assert np.abs(255.0 - frame.pixels - frame_after.pixels).mean() < 4
    assert VideoSource(tmp_path / "out" / "video.mp4").sound == ["aac"]


def test_sections_that_only_have_to_be_joined(video: Path, tmp_path: Path, client: StyleClient) -> None:
    batch = batch_of(video.parent, tmp_path / "out")
    names = [name for name in todo(batch) if name.startswith("video")]
    batch.claim()
    for name in names:
        batch.stylize(name, client)
        if name == names[-2]:
            kept = {path: path.read_bytes() for path in (tmp_path / "out" / OWN_FOLDER / "sections").rglob("*.nut")}
    (tmp_path / "out" / "video.mp4").unlink()
    for path, data in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert [name for name in todo(batch) if name.startswith("video")] == names[-1:]
    batch.stylize(names[-1], client)
    assert len(list(VideoSource(tmp_path / "out" / "video.mp4").frames())) == 90


def test_a_video_in_object_storage(video: Path, client: StyleClient) -> None:
    batch = batch_of("memory://videos/in", "memory://videos/out")
    batch.source.file_system.pipe_file("/videos/in/video.mp4", video.read_bytes())
    batch.claim()
    for name in todo(batch):
        batch.stylize(name, client)
    storage = batch.target.file_system
    assert sorted(storage.find("/videos/out")) == [f"/videos/out/{JOB_FILE}", "/videos/out/video.mp4"]
    frames = VideoSource(Path("video.mp4"), opened=lambda: storage.open("/videos/out/video.mp4")).frames()
    assert len(list(frames)) == 90


def test_what_is_no_video_is_one_error(contents: Path, tmp_path: Path, client: StyleClient) -> None:
    (contents / "broken.mp4").write_bytes(b"no video")
    batch = batch_of(contents, tmp_path / "out")
    assert "broken.mp4#0/1" in todo(batch)
    batch.claim()
    with pytest.raises(ImageError, match=r"broken\.mp4 as a video"):
        batch.stylize("broken.mp4#0/1", client)


def test_object_storage(contents: Path, client: StyleClient) -> None:
    source, target = "memory://bucket/contents", "memory://bucket/stylized"
    batch = batch_of(source, target)
    for name in ("one.png", "deep/er/two.jpg"):
        batch.source.file_system.pipe_file(f"/bucket/contents/{name}", (contents / name).read_bytes())
    assert todo(batch) == ["one.png", "deep/er/two.jpg"]
    batch.claim()
    batch.stylize("deep/er/two.jpg", client)
    assert todo(batch) == ["one.png"]
    assert sorted(batch.target.file_system.find("/bucket/stylized")) == [
        f"/bucket/stylized/{JOB_FILE}",
        "/bucket/stylized/deep/er/two.jpg",
    ]


def test_what_a_killed_run_began_is_removed(contents: Path, tmp_path: Path) -> None:
    batch = batch_of(contents, tmp_path / "out")
    batch.claim()
    (tmp_path / "out" / OWN_FOLDER / "beside" / "0123.png").write_bytes(b"half a pict")
    assert len(todo(batch)) == 3
    batch.claim()
    assert files(tmp_path / "out") == {JOB_FILE}


def test_a_disk_without_a_place_is_an_error_and_leaves_nothing(contents: Path, tmp_path: Path) -> None:
    batch = batch_of(contents, tmp_path / "out")
    batch.claim()
    (tmp_path / "out" / "deep").write_text("a file where a folder should be")
    with pytest.raises(WriteError, match=r"cannot write deep/x\.png"):
        batch.target.write("deep/x.png", b"data")


@pytest.mark.parametrize("name", ["missing.png", "notes.txt"])
def test_what_is_no_image(contents: Path, tmp_path: Path, client: StyleClient, name: str) -> None:
    batch = batch_of(contents, tmp_path / "out")
    with pytest.raises(NstError, match=name) as caught:
        batch.stylize(name, client)
    assert isinstance(caught.value, ImageError if name == "notes.txt" else InputError)
    assert not (tmp_path / "out").exists()


def test_an_output_has_one_job(contents: Path, tmp_path: Path, client: StyleClient) -> None:
    batch = batch_of(contents, tmp_path / "out")
    batch.claim()
    assert json.loads((tmp_path / "out" / JOB_FILE).read_text()) == batch.record
    with pytest.raises(InputError, match=r"belongs to another job \(nst stylize --style style:1"):
        batch_of(contents, tmp_path / "out", strength=0.5).begin()
    for damaged in ("{", "[]"):
        (tmp_path / "out" / JOB_FILE).write_text(damaged)
        with pytest.raises(InputError, match="damaged"):
            batch.begin()


def test_a_job_of_an_earlier_version_continues(contents: Path, tmp_path: Path) -> None:
    batch = batch_of(contents, tmp_path / "out")
    batch.claim()
    record = {"format": "nst-batch/1", "paint": "nst stylize --style style:1 --quality 92", "suffix": ""}
    (tmp_path / "out" / JOB_FILE).write_text(json.dumps(record))
    assert batch.begin()
    with pytest.raises(InputError, match=r"belongs to another job \(nst stylize --style style:1"):
        batch_of(contents, tmp_path / "out", strength=0.5).begin()


def test_what_would_be_overwritten_or_become_one(contents: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains the content images"):
        batch_of(contents, contents).begin()
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "three.png").write_bytes(b"somebody's")
    with pytest.raises(InputError, match=r"has deep/three\.png, which is not from nst batch"):
        todo(batch_of(contents, tmp_path / "out"))
    (contents / "deep" / "three.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"deep/three\.bmp and deep/three\.png would both become deep/three\.png"):
        todo(batch_of(contents, tmp_path / "other"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("s3://bucket/contents", "s3://bucket/contents: Install s3fs"),
        ("gopher://contents", "gopher://contents: Protocol not known: gopher"),
    ],
)
def test_a_wrong_input(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        todo(batch_of(url, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_the_extra(contents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "nst_apps.batch.workers", raising=False)
    result = CliRunner().invoke(batch_app, [str(contents), str(tmp_path / "out"), "--style", "x"])
    assert result.exit_code == 1
    assert (
        " ".join(result.stderr.split())
        == f"error: the package 'pyarrow' is not installed; run {install_command('batch')}"
    )


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C means what it means in a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_becomes_an_error(ctrl_c: None) -> None:
    """Ray, which it tears down, may fail in its own way."""
    with pytest.raises(KeyboardInterrupt), keyboard_interrupts():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise RuntimeError("torn down")


def test_an_interrupt_that_is_lost(ctrl_c: None) -> None:
    """As in a destructor, which raises nothing: the next look finds it."""
    with pytest.raises(KeyboardInterrupt), keyboard_interrupts() as check:
        check()
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        check()


def test_an_error_without_an_interrupt(ctrl_c: None) -> None:
    with pytest.raises(RuntimeError, match="alone"), keyboard_interrupts():
        raise RuntimeError("alone")
