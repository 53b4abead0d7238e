"""`nst stylize` as a user types it, on folders and in a pipe, with a real Triton that is killed in the middle."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from nst_client import StyleClient
from nst_core.images import fit, open_image, sample_photographs
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson

from .serving import BIN, Server, run, serve, succeeded, triton_of

COUNT = 200


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network with random weights: what is stylized is not pretty, and depends on every pixel."""
    folder = tmp_path_factory.mktemp("stylize")
    torch.manual_seed(3)
    save(Checkpoint(frozen(Johnson(width=0.125)), ("tiny",)), folder / "tiny.pth")
    succeeded(run("nst-export", folder / "tiny.pth", "-r", folder / "repo"))
    return folder / "repo"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    running = serve(repository, repository.parent / "triton.log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images in a tree, no two alike."""
    root = tmp_path_factory.mktemp("contents")
    samples = [fit(open_image(path), 96, 64).pixels for path in sample_photographs()]
    for number in range(COUNT):
        path = root / f"{number % 10}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.roll(samples[number % len(samples)], number, axis=1)).save(path)
    return root


def documents(text: str) -> tuple[list[dict[str, object]], dict[str, object]]:
    """The lines of --json: those of the images, and the summary."""
    *records, summary = [json.loads(line) for line in text.splitlines()]
    return records, summary


def assert_complete(folder: Path, out: Path, address: str) -> None:
    """Every image is there, whole, and nothing else; a sample of them belongs to its own content image."""
    wanted = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    assert sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) == wanted
    with StyleClient(address) as client:
        for number, name in enumerate(wanted):
            stylized = open_image(out / name).pixels
            if number % 20 == 0:
                expected = client.stylize(open_image(folder / name).pixels, "tiny")
                assert np.abs(stylized.astype(int) - expected).max() <= 1, name


def begun(folder: Path, out: Path, address: str, *options: object) -> "subprocess.Popen[str]":
    """The command on the whole folder, when it has stylized the first images."""
    command = [BIN / "nst", "stylize", folder, "-s", "tiny", "-o", out, "-u", address, "--json", *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.rglob("[0-9]*.png"))) < 10:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_triton_that_is_killed_and_started_again_loses_nothing(
    repository: Path, folder: Path, tmp_path: Path, scheme: str
) -> None:
    """The command waits for it, and every image is stylized once."""
    server = serve(repository, tmp_path / "triton.log")
    address = getattr(server.endpoints, scheme)
    try:
        process = begun(folder, tmp_path / "out", address, "--jobs", 3, "--timeout", 200)
        os.kill(triton_of(server), signal.SIGKILL)
        before = len(list((tmp_path / "out").rglob("[0-9]*.png")))
        assert before < COUNT
        server.started(2)
        stdout, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        records, summary = documents(stdout)
        assert (summary["stylized"], summary["skipped"], summary["failed"]) == (COUNT, 0, 0)
        assert len({line["output"] for line in records}) == COUNT, "each is reported once"
        assert_complete(folder, tmp_path / "out", address)
    finally:
        server.stop()


def test_a_server_that_stays_away_and_the_next_run(repository: Path, folder: Path, tmp_path: Path) -> None:
    """The first run gives up; the second stylizes exactly what is missing."""
    server = serve(repository, tmp_path / "triton.log")
    out = tmp_path / "out"
    try:
        process = begun(folder, out, server.endpoints.grpc, "--timeout", 3)
        triton = triton_of(server)
        server.process.kill()  # or it would start another
        os.killpg(triton, signal.SIGKILL)  # with the models' processes, which nobody is left to end
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Traceback" not in stderr
        first, summary = documents(stdout)
        assert len(first) == COUNT
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert 2 <= len(errors) <= 3, "one for each of the two images under way, and the summary"
        assert "not tried" in errors[-1]
        finished = {line["output"]: Path(str(line["output"])).stat().st_mtime_ns for line in first if not line["error"]}
        assert 10 <= len(finished) == summary["stylized"] < COUNT
        server.process.wait(60)
        server = serve(repository, tmp_path / "triton.log", endpoints=server.endpoints)
        result = run("nst", "stylize", folder, "-s", "tiny", "-o", out, "-u", server.endpoints.grpc, "--json")
        succeeded(result)
        _, summary = documents(result.stdout)
        assert (summary["skipped"], summary["stylized"]) == (len(finished), COUNT - len(finished))
        assert all(Path(str(name)).stat().st_mtime_ns == when for name, when in finished.items())
        assert_complete(folder, out, server.endpoints.grpc)
    finally:
        server.stop()


@pytest.mark.parametrize("jobs", [1, 3])
def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(server: Server, folder: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "out"
    process = begun(folder, out, server.endpoints.grpc, "--jobs", jobs)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    *_, count, stopped = stderr.splitlines()
    assert "of 200 images are done; run the same command to continue" in count
    assert stopped == "stopped"
    there = [path for path in out.rglob("*") if path.is_file()]
    assert 10 <= len(there) < COUNT
    assert not [path for path in there if path.name.startswith(".")], "nothing half-written"
    result = run("nst", "stylize", folder, "-s", "tiny", "-o", out, "-u", server.endpoints.grpc, "--json")
    succeeded(result)
    _, summary = documents(result.stdout)
    assert (summary["skipped"], summary["stylized"]) == (len(there), COUNT - len(there))
    assert_complete(folder, out, server.endpoints.grpc)
    again = run("nst", "stylize", folder, "-s", "tiny", "-o", out, "-u", server.endpoints.grpc)
    assert succeeded(again).splitlines() == ["skipped 200 of 200 images, which are stylized already"]


def test_a_pipe(server: Server, tmp_path: Path, photographs: dict[str, Path]) -> None:
    """`cat content.jpg | nst stylize - -o - | cat > stylized.jpg`, and back into the command again."""
    small = fit(open_image(photographs["coffee"]), 96, 64)
    Image.fromarray(small.pixels).save(tmp_path / "content.jpg", quality=95)
    nst = f"{BIN / 'nst'} stylize - -s tiny -u {server.endpoints.grpc} -o -"
    shell = f"cat content.jpg | {nst} | {nst} --format png | cat > stylized.png"
    result = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("- -> -  96x64") == 2
    with StyleClient(server.endpoints.grpc) as client:
        once = client.stylize(open_image(tmp_path / "content.jpg").pixels, "tiny")
        buffer = io.BytesIO()
        Image.fromarray(once).save(buffer, "JPEG", quality=92, subsampling=0)
        twice = client.stylize(open_image(buffer).pixels, "tiny")
    stylized = open_image(tmp_path / "stylized.png")
    assert stylized.metadata.kind == "PNG"
    assert np.abs(stylized.pixels.astype(int) - twice).mean() < 2


@pytest.mark.parametrize("options", [["-o", "-"], ["-o", "stylized.jpg", "--json"]], ids=["image", "json"])
def test_a_full_disk_behind_stdout(
    server: Server, photographs: dict[str, Path], tmp_path: Path, options: list[str]
) -> None:
    command = [BIN / "nst", "stylize", photographs["coffee"], "-s", "tiny", "--max-side", "64", *options]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*map(str, command), "-u", server.endpoints.grpc],
            stdout=full,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert result.returncode == 1
    assert result.stderr == "error: cannot write to stdout: No space left on device\n"


def test_every_way_to_see_what_is_kept(server: Server, tmp_path: Path, photographs: dict[str, Path]) -> None:
    """A wide-gamut photograph on its side, with a place: stylized, half of it, in its own colours."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    data = Image.Exif()
    data[0x0112] = 6
    data.get_ifd(0x8825)[1] = "N"
    small = fit(open_image(photographs["chelsea"]), 96, 64)
    Image.fromarray(small.pixels).save(tmp_path / "content.png", exif=data, icc_profile=profile, dpi=(300, 300))
    command = ("nst", "stylize", tmp_path / "content.png", "-s", "tiny", "-u", server.endpoints.http)
    options = ("--preserve-color", "--strength", 0.5)
    succeeded(run(*command, "-o", tmp_path / "a.png", *options))
    content = open_image(tmp_path / "content.png").pixels.astype(float)
    with StyleClient(server.endpoints.http) as client:
        stylized = client.stylize(content.astype(np.uint8), "tiny").astype(float)
    luma = (stylized - content) @ [0.299, 0.587, 0.114]
    expected = (content + (content + luma[..., None]).clip(0, 255)) / 2
    answer = open_image(tmp_path / "a.png")
    assert (answer.width, answer.height) == (64, 96)
    assert np.abs(answer.pixels - expected).max() <= 6, "through the profile and back"
    assert np.abs(answer.pixels - expected).mean() < 1
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["icc_profile"] == profile
        assert image.getexif().get_ifd(0x8825)[1] == "N"
        assert round(image.info["dpi"][0]) == 300
