"""`nst batch` with real Ray: stopped, gone on with, a worker killed, an image that kills whoever opens it."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from nst_apps.batch.cli import batch_app
from nst_apps.batch.cluster import cluster
from nst_apps.batch.job import BatchJob
from nst_apps.batch.storage import Folder
from nst_apps.batch.workers import stylize_all
from nst_apps.video.codec.decoder import VideoSource
from nst_client import MockTransport, Request, StyleClient
from nst_client.stylize.processing import StylizeOptions
from nst_core.images import Pixels, open_image
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import find_triton
from nst_server.process.supervisor import run_triton

from ..apps.clips import clip, panned
from .serving import BIN, TRITON, Models, descendants, run

COUNT = 2000
BROKEN = {"3/broken.png": b"not an image", "empty.jpg": b""}


def content(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("batch") / "contents"
    for number in range(COUNT):
        path = root / f"{number % 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content(number)).save(path, compress_level=1)
    for name, data in BROKEN.items():
        (root / name).write_bytes(data)
    return root


def files(folder: Path) -> dict[str, int]:
    """When each file below it was written last, nanoseconds."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a file that is begun may go while we look
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                found[str(path.relative_to(folder))] = about.st_mtime_ns
    return found


def until(true: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.05)


def running(pids: set[int]) -> set[int]:
    """Those that are there and have not ended: a container's first process may not collect the orphans that have."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


def workers_of(pid: int) -> list[int]:
    """The processes of Ray that stylize."""
    found = []
    for child in descendants(pid):
        try:
            if b"StylizeWorker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            continue
    return sorted(found)


def listening(pids: set[int]) -> set[str]:
    """The addresses, as Linux writes them, that these processes listen on."""
    sockets = set()
    for pid in pids:
        try:
            sockets |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115
        except OSError:
            continue
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


def started(contents: Path, output: Path, models: Models) -> subprocess.Popen[bytes]:
    options = ["--style", "starry", "-u", f"local:{models.repository}", "-w", "2", "--json"]
    command = [str(BIN / "nst"), "batch", str(contents), str(output), *options]
    with (output.parent / "stdout").open("wb") as lines, (output.parent / "stderr").open("wb") as log:
        return subprocess.Popen(command, stdout=lines, stderr=log, start_new_session=True)


def test_stopped_then_gone_on_with_and_a_worker_killed(contents: Path, tmp_path: Path, models: Models) -> None:
    output = tmp_path / "stylized"

    def finished() -> dict[str, int]:
        return {name: at for name, at in files(output).items() if name[0].isdigit()}

    first = started(contents, output, models)
    until(lambda: len(finished()) > 100, first)
    family = descendants(first.pid)
    addresses = listening(family | {first.pid})
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(120) == 130, (tmp_path / "stderr").read_text()
    until(lambda: not running(family))
    before = finished()
    assert 100 < len(before) < COUNT
    lines = [json.loads(line) for line in (output / "nst-batch.jsonl").read_text().splitlines()]
    assert lines[-1]["stylized"] <= len(before)  # some were stylized and not yet counted

    second = started(contents, output, models)
    until(lambda: len(finished()) > len(before) + 200, second)
    family = descendants(second.pid)
    victims = workers_of(second.pid)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    assert second.wait(300) == 1, (tmp_path / "stderr").read_text()
    until(lambda: not running(family))

    after = files(output)
    expected = {str(path.relative_to(contents)) for path in contents.rglob("*.*")} - BROKEN.keys()
    assert len(expected) == COUNT
    assert after.keys() == expected | {"nst-batch.jsonl", ".nst-batch/job.json"}
    assert {name: after[name] for name in before} == before  # nothing is stylized again
    *errors, summary = [json.loads(line) for line in (output / "nst-batch.jsonl").read_text().splitlines()]
    assert {line["input"]: "not an image" in line["error"] for line in errors} == dict.fromkeys(BROKEN, True)
    assert (summary["stylized"], summary["skipped"]) == (COUNT - len(before), len(before))
    assert (summary["failed"], summary["missing"]) == (2, 0)
    assert json.loads((tmp_path / "stdout").read_text()) == summary
    for start in range(0, COUNT, 100):
        numbers = range(start, start + 100)
        right = models.stylized(np.stack([content(number) for number in numbers]))
        got = np.stack([open_image(output / f"{number % 10}" / f"{number}.png").pixels for number in numbers])
        assert np.abs(got.astype(int) - right).max() <= 1


class Deadly:
    """A worker's client whose server is a function: red images kill the process."""

    def __call__(self) -> StyleClient:
        def stylize(request: Request) -> Pixels:
            pixels: Pixels = request.inputs["image"]
            if (pixels[0, 0, 0] == (255, 0, 0)).all():
                os.kill(os.getpid(), signal.SIGKILL)
            return 255 - pixels

        return StyleClient(transport=MockTransport(stylize))


def inverted(source: Path, target: Path) -> BatchJob:
    return BatchJob(Folder.at(str(source)), Folder.at(target.as_uri()), StylizeOptions({"style": 1.0}))


@pytest.fixture(scope="module")
def ray() -> Iterator[str]:
    """The address of the cluster that this process has started; it believes that it has two GPUs."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 2}')
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray does not share what is hidden
        assert stack.enter_context(cluster(None, 2)) >= 2
        import ray

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield ray.get_runtime_context().gcs_address


class Seen:
    """A worker's client whose server stylizes in the number of the GPU that its process sees, 255 for none."""

    def __call__(self) -> StyleClient:
        def stylize(request: Request) -> Pixels:
            return np.full_like(request.inputs["image"], int(os.environ.get("CUDA_VISIBLE_DEVICES") or 255))

        return StyleClient(transport=MockTransport(stylize))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning")  # of Ray's own code
def test_workers_share_the_gpus_that_a_model_wants(ray: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(40):
        Image.fromarray(content(number)).save(tmp_path / "in" / f"{number:02}.png")
    colours = {}
    for gpu in (True, False):
        batch = inverted(tmp_path / "in", tmp_path / f"out-{gpu}")
        batch.claim()
        todo = [pa.array(listing.missing) for listing in batch.listings(True)]
        assert sum(block.stylized for block in stylize_all(batch, todo, Seen(), 2, gpu=gpu)) == 40
        written = (tmp_path / f"out-{gpu}").glob("*.png")
        colours[gpu] = {int(open_image(path).pixels[0, 0, 0]) for path in written}
    assert colours[True] and colours[True] <= {0, 1}
    assert colours[False] == {255}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning")  # of Ray's own code
def test_an_image_that_kills_its_worker_costs_no_other(ray: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[..., 0] = 255 if number == 5 else number
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    batch = inverted(tmp_path / "in", tmp_path / "out")
    assert not batch.begin()
    todo = [pa.array(listing.missing) for listing in batch.listings(False)]
    batch.claim()
    done = list(stylize_all(batch, todo, Deadly(), 2))
    assert sum(block.stylized for block in done) == 7
    [(image, error)] = [line for block in done for line in block.failed]
    assert image == "5.png" and "its worker was lost 2 times" in error
    batch.target.sweep()
    assert files(tmp_path / "out").keys() == {f"{n}.png" for n in range(8) if n != 5} | {".nst-batch/job.json"}
    assert open_image(tmp_path / "out" / "7.png").pixels[0, 0].tolist() == [248, 255, 255]


def test_on_a_cluster_by_its_address(ray: str, tmp_path: Path, contents: Path, models: Models) -> None:
    here = ("batch", contents / "7", tmp_path / "out", "--style", "a:0.5,b:0.5", "-u", f"local:{models.repository}")
    result = run("nst", *here, "--format", "webp", "--address", ray)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").glob("*.webp"))) == COUNT // 10
    again = run("nst", *here, "--format", "webp", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["skipped"] == COUNT // 10


def test_videos_in_sections_by_two_tritons(ray: str, tmp_path: Path, models: Models) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    stamps = [512 * 10 * n for n in range(80)]  # 32 seconds, so two sections
    frames = panned(80, 64, 48)
    videos = [clip(tmp_path / "in" / name, frames, stamps=stamps, sound=True) for name in ("a.mp4", "deep/b.mkv")]
    Image.fromarray(frames[0]).save(tmp_path / "in" / "c.png")
    with ExitStack() as servers:
        endpoints = [Endpoints.free() for _ in range(2)]
        for number, endpoint in enumerate(endpoints):
            log = tmp_path / f"{number}.log"
            servers.enter_context(run_triton(find_triton(TRITON, print), models.repository, endpoint, log))
        url = endpoints[0].grpc + "," + endpoints[1].grpc.removeprefix("grpc://")
        here = ("batch", tmp_path / "in", tmp_path / "out", "--style", "starry", "--url", url)
        result = run("nst", *here, "--address", ray, "--json")
    assert result.returncode == 0, result.stderr
    assert "5 images and sections of videos to stylize" in result.stderr
    assert json.loads(result.stdout)["stylized"] == 5
    written = {"a.mp4", "deep/b.mkv", "c.png", "nst-batch.jsonl", ".nst-batch/job.json"}
    assert files(tmp_path / "out").keys() == written
    right = models.stylized(np.stack(frames)).astype(int)
    for video in videos:
        stylized = VideoSource(tmp_path / "out" / video.relative_to(tmp_path / "in"))
        got = list(stylized.frames())
        assert [frame.pts - stylized.start for frame in got] == [
            frame.pts - VideoSource(video).start for frame in VideoSource(video).frames()
        ]
        assert stylized.sound == ["aac"]
        off = [np.abs(frame.pixels - expected).mean() for frame, expected in zip(got, right, strict=True)]
        assert max(off) < 0.5 * np.abs(got[0].pixels - right[-1]).mean()


def test_nobody_at_the_address_is_one_line(tmp_path: Path, contents: Path, models: Models) -> None:
    here = [str(contents / "7"), str(tmp_path), "--style", "starry", "-u", f"local:{models.repository}", "--address"]
    for address, message in (
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://there", "use host:6379"),
    ):
        result = CliRunner().invoke(batch_app, [*here, address])
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 2 and message in result.stderr.splitlines()[1]


@pytest.mark.parametrize(
    ("source", "style", "message"),
    [
        ("nowhere", "starry", "no such folder"),
        ("empty", "starry", "no images or videos"),
        ("empty", "wave", "no style 'wave'"),
    ],
)
def test_a_wrong_input_is_one_line(tmp_path: Path, models: Models, source: str, style: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    command = [str(tmp_path / source), str(tmp_path / "out"), "-s", style, "-u", f"local:{models.repository}"]
    result = CliRunner().invoke(batch_app, command)
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
