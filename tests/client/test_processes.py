"""Clients in processes, threads and event loops other than those that made them."""

import asyncio
import concurrent.futures
import copy
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nst_client.transports.local
import nst_client.transports.triton.transport
from nst_client import AsyncStyleClient, MockTransport, StyleClient
from nst_client.transports.local import LocalTransport
from nst_core.errors import InputError, NstError
from nst_core.images import Pixels

from .fake_triton import serving_elsewhere
from .test_local import ONNX, Engines, repository

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)

ROOT = Path(__file__).parents[2]

PARENT = """
import asyncio, os, signal, sys, threading
import numpy as np
from nst_client import AsyncStyleClient, StyleClient
from nst_core.errors import NstError

url, case = sys.argv[1:]
pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)

def check_stylized(client):
    assert np.array_equal(client.stylize(pixels, "negative"), 255 - pixels)

async def check_stylized_async():
    async with AsyncStyleClient(url, timeout=20) as client:
        stylized = await client.stylize(pixels, "negative")
        assert np.array_equal(stylized, 255 - pixels)

def in_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
        except NstError as error:
            print(type(error).__name__, error, flush=True)
            leave(3)
        leave(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

# A process of multiprocessing leaves by os._exit, another one by sys.exit, which ends everything that it has.
leave = os._exit if case == "running loop" else sys.exit
client = StyleClient(url, timeout=20)
if case == "unused":
    code = in_child(lambda: check_stylized(client))
elif case == "same":
    for _ in range(3):
        check_stylized(client)
    code = in_child(lambda: (check_stylized(client), check_stylized(client), check_stylized(client), client.close()))
elif case == "closed":
    check_stylized(client)
    check_stylized(client)
    code = in_child(client.close)
elif case == "own":
    check_stylized(client)
    code = in_child(lambda: check_stylized(StyleClient(url, timeout=20)))
elif case == "asyncio":
    asyncio.run(check_stylized_async())
    code = in_child(lambda: asyncio.run(check_stylized_async()))
elif case == "running loop":
    async def forking():
        async with AsyncStyleClient(url, timeout=20) as other:
            await other.stylize(pixels, "negative")
            code = in_child(lambda: check_stylized(StyleClient(url, timeout=20)))
            assert np.array_equal(await other.stylize(pixels, "negative"), 255 - pixels)
        return code
    code = asyncio.run(forking())
for _ in range(2):
    check_stylized(client)
client.close()
sys.exit(code)
"""


@pytest.fixture(scope="module", params=["grpc", "http"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[str]:
    with serving_elsewhere(request.param) as url:
        yield url


def forked(url: str, case: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a process that forks another says; it goes on stylizing afterwards."""
    command = [sys.executable, "-W", "error", "-c", PARENT, url, case]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)
    assert "Traceback" not in result.stderr, result.stderr
    return result


@pytest.mark.parametrize("case", ["unused", "same", "closed", "own", "asyncio", "running loop"])
def test_a_forked_child(elsewhere: str, case: str) -> None:
    """It has a connection of its own, and leaves its parent's alone; by gRPC it gets an error."""
    result = forked(elsewhere, case)
    if elsewhere.startswith("grpc") and case not in ("unused", "closed"):
        assert result.returncode == 3
        (line,) = result.stdout.splitlines()
        assert line.startswith("InputError gRPC does not work in a process that was forked")
        assert "get_context('spawn')" in line
        assert "http://" in line
    else:
        assert result.returncode == 0, result


@pytest.mark.parametrize("case", ["same", "own", "asyncio"])
def test_a_forked_child_with_the_support_of_grpc(elsewhere: str, case: str) -> None:
    assert forked(elsewhere, case, GRPC_ENABLE_FORK_SUPPORT="1").returncode == 0


def stylized_by(client: StyleClient) -> tuple[int, Pixels]:
    """For a process of a pool."""
    return os.getpid(), client.stylize(PIXELS, "negative")


def test_a_client_is_sent_to_other_processes(elsewhere: str) -> None:
    """As multiprocessing, Ray and PyTorch's workers do."""
    with (
        StyleClient(elsewhere, timeout=30.0, token="sesame") as client,
        concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool,
    ):
        for _ in range(2):
            client.stylize(PIXELS, "negative")
        for process, stylized in pool.map(stylized_by, [client] * 4):
            assert process != os.getpid()
            assert np.array_equal(stylized, 255 - PIXELS)


def test_copies_share_nothing_with_their_original(server: str) -> None:
    with StyleClient(server, shared_memory=False) as client:
        client.stylize(PIXELS, "negative")
        for other in (pickle.loads(pickle.dumps(client)), copy.copy(client), copy.deepcopy(client)):
            assert np.array_equal(other.stylize(PIXELS, "negative"), 255 - PIXELS)
            other.close()
        client.stylize(PIXELS, "negative")
    again = pickle.loads(pickle.dumps(AsyncStyleClient(server)))
    assert np.array_equal(asyncio.run(closing(again)), 255 - PIXELS)


async def closing(client: AsyncStyleClient) -> Pixels:
    async with client:
        return await client.stylize(PIXELS, "negative")


@pytest.mark.parametrize("shared", [None, False])
def test_threads_share_a_client(server: str, shared: bool | None) -> None:
    contents = [np.roll(PIXELS, number, axis=0) for number in range(60)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with (
            StyleClient(server, shared_memory=shared) as client,
            concurrent.futures.ThreadPoolExecutor(8) as pool,
        ):
            stylized = list(pool.map(lambda pixels: client.stylize(pixels, "negative"), contents))
    finally:
        sys.setswitchinterval(before)
    for pixels, answer in zip(contents, stylized, strict=True):
        assert np.array_equal(answer, 255 - pixels)


def test_a_blocking_client_in_a_loop_that_runs(server: str) -> None:
    """As in a cell of Jupyter."""

    async def cell() -> Pixels:
        with StyleClient(server) as client:
            return client.stylize(PIXELS, "negative")

    assert np.array_equal(asyncio.run(cell()), 255 - PIXELS)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the first loop is closed with its connections open
def test_an_asynchronous_client_in_one_loop_after_the_other(server: str) -> None:
    client = AsyncStyleClient(server)

    async def check_stylized() -> Pixels:
        await client.stylize(PIXELS, "negative")
        return await client.stylize(PIXELS, "negative")

    for _ in range(3):
        assert np.array_equal(asyncio.run(check_stylized()), 255 - PIXELS)
    asyncio.run(client.close())
    gc.collect()


def test_an_asynchronous_client_in_two_loops_at_once(server: str) -> None:
    async def meet() -> None:
        async with AsyncStyleClient(server) as client:
            await client.styles()

            def elsewhere() -> None:
                with pytest.raises(InputError, match="belongs to another running event loop"):
                    asyncio.run(client.stylize(PIXELS, "negative"))

            await asyncio.to_thread(elsewhere)
            assert np.array_equal(await client.stylize(PIXELS, "negative"), 255 - PIXELS)

    asyncio.run(meet())


def test_a_closed_client_connects_again(server: str) -> None:
    client = StyleClient(server)
    for _ in range(2):
        assert np.array_equal(client.stylize(PIXELS, "negative"), 255 - PIXELS)
        client.close()
        client.close()


def in_child(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
        except NstError:
            os._exit(3)
        except BaseException:
            os._exit(4)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_opens_local_models_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = LocalTransport(repository(tmp_path, ONNX, "KIND_CPU"))
    engines = Engines(monkeypatch, local, ["CPUExecutionProvider"])
    with StyleClient(transport=local) as client:
        client.stylize(PIXELS, "wave")

        def work() -> None:
            client.stylize(PIXELS, "wave")
            assert engines.calls == ["session CPUExecutionProvider"] * 2
            assert nst_client.transports.local.kept_after_fork

        assert in_child(work) == 0
        client.stylize(PIXELS, "wave")
        other = pickle.loads(pickle.dumps(local))
        assert (other.repository, other.aio, other.loaded) == (local.repository, False, {})
    assert engines.calls == ["session CPUExecutionProvider"]


def test_a_client_that_cannot_be_sent_says_so() -> None:
    handler = threading.Lock()
    with pytest.raises(Exception, match="pickle"):
        pickle.dumps(StyleClient(transport=MockTransport(handler)))  # type: ignore[arg-type]
    gc.collect()
