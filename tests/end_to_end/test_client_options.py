"""What `StyleClient` and `AsyncStyleClient` can do, against a real Triton: also one that dies, stops, or forgets."""

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from PIL import Image

import nst_client.tiles
import nst_client.transports.triton.shared_memory
import nst_client.transports.triton.transport
from nst_client import (
    AsyncStyleClient,
    Rejected,
    Statistics,
    StyleClient,
    TimedOut,
    Unavailable,
    Untrusted,
)
from nst_client.transports.triton.errors import NoRoom
from nst_client.transports.triton.shared_memory import SystemRegion
from nst_core.errors import InputError
from nst_core.images import Pixels, fit, open_image, sample_photographs

from .serving import BIN, Models, Server, certificate, serve, settled, triton_of

WAYS = [(scheme, aio, shared) for scheme in ("grpc", "http") for aio in (False, True) for shared in (False, True)]


def named(way: tuple[str, bool, bool]) -> str:
    scheme, aio, shared = way
    return "-".join([scheme, "async" if aio else "sync", *(["shared"] if shared else [])])


every_way = pytest.mark.parametrize("way", WAYS, ids=named)
every_scheme = pytest.mark.parametrize("scheme", ["grpc", "http"])


@pytest.fixture(scope="module")
def server(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = serve(models.repository, tmp_path_factory.mktemp("server") / "triton.log")
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def no_memory_is_left() -> Iterator[None]:
    before = regions_of_this_host()
    yield
    assert regions_of_this_host() <= before


def regions_of_this_host() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("nst-*")}


def regions_of(server: Server) -> set[str]:
    """Those that a server has registered."""
    with triton.InferenceServerClient(server.endpoints.grpc.removeprefix("grpc://")) as client:
        return set(client.get_system_shared_memory_status(as_json=True).get("regions", {}))


def url(server: Server, scheme: str) -> str:
    return server.endpoints.grpc if scheme == "grpc" else server.endpoints.http


class Waiting:
    """An `AsyncStyleClient` in a loop of its own, called as the other one is."""

    def __init__(self, address: str, **settings: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncStyleClient(address, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def awaited(*arguments: Any, **named: Any) -> Any:
            return await getattr(self.client, name)(*arguments, **named)

        return lambda *arguments, **named: self.runner.run(awaited(*arguments, **named))

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


@contextmanager
def connected(server: Server, way: tuple[str, bool, bool | None], **settings: Any) -> Iterator[Any]:
    """A client that reaches the server in one of the `WAYS`."""
    scheme, aio, shared = way
    client = (Waiting if aio else StyleClient)(url(server, scheme), shared_memory=shared, **settings)
    try:
        yield client
    finally:
        client.close()


def photograph(width: int, height: int, number: int = 0) -> Pixels:
    return fit(open_image(sample_photographs()[number]), width, height).pixels


def difference(first: Pixels, second: Pixels) -> int:
    return int(np.abs(first.astype(int) - second).max())


@every_way
def test_every_way_gives_the_same(server: Server, models: Models, way: tuple[str, bool, bool]) -> None:
    """A batch larger than a request may be, a picture of Pillow, a mix, and sizes in turn."""
    batch = np.stack([photograph(90, 61, number % 4) for number in range(11)])
    with connected(server, way) as client:
        assert [style.name for style in client.styles()] == ["a", "b", "one"]
        for pixels in (batch, batch[:1, :40], batch):
            painted = client.stylize(pixels, "one")
            assert difference(painted, models.stylized(np.ascontiguousarray(pixels))) <= 1
            painted[0] = 0  # what is given is the caller's
        image = client.stylize(Image.fromarray(batch[0]), {"a": 1, "b": 3})
        assert isinstance(image, Image.Image)
        assert difference(np.asarray(image), models.stylized_with(batch[0], batch[0], (0.25, 0.75))) <= 1
    assert not regions_of(server)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[-1]], ids=named)
def test_tiles_are_one_pass_with_the_same_statistics(
    server: Server, models: Models, way: tuple[str, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small copy is smaller than the picture, and the joins are where tiles of 128 pixels meet."""
    monkeypatch.setattr(nst_client.tiles, "THUMBNAIL_PIXELS", 256)
    photo = photograph(521, 391)
    small = nst_client.tiles.thumbnail(photo, 16)
    assert small.shape == (192, 256, 3)
    whole = models.stylized_with(photo, small, (0.3, 0.7))
    told: list[tuple[int, int]] = []
    with connected(server, way) as client:
        painted = client.stylize(photo, {"a": 0.3, "b": 0.7}, on_tile=lambda *counts: told.append(counts))
    assert len(told) == told[-1][0] == told[-1][1] >= 9
    assert difference(painted, whole) <= 1
    other = models.stylized_with(photo, small[:96, :96], (0.3, 0.7))
    assert difference(other, whole) > 8  # other statistics would show


def test_a_picture_in_tiles_and_whole(server: Server, models: Models) -> None:
    """Of a small picture the copy is the picture itself, and tiles change nothing."""
    photo = photograph(290, 200)
    with StyleClient(server.endpoints.grpc) as client:
        assert difference(client.stylize_tiled(photo, "b"), client.stylize(photo, "b")) <= 1


def test_many_tasks_of_one_client(server: Server, models: Models) -> None:
    """64 pictures of four sizes at once, each answer the one to its picture."""
    photos = [np.roll(photograph(60 + 8 * (number % 4), 50), number, axis=0) for number in range(64)]

    async def paint(address: str, shared: bool) -> list[Pixels]:
        async with AsyncStyleClient(address, shared_memory=shared) as client:
            return await asyncio.gather(*(client.stylize(photo, "one") for photo in photos))

    wanted = [models.stylized(photo[None])[0] for photo in photos]
    for scheme, shared in (("grpc", True), ("http", False)):
        for stylized, expected in zip(asyncio.run(paint(url(server, scheme), shared)), wanted, strict=True):
            assert difference(stylized, expected) <= 1


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_server_counts(server: Server, scheme: str) -> None:
    with StyleClient(url(server, scheme)) as client:
        before = settled(lambda: client.statistics("a"))
        for n in (1, 3, 3):
            client.stylize(np.stack([photograph(40, 30)] * n), "a")
        after = settled(lambda: client.statistics("b"))
    assert after.requests - before.requests == 3
    assert after.images - before.images == 7
    assert after.executions - before.executions == 3
    grown = {size: n - before.batches.get(size, 0) for size, n in after.batches.items()}
    assert {size: n for size, n in grown.items() if n} == {1: 1, 3: 2}
    assert after.compute_seconds > after.queue_seconds >= 0
    assert isinstance(after, Statistics)


@every_scheme
def test_a_region_serves_every_request_of_its_size(
    server: Server, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nst_client.transports.triton.shared_memory, "MAX_IDLE_REGIONS", 3)
    with StyleClient(url(server, scheme), shared_memory=True) as client:
        for _ in range(5):
            client.stylize(photograph(90, 60), "one")
        first = regions_of(server)
        assert len(first) == 1
        for _ in range(3):
            client.stylize(photograph(180, 60), "one")
            client.stylize(photograph(90, 60), "one")
        assert len(regions_of(server)) == 2
        assert regions_of(server) >= first
        assert not regions_of_this_host(), "no file is left that a killed client could leave behind"
        for width in range(200, 500, 50):
            client.stylize(photograph(width, 60), "one")
        assert len(regions_of(server)) == 3
    assert not regions_of(server)


@pytest.mark.parametrize("way", [way for way in WAYS if way[2]], ids=named)
def test_a_server_that_forgets_a_region_is_told_again(server: Server, way: tuple[str, bool, bool]) -> None:
    """As one does that was started again."""
    with connected(server, way) as client:
        wanted = client.stylize(photograph(90, 60), "one")
        with triton.InferenceServerClient(server.endpoints.grpc.removeprefix("grpc://")) as other:
            other.unregister_system_shared_memory()
        assert not regions_of(server)
        assert difference(client.stylize(photograph(90, 60), "one"), wanted) <= 1
        assert len(regions_of(server)) == 1


@pytest.mark.parametrize("aio", [False, True], ids=["waiting", "asyncio"])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("why", ["unseen", "no room"])
def test_where_no_memory_can_be_shared_it_goes_without_if_it_may(
    server: Server, scheme: str, aio: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(server, (scheme, aio, False)) as client:
        wanted = client.stylize(photograph(90, 60), "one")

    class Elsewhere(SystemRegion):
        def __init__(self, size: int, *, sparing: bool = False) -> None:
            if why == "no room":
                raise NoRoom("/dev/shm is full")
            super().__init__(size, sparing=sparing)
            self.registered()  # the file is gone before the server has opened it

    monkeypatch.setattr(nst_client.transports.triton.transport, "SystemRegion", Elsewhere)
    with connected(server, (scheme, aio, None)) as client:
        for _ in range(3):
            assert (client.stylize(photograph(90, 60), "one") == wanted).all()
        assert not regions_of(server)
    with (
        connected(server, (scheme, aio, True)) as client,
        pytest.raises((Rejected, InputError), match=r"does not see this process's shared memory|/dev/shm is full"),
    ):
        client.stylize(photograph(90, 60), "one")


FORGETFUL = """
import asyncio, sys
import numpy as np
from nst_client import AsyncStyleClient, StyleClient

pixels = np.zeros((60, 90, 3), np.uint8)

async def paint():
    global client
    client = AsyncStyleClient(sys.argv[2], shared_memory=True)
    await client.stylize(pixels, "one")

if sys.argv[1] == "async":
    asyncio.run(paint())
else:
    client = StyleClient(sys.argv[2], shared_memory=True)
    client.stylize(pixels, "one")
"""


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_memory_of_a_client_that_nobody_closes_is_given_back(server: Server, scheme: str) -> None:
    address = url(server, scheme)
    client = StyleClient(address, shared_memory=True)
    client.stylize(photograph(90, 60), "one")
    assert len(regions_of(server)) == 1
    del client
    gc.collect()
    assert regions_of(server) == regions_of_this_host() == set()
    for kind in ("sync", "async"):
        subprocess.run([sys.executable, "-c", FORGETFUL, kind, address], check=True)
        assert regions_of(server) == regions_of_this_host() == set()


@every_scheme
def test_memory_of_a_client_that_is_killed_is_given_back_by_the_next(server: Server, scheme: str) -> None:
    address = url(server, scheme)
    killed = FORGETFUL + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", killed, "sync", address], check=False).returncode == -signal.SIGKILL
    left = regions_of(server)
    assert len(left) == 1
    assert not regions_of_this_host()
    with StyleClient(address, shared_memory=True) as client:
        client.stylize(photograph(90, 60), "one")
        assert len(regions_of(server)) == 1
        assert regions_of(server).isdisjoint(left)
    assert not regions_of(server)


@pytest.mark.parametrize("aio", [False, True], ids=["waiting", "asyncio"])
@every_scheme
def test_a_client_shares_memory_by_itself_from_the_second_picture_on(
    server: Server, models: Models, scheme: str, aio: bool
) -> None:
    """A single picture, or one larger than all before, would pay for the registration alone."""
    photo, larger = photograph(90, 60), photograph(180, 60)
    with connected(server, (scheme, aio, None)) as client:
        for pixels, regions in ((photo, 0), (photo, 1), (photo[:50], 1), (larger, 1), (larger, 2), (photo, 2)):
            pixels = np.ascontiguousarray(pixels)
            assert difference(client.stylize(pixels, "one"), models.stylized(pixels[None])[0]) <= 1
            assert len(regions_of(server)) == regions
    assert not regions_of(server)


@pytest.mark.gpu
@pytest.mark.parametrize("aio", [False, True], ids=["waiting", "asyncio"])
@every_scheme
def test_pixels_on_a_gpu_stay_there(server: Server, models: Models, scheme: str, aio: bool) -> None:
    batch = np.stack([photograph(90, 61, number % 4) for number in range(11)])
    wanted = models.stylized(batch)
    with connected(server, (scheme, aio, None)) as client:
        stream = torch.cuda.Stream()
        for _ in range(3):
            with torch.cuda.stream(stream):  # not the default one, and still at work
                given = torch.from_numpy(batch).pin_memory().to("cuda", non_blocking=True)
                painted = client.stylize(given, "one")
            assert isinstance(painted, torch.Tensor)
            assert painted.device == given.device
            assert difference(painted.cpu().numpy(), wanted) <= 1
        single = client.stylize(given[3], "one")
        assert difference(single.cpu().numpy(), wanted[3]) <= 1
        image = client.stylize(Image.fromarray(batch[3]), "one")
        assert difference(np.asarray(image), wanted[3]) <= 1


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Triton does nothing in the block, but its sockets are open."""
    pid = triton_of(server)
    os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 60
        while any(line.rpartition(")")[2].split()[0] != "T" for line in threads_of(pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)  # a busy machine stops a process's threads one by one
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def threads_of(pid: int) -> list[str]:
    """The lines of proc(5)'s `stat`."""
    lines = []
    for file in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # a thread that has ended
            lines.append(file.read_text())
    return lines


@pytest.mark.parametrize("way", [WAYS[1], WAYS[2], WAYS[4], WAYS[7]], ids=named)
def test_a_server_that_is_too_slow(server: Server, models: Models, way: tuple[str, bool, bool]) -> None:
    """The error comes while it is still stopped; what it answers too late is nobody else's answer."""
    photo = photograph(90, 60)
    with connected(server, way, timeout=3.0) as client:
        client.stylize(photo[::-1], "one")
        with stopped(server), pytest.raises(TimedOut, match="within 3 s"):
            client.stylize(photo[::-1], "one")
        for _ in range(3):
            assert difference(client.stylize(photo, "one"), models.stylized(photo[None])[0]) <= 1
    assert not regions_of(server)


@pytest.fixture
def fragile(models: Models, tmp_path: Path) -> Iterator[Server]:
    """A server that a test may spoil; it looks for changes of its repository every second."""
    shutil.copytree(models.repository / "one", tmp_path / "repository" / "one")
    running = serve(tmp_path / "repository", tmp_path / "triton.log", "--poll", 1)
    yield running
    running.stop()


FORKING = """
import multiprocessing, sys
import numpy as np
from nst_client import StyleClient

client = StyleClient(sys.argv[1], retries=0, timeout=60)
pixels = np.arange(60 * 90 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 90, 3)

def paint(number):
    for _ in range(3):
        painted = client.stylize(np.roll(pixels, number, axis=0), "one")
    return painted

wanted = [paint(number) for number in range(4)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    for painted, expected in zip(pool.map(paint, range(4)), wanted, strict=True):
        assert np.array_equal(painted, expected)
assert np.array_equal(paint(0), wanted[0])
client.close()
"""


def test_forked_workers_and_a_proxy_that_is_not_for_this_machine(server: Server) -> None:
    """Each worker has a connection and shared memory of its own."""
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxy
    command = [sys.executable, "-W", "error", "-c", FORKING, server.endpoints.http]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    for address in (server.endpoints.grpc, server.endpoints.http):
        listed = subprocess.run(
            [BIN / "nst", "styles", "--url", address], env=environment, capture_output=True, text=True, timeout=120
        )
        assert "one" in listed.stdout, listed.stderr
    with StyleClient(server.endpoints.grpc, shared_memory=True) as client:  # sweeps what the killed workers have left
        client.stylize(photograph(90, 60), "one")
    assert not regions_of(server)


class Painter(threading.Thread):
    """Asks for one picture after the other until it is told to end."""

    def __init__(self, server: Server, way: tuple[str, bool, bool], wanted: Pixels, **settings: Any) -> None:
        super().__init__()
        self.server, self.way, self.wanted, self.settings = server, way, wanted, settings
        self.right = 0
        self.failure: Exception | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            with connected(self.server, self.way, **self.settings) as client:
                while not self.ended.is_set():
                    assert difference(client.stylize(photograph(90, 60), "one"), self.wanted) <= 1
                    self.right += 1
        except Exception as error:
            self.failure = error

    def paints(self, more: int) -> bool:
        """Whether it has painted so many pictures more, or failed."""
        return self.failure is not None or self.right >= more


@contextmanager
def painting(server: Server, models: Models, **settings: Any) -> Iterator[list[Painter]]:
    """A painter for each way, each of whose pictures must be right."""
    wanted = models.stylized(photograph(90, 60)[None])[0]
    painters = [Painter(server, way, wanted, **settings) for way in WAYS]
    for painter in painters:
        painter.start()
    try:
        yield painters
    finally:
        for painter in painters:
            painter.ended.set()
        for painter in painters:
            painter.join()
    for painter in painters:
        assert painter.failure is None, (named(painter.way), painter.failure)


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_more(painters: list[Painter]) -> None:
    """Until each has painted three pictures more."""
    goals = [painter.right + 3 for painter in painters]
    wait_for(lambda: all(painter.paints(goal) for painter, goal in zip(painters, goals, strict=True)))


def test_a_killed_server_that_comes_back_is_survived(fragile: Server, models: Models) -> None:
    """`kill -9` under eight clients, and a new Triton at the same ports: no picture is lost or wrong."""
    with painting(fragile, models, retries=20, timeout=240.0) as painters:
        wait_for_more(painters)
        os.kill(triton_of(fragile), signal.SIGKILL)
        fragile.started(2)
        wait_for_more(painters)
    assert not regions_of(fragile)


def test_a_model_that_is_away_for_a_while_is_waited_for(fragile: Server, models: Models, tmp_path: Path) -> None:
    """Taken out of the repository under load, and put back."""
    folder = tmp_path / "repository" / "one"
    with (
        StyleClient(fragile.endpoints.grpc, retries=0) as hasty,
        painting(fragile, models, retries=20, timeout=240.0) as painters,
    ):
        wait_for_more(painters)
        hasty.stylize(photograph(90, 60), "one")
        folder.rename(tmp_path / "away")

        def away() -> bool:
            try:
                hasty.stylize(photograph(90, 60), "one")
            except Unavailable as error:
                return "no available versions" in str(error)
            return False

        wait_for(away)
        (tmp_path / "away").rename(folder)
        wait_for_more(painters)


@dataclass(frozen=True)
class Guarded:
    """Where a server with TLS and a token is, the file of its CA, and the token."""

    grpc: str
    http: str
    ca: Path
    token: str = "sesame"


@pytest.fixture(scope="module")
def guarded(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    ca, key = certificate(folder, "DNS:localhost")
    (folder / "token").write_text("sesame\n")
    options = ("--tls-cert", ca, "--tls-key", key, "--token-file", folder / "token")
    running = serve(models.repository, folder / "triton.log", *options)
    ports = running.endpoints
    yield Guarded(f"grpcs://localhost:{ports.grpc_port}", f"https://localhost:{ports.http_port}", ca)
    running.stop()


@pytest.mark.parametrize("kind", [StyleClient, Waiting])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_with_tls_and_a_token(guarded: Guarded, models: Models, scheme: str, kind: Callable[..., Any]) -> None:
    address = getattr(guarded, scheme)
    photo = photograph(90, 60)

    def paint(where: str, **settings: Any) -> Pixels:
        client = kind(where, **settings)
        try:
            painted: Pixels = client.stylize(photo, "one")
            return painted
        finally:
            client.close()

    for shared in (False, True):
        painted = paint(address, ca=guarded.ca, token=guarded.token, shared_memory=shared)
        assert difference(painted, models.stylized(photo[None])[0]) <= 1
    with pytest.raises(Rejected, match="none was given: give it with --token-file"):
        paint(address, ca=guarded.ca)
    with pytest.raises(Rejected, match="the one that was given is wrong"):
        paint(address, ca=guarded.ca, token="sesam")
    with pytest.raises(Untrusted, match="give its CA with --ca FILE"):
        paint(address, token=guarded.token)
    with pytest.raises(Untrusted, match="--ca FILE"):  # the certificate is localhost's
        paint(address.replace("localhost", "127.0.0.1"), ca=guarded.ca, token=guarded.token)
