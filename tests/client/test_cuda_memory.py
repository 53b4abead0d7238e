"""Pixels on a GPU, which is this process's memory here: a fake runtime and a fake server. The real ones are in
tests/end_to_end/test_client_options.py, for machines with a GPU."""

import asyncio
import base64
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from nst_client import AsyncStyleClient, MockTransport, Rejected, StyleClient
from nst_client.transports import cuda_pixels
from nst_client.transports.base import ModelConfig, Transport
from nst_client.transports.cuda_pixels import CudaPixels, pixels_on_gpu
from nst_client.transports.triton.cuda_memory import CudaRegion
from nst_client.transports.triton.grpc import GrpcTransport
from nst_client.transports.triton.http import HttpTransport
from nst_client.transports.triton.http_connections import HttpRequest, HttpResponse
from nst_client.transports.triton.settings import TritonSettings
from nst_client.transports.triton.transport import RegionRegistry
from nst_core.engines import cuda
from nst_core.errors import InputError, MissingExtra

from .fake_triton import DlpackArray, FakeRuntime, FakeTriton, GpuArray, read, serving


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    fake = FakeRuntime()
    monkeypatch.setattr(cuda, "runtime", lambda: fake)
    cuda_pixels.stream_of.cache_clear()
    yield fake
    cuda_pixels.stream_of.cache_clear()


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    with serving(FakeTriton(max_pixels="12000")) as running:
        yield running


def content(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", [GpuArray, DlpackArray])
def test_pixels_on_a_gpu_are_answered_there(runtime: FakeRuntime, triton: FakeTriton, kind: type) -> None:
    single, batch = content(60, 90), content(5, 60, 90)
    with StyleClient(triton.url) as client:
        for _ in range(2):
            stylized: Any = client.stylize(kind(single), "negative")
            assert isinstance(stylized, CudaPixels)
            assert np.array_equal(read(stylized), 255 - single)
        stylized = client.stylize(kind(batch), "negative")  # in requests of two images
        assert np.array_equal(read(stylized), 255 - batch)
        assert len(triton.cuda_regions) == 1
    assert triton.sent == [0] * 5
    assert triton.calls.count("CudaSharedMemoryRegister") == 1
    assert not triton.cuda_regions
    assert runtime.device == 0, "the thread's device is as it was"
    del stylized
    assert not runtime.memory


def test_the_asynchronous_client_too(runtime: FakeRuntime, triton: FakeTriton) -> None:
    single = content(60, 90)

    async def stylize() -> list[Any]:
        async with AsyncStyleClient(triton.url) as client:
            return await asyncio.gather(*(client.stylize(GpuArray(single), "negative") for _ in range(4)))

    assert all(np.array_equal(read(stylized), 255 - single) for stylized in asyncio.run(stylize()))


def test_a_library_gets_its_own_kind_and_its_streams_are_waited_for(
    runtime: FakeRuntime, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's interface tells no stream, and its allocator gives out memory that its stream may still work on."""

    class Tensor(GpuArray):
        device = "cuda:1"

        def __init__(self, values: np.ndarray) -> None:
            super().__init__(values)
            self.__cuda_array_interface__["version"] = 2

        def new_empty(self, shape: tuple[int, ...]) -> "Tensor":
            runtime.synchronized.clear()
            return Tensor(np.empty(shape, np.uint8))

        def __getitem__(self, index: int) -> "Tensor":
            return Tensor(self.values[index])

    Tensor.__module__ = "torch"
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=41))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    single = content(60, 90)
    with StyleClient(triton.url) as client:
        stylized = client.stylize(Tensor(single), "negative")
        assert type(stylized) is Tensor
        assert np.array_equal(stylized.values, 255 - single)
        assert runtime.synchronized[0] == 41
        batch = client.stylize(Tensor(single[None]), "negative")
        assert batch.values.shape == (1, 60, 90, 3)


@pytest.mark.parametrize(("stream", "waited"), [(None, []), (5, [5])])
def test_the_stream_of_the_interface_is_waited_for(runtime: FakeRuntime, stream: int | None, waited: list[int]) -> None:
    found = pixels_on_gpu(GpuArray(content(4, 6), stream))
    assert found is not None
    assert (found.shape, found.device, len(found)) == ((1, 4, 6, 3), 1, 1)
    assert runtime.synchronized == waited
    old = GpuArray(content(4, 6))
    old.__cuda_array_interface__["version"] = 2
    assert pixels_on_gpu(old) is not None
    assert runtime.synchronized[-1] == -1, "an interface that knows no streams: the whole device"


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (GpuArray(np.zeros((4, 4, 3), np.float32)), r"<f4 \(4, 4, 3\); pass uint8"),
        (GpuArray(np.zeros((4, 4), np.uint8)), r"uint8 \(4, 4\); pass"),
        (GpuArray(np.zeros((4, 4, 4), np.uint8)), r"\(4, 4, 4\); pass"),
        (GpuArray(np.zeros((4, 8, 3), np.uint8)[:, ::2]), "not contiguous"),
        (DlpackArray(np.zeros((4, 4, 3), np.float32)), "32 bits"),
        (GpuArray(np.zeros((120, 120, 3), np.uint8)), "120x120 is too large for negative"),
    ],
)
def test_pixels_that_cannot_be_stylized(runtime: FakeRuntime, triton: FakeTriton, pixels: Any, words: str) -> None:
    with StyleClient(triton.url) as client, pytest.raises(InputError, match=words):
        client.stylize(pixels, "negative")


class Unasked(GrpcTransport):
    """Knows the model without asking the server."""

    async def models(self, seconds: float) -> list[str]:
        return ["negative"]

    async def config(self, model: str, seconds: float) -> ModelConfig:
        return ModelConfig({"styles": model}, 0)


@pytest.mark.parametrize(
    "transport",
    [
        Unasked(TritonSettings("192.0.2.1:8001")),
        Unasked(TritonSettings("127.0.0.1:8001,127.0.0.1:8002")),
        Unasked(TritonSettings("127.0.0.1:8001", shared_memory=False)),
        MockTransport(lambda request: request.inputs["image"], {"negative": {}}),
    ],
)
def test_where_pixels_on_a_gpu_cannot_go(runtime: FakeRuntime, transport: Transport) -> None:
    with (
        StyleClient(transport=transport) as client,
        pytest.raises(
            InputError, match=r"pixels on a GPU need a single Triton on this machine.*tensor.cpu\(\).numpy\(\)"
        ),
    ):
        client.stylize(GpuArray(content(60, 90)), "negative")


def test_a_server_without_the_gpu(runtime: FakeRuntime, triton: FakeTriton) -> None:
    triton.refusals["CudaSharedMemoryRegister"] = (
        grpc.StatusCode.INVALID_ARGUMENT,
        "failed to open CUDA IPC handle: invalid device context",
    )
    with (
        StyleClient(triton.url) as client,
        pytest.raises(Rejected, match="device context; the server must use this GPU"),
    ):
        client.stylize(GpuArray(content(60, 90)), "negative")


def test_a_gpu_that_shares_no_memory(runtime: FakeRuntime, triton: FakeTriton) -> None:
    """As in Windows' Linux."""
    runtime.shares = False
    with StyleClient(triton.url) as client, pytest.raises(InputError, match="GPU 1 failed: cudaErrorNotSupported"):
        client.stylize(GpuArray(content(60, 90)), "negative")
    assert runtime.device == 0


def test_without_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ModuleNotFoundError("cuda")

    monkeypatch.setattr(cuda, "runtime", missing)
    with pytest.raises(MissingExtra, match=r"cuda-bindings.*\[gpu\]"):
        pixels_on_gpu(GpuArray(content(4, 4)))
    assert pixels_on_gpu(content(4, 4)) is None


def test_http_registers_the_same_handle(runtime: FakeRuntime) -> None:
    asked: list[HttpRequest] = []

    class Recording(HttpTransport):
        async def _exchange(self, request: HttpRequest, seconds: float) -> HttpResponse:
            asked.append(request)
            return HttpResponse(200, {}, memoryview(b""))

    region = CudaRegion(1000, device=1)
    asyncio.run(RegionRegistry(Recording(TritonSettings("127.0.0.1:1")), "cuda").register(region, 1.0))
    (request,) = asked
    assert request.path == f"/v2/cudasharedmemory/region/{region.name}/register"
    content = json.loads(b"".join(request.body))
    assert content["device_id"] == 1
    assert content["byte_size"] == 2 * 2**20, "CUDA shares whole blocks of two megabytes"
    assert base64.b64decode(content["raw_handle"]["b64"]) == region.registration()[0]
    region.end()
    assert not runtime.memory
