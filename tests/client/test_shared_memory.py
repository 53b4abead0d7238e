"""Shared memory by default, and what stands in its way. A real Triton is in tests/end_to_end."""

import asyncio
import gc
import os
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import nst_client.transports.triton.shared_memory
import nst_client.transports.triton.transport
from nst_client import AsyncStyleClient, Rejected, StyleClient, Unreachable
from nst_client.transports.triton.errors import NoRoom
from nst_client.transports.triton.grpc import GrpcTransport
from nst_client.transports.triton.settings import TritonSettings
from nst_client.transports.triton.shared_memory import MAX_IDLE_REGIONS, SystemRegion, new_name, orphans
from nst_core.images import Pixels

from .fake_triton import FakeTriton, serving

SIZE = 2 * 60 * 90 * 3
"""Bytes of a content image of 90x60 and of its stylized image."""


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    with serving(FakeTriton()) as running:
        yield running


@pytest.fixture(autouse=True)
def no_file_is_left() -> Iterator[None]:
    yield
    assert not list(Path("/dev/shm").glob(f"nst-*-{os.getpid()}-*"))


def host_of(triton: FakeTriton) -> str:
    return triton.url.removeprefix("grpc://")


def content(width: int = 90, height: int = 60) -> Pixels:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check_stylized(client: StyleClient, times: int = 1, *, pixels: Pixels | None = None) -> None:
    pixels = content() if pixels is None else pixels
    for _ in range(times):
        assert np.array_equal(client.stylize(pixels, "negative"), 255 - pixels)


def test_one_image_registers_nothing(triton: FakeTriton) -> None:
    with StyleClient(triton.url) as client:
        check_stylized(client)
    assert triton.sent == [SIZE]
    assert not [name for name in triton.calls if "SharedMemory" in name]


def test_the_second_image_and_all_after_it_share_a_region(triton: FakeTriton) -> None:
    with StyleClient(triton.url) as client:
        check_stylized(client, 4)
        check_stylized(client, 2, pixels=content(40, 30))
        assert len(triton.regions) == 1
    assert triton.sent == [SIZE, 0, 0, 0, 0, 0]
    assert triton.calls.count("SystemSharedMemoryRegister") == 1
    assert not triton.regions


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_asked_for_is_done_from_the_first_image_on(triton: FakeTriton, shared: bool) -> None:
    with StyleClient(triton.url, shared_memory=shared) as client:
        check_stylized(client, 3)
    assert triton.sent == [0 if shared else SIZE] * 3


@pytest.mark.parametrize(
    "refusal",
    [
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!"),  # another server of the same protocol, or a proxy
        (grpc.StatusCode.UNAVAILABLE, "no healthy upstream"),
        (grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/nst'"),
        (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-x'"),
    ],
)
def test_a_server_that_shares_none_is_called_as_ever(triton: FakeTriton, refusal: tuple[grpc.StatusCode, str]) -> None:
    triton.refusals["SystemSharedMemoryRegister"] = refusal
    with StyleClient(triton.url, retries=0) as client:
        check_stylized(client, 4)
    assert triton.sent == [SIZE] * 4
    assert triton.calls.count("SystemSharedMemoryRegister") == 1
    with StyleClient(triton.url, retries=0, shared_memory=True) as client, pytest.raises((Rejected, Unreachable)):
        check_stylized(client)


def test_a_server_that_never_answers_a_registration_is_called_as_ever(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton.refusals["SystemSharedMemoryRegister"] = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    with StyleClient(triton.url, retries=0) as client:
        check_stylized(client, 3)
    assert triton.sent == [SIZE] * 3


def test_several_servers_behind_one_address(triton: FakeTriton) -> None:
    """The registration goes to one server and the request to another: it is answered, and memory is not tried again."""
    with StyleClient(triton.url) as client:
        check_stylized(client)
        triton.refusals["ModelInfer"] = (
            grpc.StatusCode.INVALID_ARGUMENT,
            "Unable to find shared memory region: 'nst'",
        )
        with pytest.raises(Rejected):
            check_stylized(client)
        del triton.refusals["ModelInfer"]
        check_stylized(client)
    assert triton.calls.count("SystemSharedMemoryRegister") >= 2

    class Forgetting(FakeTriton):
        def SystemSharedMemoryRegister(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
            answer = super().SystemSharedMemoryRegister(request, context)
            self.regions.clear()
            return answer

    with serving(Forgetting()) as other, StyleClient(other.url, retries=0) as client:
        check_stylized(client, 4)
        assert other.sent == [SIZE] * 4
        assert other.calls.count("SystemSharedMemoryRegister") == 2


def test_a_server_that_was_started_again(triton: FakeTriton) -> None:
    with StyleClient(triton.url) as client:
        check_stylized(client, 2)
        (first,) = triton.regions
        triton.regions.clear()
        check_stylized(client, 2)
        assert len(triton.regions) == 1
        assert first not in triton.regions
    assert triton.sent == [SIZE, 0, 0, 0]


def test_a_server_that_is_away_for_a_while(triton: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is shared again when it is back."""
    monkeypatch.setattr(nst_client.retries, "FIRST_PAUSE_SECONDS", 1e-3)
    with StyleClient(triton.url, retries=3) as client:
        check_stylized(client, 2)
        away = (grpc.StatusCode.UNAVAILABLE, "Socket closed")
        triton.refusals.update(SystemSharedMemoryRegister=away, ModelInfer=away, SystemSharedMemoryUnregister=away)
        with pytest.raises(Unreachable):
            check_stylized(client)
        triton.refusals.clear()
        check_stylized(client, 2)
    assert triton.sent == [SIZE, 0, 0, 0]
    assert not triton.regions


@pytest.mark.parametrize("why", ["no folder", "full"])
def test_a_system_without_room(triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str) -> None:
    if why == "no folder":
        monkeypatch.setattr(nst_client.transports.triton.shared_memory, "FOLDER", tmp_path / "none")
    else:
        monkeypatch.setattr(nst_client.transports.triton.shared_memory, "FREE_FRACTION", 2**60)
    with StyleClient(triton.url) as client:
        check_stylized(client, 3)
    assert triton.sent == [SIZE] * 3
    if why == "no folder":
        with StyleClient(triton.url, shared_memory=True) as client, pytest.raises(NoRoom, match="/dev/shm"):
            check_stylized(client)


def test_many_tasks_share_no_more_regions_than_are_kept(triton: FakeTriton) -> None:
    contents = [content(90 + number % 3) for number in range(100)]

    async def stylize() -> list[Pixels]:
        async with AsyncStyleClient(triton.url) as client:
            await client.stylize(content(99), "negative")
            stylized = await asyncio.gather(*(client.stylize(image, "negative") for image in contents))
            assert len(triton.regions) <= MAX_IDLE_REGIONS
            return stylized

    for stylized, given in zip(asyncio.run(stylize()), contents, strict=True):
        assert np.array_equal(stylized, 255 - given)
    assert triton.calls.count("SystemSharedMemoryRegister") <= MAX_IDLE_REGIONS
    assert not triton.regions


def test_regions_of_the_dead_are_swept(triton: FakeTriton) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    own = new_name()
    dead, elsewhere = own.replace(f"-{os.getpid()}-", f"-{child}-"), f"nst-7-{child}-abc"
    assert orphans([own, dead, elsewhere, "nst-x", "other"]) == [dead]
    triton.regions |= dict.fromkeys([own, dead, elsewhere], np.empty(0, np.uint8))
    with StyleClient(triton.url) as client:
        check_stylized(client, 2)
        assert dead not in triton.regions
    assert set(triton.regions) == {own, elsewhere}


@pytest.mark.parametrize("shared", [None, True])
def test_a_forked_child_leaves_its_parents_regions_alone(triton: FakeTriton, shared: bool | None) -> None:
    """It has regions of its own, and what it closes or forgets are those."""
    transport = GrpcTransport(TritonSettings(host_of(triton), shared_memory=shared))
    with StyleClient(transport=transport) as client:
        check_stylized(client, 2)
        (name,) = triton.regions
        parents, owner = transport.regions, os.getpid()
        child = os.fork()
        if child == 0:  # gRPC itself does not survive a fork, so no server is asked here
            try:
                client.close()
                assert transport.regions is not parents
                assert os.getpid() != owner
                del client, transport, parents
                gc.collect()
                nst_client.transports.triton.transport.kept_after_fork.clear()
                gc.collect()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert transport.regions is parents
        check_stylized(client, 2)
        assert set(triton.regions) == {name}
    assert not triton.regions


def test_a_client_that_nobody_closes_needs_no_garbage_collector(triton: FakeTriton) -> None:
    gc.collect()
    gc.disable()
    try:
        client = StyleClient(triton.url)
        check_stylized(client, 2)
        assert len(triton.regions) == 1
        del client
        assert not triton.regions
    finally:
        gc.enable()


def test_a_client_of_another_host_looks_up_nothing_before_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nst_client.transports.triton.transport, "is_this_host", lambda host: pytest.fail("looked up"))
    StyleClient("grpc://far.invalid:8001").close()
    StyleClient("http://far.invalid:8000").close()


def test_this_host() -> None:
    assert nst_client.transports.triton.addresses.is_this_host("localhost:8001")
    assert nst_client.transports.triton.addresses.is_this_host("127.0.0.9:8001")
    assert nst_client.transports.triton.addresses.is_this_host("[::1]:8001")
    assert not nst_client.transports.triton.addresses.is_this_host("192.0.2.1:8001")
    assert not nst_client.transports.triton.addresses.is_this_host("nobody.invalid:8001")


def test_a_name_of_several_hosts_is_not_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert not nst_client.transports.triton.addresses.is_this_host("tritons:8001")


def test_a_region_is_memory_without_a_file_once_it_is_registered() -> None:
    region = SystemRegion(8192)
    file = Path("/dev/shm") / region.name
    assert file.stat().st_mode & 0o777 == 0o600
    region.registered()
    assert not file.exists()
    region.write(content(20, 16))
    assert np.array_equal(region.read(0, content(20, 16)), content(20, 16))
    region.end()


class Answered(GrpcTransport):
    """Gets `answer` without a server, whose memory is not the question; in the region lies what it stylized last."""

    answer: bytes | None = None

    async def _send(self, name: str, message: Any, seconds: float) -> bytes:
        return self.answer or await super()._send(name, message, seconds)


@pytest.mark.parametrize(("shared", "most"), [(True, 0.1), (False, 1.1)])
def test_pixels_are_copied_once_each_way(triton: FakeTriton, shared: bool, most: float) -> None:
    """A request by shared memory needs no new memory, and a request over the wire needs that of its message.

    gRPC's own copies, in C, are not counted; nor is the result, which has the memory of the one before.
    """
    pixels = content(640, 480)
    transport = Answered(TritonSettings(host_of(triton), shared_memory=shared))
    with StyleClient(transport=transport) as client:
        check_stylized(client, 3, pixels=pixels)
        response = service_pb2.ModelInferResponse()
        response.outputs.add(name="stylized", datatype="UINT8", shape=[1, *pixels.shape])
        response.raw_output_contents.append(b"" if shared else (255 - pixels).tobytes())
        transport.answer = response.SerializeToString()
        tracemalloc.start()
        try:
            stylized = client.stylize(pixels, "negative")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert np.array_equal(stylized, 255 - pixels)
    assert peak < most * pixels.nbytes
