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


def content(width: int, height: int, number: int = 0) -> Pixels:
    return fit(open_image(sample_photographs()[number]), width, height).pixels


def difference(first: Pixels, second: Pixels) -> int:
    return int(np.abs(first.astype(int) - second).max())


@every_way
def test_every_way_gives_the_same(server: Server, models: Models, way: tuple[str, bool, bool]) -> None:
    """A batch larger than a request may be, an image of Pillow, an interpolation, and sizes in turn."""
    batch = np.stack([content(90, 61, number % 4) for number in range(11)])
    with connected(server, way) as client:
        assert [style.name for style in client.styles()] == ["a", "b", "starry"]
        for pixels in (batch, batch[:1, :40], batch):
            stylized = client.stylize(pixels, "starry")
            assert difference(stylized, models.stylized(np.ascontiguousarray(pixels))) <= 1
            stylized[0] = 0  # what is given is the caller's
        image = client.stylize(Image.fromarray(batch[0]), {"a": 1, "b": 3})
        assert isinstance(image, Image.Image)
        assert difference(np.asarray(image), models.stylized_with(batch[0], batch[0], (0.25, 0.75))) <= 1
    assert not regions_of(server)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[-1]], ids=named)
def test_tiles_are_one_pass_with_the_same_statistics(
    server: Server, models: Models, way: tuple[str, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small copy is smaller than the image, and the joins are where tiles of 128 pixels meet."""
    monkeypatch.setattr(nst_client.tiles, "THUMBNAIL_PIXELS", 256)
    pixels = content(521, 391)
    small = nst_client.tiles.thumbnail(pixels, 16)
    assert small.shape == (192, 256, 3)
    whole = models.stylized_with(pixels, small, (0.3, 0.7))
    progress: list[tuple[int, int]] = []
    with connected(server, way) as client:
        stylized = client.stylize(pixels, {"a": 0.3, "b": 0.7}, on_tile=lambda *counts: progress.append(counts))
    assert len(progress) == progress[-1][0] == progress[-1][1] >= 9
    assert difference(stylized, whole) <= 1
    other = models.stylized_with(pixels, small[:96, :96], (0.3, 0.7))
    assert difference(other, whole) > 8  # other statistics would show


def test_an_image_in_tiles_and_whole(server: Server, models: Models) -> None:
    """Of a small image the copy is the image itself, and tiles change nothing."""
    pixels = content(290, 200)
    with StyleClient(server.endpoints.grpc) as client:
        assert difference(client.stylize_tiled(pixels, "b"), client.stylize(pixels, "b")) <= 1


def test_many_tasks_of_one_client(server: Server, models: Models) -> None:
    """64 images of four sizes at once, each answer the one to its image."""
    contents = [np.roll(content(60 + 8 * (number % 4), 50), number, axis=0) for number in range(64)]

    async def stylize(address: str, shared: bool) -> list[Pixels]:
        async with AsyncStyleClient(address, shared_memory=shared) as client:
            return await asyncio.gather(*(client.stylize(pixels, "starry") for pixels in contents))

    wanted = [models.stylized(pixels[None])[0] for pixels in contents]
    for scheme, shared in (("grpc", True), ("http", False)):
        for stylized, expected in zip(asyncio.run(stylize(url(server, scheme), shared)), wanted, strict=True):
            assert difference(stylized, expected) <= 1


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_server_counts(server: Server, scheme: str) -> None:
    with StyleClient(url(server, scheme)) as client:
        before = settled(lambda: client.statistics("a"))
        for n in (1, 3, 3):
            client.stylize(np.stack([content(40, 30)] * n), "a")
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
            client.stylize(content(90, 60), "starry")
        first = regions_of(server)
        assert len(first) == 1
        for _ in range(3):
            client.stylize(content(180, 60), "starry")
            client.stylize(content(90, 60), "starry")
        assert len(regions_of(server)) == 2
        assert regions_of(server) >= first
        assert not regions_of_this_host(), "no file is left that a killed client could leave behind"
        for width in range(200, 500, 50):
            client.stylize(content(width, 60), "starry")
        assert len(regions_of(server)) == 3
    assert not regions_of(server)


@pytest.mark.parametrize("way", [way for way in WAYS if way[2]], ids=named)
def test_a_server_that_forgets_a_region_is_told_again(server: Server, way: tuple[str, bool, bool]) -> None:
    """As a server does after a new start."""
    with connected(server, way) as client:
        wanted = client.stylize(content(90, 60), "starry")
        with triton.InferenceServerClient(server.endpoints.grpc.removeprefix("grpc://")) as other:
            other.unregister_system_shared_memory()
        assert not regions_of(server)
        assert difference(client.stylize(content(90, 60), "starry"), wanted) <= 1
        assert len(regions_of(server)) == 1


@pytest.mark.parametrize("aio", [False, True], ids=["waiting", "asyncio"])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("why", ["unseen", "no room"])
def test_where_no_memory_can_be_shared_it_goes_without_if_it_may(
    server: Server, scheme: str, aio: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(server, (scheme, aio, False)) as client:
        wanted = client.stylize(content(90, 60), "starry")

    class Elsewhere(SystemRegion):
        def __init__(self, size: int, *, sparing: bool = False) -> None:
            if why == "no room":
                raise NoRoom("/dev/shm is full")
            super().__init__(size, sparing=sparing)
            self.registered()  # the file is gone before the server has opened it

    monkeypatch.setattr(nst_client.transports.triton.transport, "SystemRegion", Elsewhere)
    with connected(server, (scheme, aio, None)) as client:
        for _ in range(3):
            assert (client.stylize(content(90, 60), "starry") == wanted).all()
        assert not regions_of(server)
    with (
        connected(server, (scheme, aio, True)) as client,
        pytest.raises((Rejected, InputError), match=r"does not see this process's shared memory|/dev/shm is full"),
    ):
        client.stylize(content(90, 60), "starry")


FORGETFUL = """
import asyncio, sys
import numpy as np
from nst_client import AsyncStyleClient, StyleClient

pixels = np.zeros((60, 90, 3), np.uint8)

async def stylize():
    global client
    client = AsyncStyleClient(sys.argv[2], shared_memory=True)
    await client.stylize(pixels, "starry")

if sys.argv[1] == "async":
    asyncio.run(stylize())
else:
    client = StyleClient(sys.argv[2], shared_memory=True)
    client.stylize(pixels, "starry")
"""


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_memory_of_a_client_that_nobody_closes_is_given_back(server: Server, scheme: str) -> None:
    address = url(server, scheme)
    client = StyleClient(address, shared_memory=True)
    client.stylize(content(90, 60), "starry")
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
        client.stylize(content(90, 60), "starry")
        assert len(regions_of(server)) == 1
        assert regions_of(server).isdisjoint(left)
    assert not regions_of(server)


@pytest.mark.parametrize("aio", [False, True], ids=["waiting", "asyncio"])
@every_scheme
def test_a_client_shares_memory_by_itself_from_the_second_image_on(
    server: Server, models: Models, scheme: str, aio: bool
) -> None:
    """A single image, or one larger than all before, would pay for the registration alone."""
    small, larger = content(90, 60), content(180, 60)
    with connected(server, (scheme, aio, None)) as client:
        for pixels, regions in ((small, 0), (small, 1), (small[:50], 1), (larger, 1), (larger, 2), (small, 2)):
            pixels = np.ascontiguousarray(pixels)
            assert difference(client.stylize(pixels, "starry"), models.stylized(pixels[None])[0]) <= 1
            assert len(regions_of(server)) == regions
    assert not regions_of(server)


@pytest.mark.gpu
@pytest.mark.parametrize("aio", [False, True], ids=["waiting", "asyncio"])
@every_scheme
def test_pixels_on_a_gpu_stay_there(server: Server, models: Models, scheme: str, aio: bool) -> None:
    batch = np.stack([content(90, 61, number % 4) for number in range(11)])
    wanted = models.stylized(batch)
    with connected(server, (scheme, aio, None)) as client:
        stream = torch.cuda.Stream()
        for _ in range(3):
            with torch.cuda.stream(stream):  # not the default one, and still at work
                given = torch.from_numpy(batch).pin_memory().to("cuda", non_blocking=True)
                stylized = client.stylize(given, "starry")
            assert isinstance(stylized, torch.Tensor)
            assert stylized.device == given.device
            assert difference(stylized.cpu().numpy(), wanted) <= 1
        single = client.stylize(given[3], "starry")
        assert difference(single.cpu().numpy(), wanted[3]) <= 1
        image = client.stylize(Image.fromarray(batch[3]), "starry")
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
    pixels = content(90, 60)
    with connected(server, way, timeout=3.0) as client:
        client.stylize(pixels[::-1], "starry")
        with stopped(server), pytest.raises(TimedOut, match="within 3 s"):
            client.stylize(pixels[::-1], "starry")
        for _ in range(3):
            assert difference(client.stylize(pixels, "starry"), models.stylized(pixels[None])[0]) <= 1
    assert not regions_of(server)


@pytest.fixture
def fragile(models: Models, tmp_path: Path) -> Iterator[Server]:
    """A server that a test may spoil; it looks for changes of its repository every second."""
    shutil.copytree(models.repository / "starry", tmp_path / "repository" / "starry")
    running = serve(tmp_path / "repository", tmp_path / "triton.log", "--poll", 1)
    yield running
    running.stop()


FORKING = """
import multiprocessing, sys
import numpy as np
from nst_client import StyleClient

client = StyleClient(sys.argv[1], retries=0, timeout=60)
pixels = np.arange(60 * 90 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 90, 3)

def stylize(number):
    for _ in range(3):
        stylized = client.stylize(np.roll(pixels, number, axis=0), "starry")
    return stylized

wanted = [stylize(number) for number in range(4)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    for stylized, expected in zip(pool.map(stylize, range(4)), wanted, strict=True):
        assert np.array_equal(stylized, expected)
assert np.array_equal(stylize(0), wanted[0])
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
        assert "starry" in listed.stdout, listed.stderr
    with StyleClient(server.endpoints.grpc, shared_memory=True) as client:  # sweeps what the killed workers have left
        client.stylize(content(90, 60), "starry")
    assert not regions_of(server)


class Caller(threading.Thread):
    """Asks for one image after the other until it is stopped."""

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
                    assert difference(client.stylize(content(90, 60), "starry"), self.wanted) <= 1
                    self.right += 1
        except Exception as error:
            self.failure = error

    def answered(self, more: int) -> bool:
        """Whether it has stylized so many images more, or failed."""
        return self.failure is not None or self.right >= more


@contextmanager
def calling(server: Server, models: Models, **settings: Any) -> Iterator[list[Caller]]:
    """A caller for each way, each of whose images must be right."""
    wanted = models.stylized(content(90, 60)[None])[0]
    callers = [Caller(server, way, wanted, **settings) for way in WAYS]
    for caller in callers:
        caller.start()
    try:
        yield callers
    finally:
        for caller in callers:
            caller.ended.set()
        for caller in callers:
            caller.join()
    for caller in callers:
        assert caller.failure is None, (named(caller.way), caller.failure)


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_more(callers: list[Caller]) -> None:
    """Until each has stylized three images more."""
    goals = [caller.right + 3 for caller in callers]
    wait_for(lambda: all(caller.answered(goal) for caller, goal in zip(callers, goals, strict=True)))


def test_a_killed_server_that_comes_back_is_survived(fragile: Server, models: Models) -> None:
    """`kill -9` under eight clients, and a new Triton at the same ports: no image is lost or wrong."""
    with calling(fragile, models, retries=20, timeout=240.0) as callers:
        wait_for_more(callers)
        os.kill(triton_of(fragile), signal.SIGKILL)
        fragile.started(2)
        wait_for_more(callers)
    assert not regions_of(fragile)


def test_a_model_that_is_away_for_a_while_is_waited_for(fragile: Server, models: Models, tmp_path: Path) -> None:
    """Taken out of the repository under load, and put back."""
    folder = tmp_path / "repository" / "starry"
    with (
        StyleClient(fragile.endpoints.grpc, retries=0) as hasty,
        calling(fragile, models, retries=20, timeout=240.0) as callers,
    ):
        wait_for_more(callers)
        hasty.stylize(content(90, 60), "starry")
        folder.rename(tmp_path / "away")

        def away() -> bool:
            try:
                hasty.stylize(content(90, 60), "starry")
            except Unavailable as error:
                return "no available versions" in str(error)
            return False

        wait_for(away)
        (tmp_path / "away").rename(folder)
        wait_for_more(callers)


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
    pixels = content(90, 60)

    def stylize(where: str, **settings: Any) -> Pixels:
        client = kind(where, **settings)
        try:
            stylized: Pixels = client.stylize(pixels, "starry")
            return stylized
        finally:
            client.close()

    for shared in (False, True):
        stylized = stylize(address, ca=guarded.ca, token=guarded.token, shared_memory=shared)
        assert difference(stylized, models.stylized(pixels[None])[0]) <= 1
    with pytest.raises(Rejected, match=r"needs a token; .* --token-file"):
        stylize(address, ca=guarded.ca)
    with pytest.raises(Rejected, match="does not accept this token"):
        stylize(address, ca=guarded.ca, token="sesam")
    with pytest.raises(Untrusted, match="give its CA with --ca FILE"):
        stylize(address, token=guarded.token)
    with pytest.raises(Untrusted, match="--ca FILE"):  # the certificate is localhost's
        stylize(address.replace("localhost", "127.0.0.1"), ca=guarded.ca, token=guarded.token)
