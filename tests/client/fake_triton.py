"""Servers that speak as Triton does, by gRPC and by HTTP, and invert colours, and a CUDA runtime of main memory.

`python fake_triton.py grpc` or `http` prints its URL and serves until its standard input ends.
"""

import ctypes
import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One model, `negative`. `regions` are those that are registered, as writable arrays by name.

    `refusals` are errors that it gives, by method, instead of an answer; `calls` are the methods that were called.
    """

    def __init__(self, **parameters: str) -> None:
        self.parameters = {"styles": "negative", **parameters}
        self.regions: dict[str, np.ndarray] = {}
        self.cuda_regions: dict[str, np.ndarray] = {}
        self.refusals: dict[str, tuple[grpc.StatusCode, str]] = {}
        self.calls: list[str] = []
        self.sent: list[int] = []
        """Bytes of pixels in the messages of each inference, in and out."""
        self.url = ""

    def _begin(self, method: str, context: grpc.ServicerContext) -> None:
        self.calls.append(method)
        if method in self.refusals:
            context.abort(*self.refusals[method])

    def ModelStatistics(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("ModelStatistics", context)
        return service_pb2.ModelStatisticsResponse(model_stats=[service_pb2.ModelStatistics(name="negative")])

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("ModelConfig", context)
        answer = service_pb2.ModelConfigResponse()
        for name, value in self.parameters.items():
            answer.config.parameters[name].string_value = value
        return answer

    def SystemSharedMemoryStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("SystemSharedMemoryStatus", context)
        answer = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.regions:
            answer.regions[name].name = name
        return answer

    def SystemSharedMemoryRegister(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("SystemSharedMemoryRegister", context)
        try:
            file = os.open(Path("/dev/shm") / request.key.lstrip("/"), os.O_RDWR)
        except OSError:
            context.abort(grpc.StatusCode.INTERNAL, f"Unable to open shared memory region: '{request.key}'")
        self.regions[request.name] = np.frombuffer(mmap.mmap(file, request.byte_size), np.uint8)
        os.close(file)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("SystemSharedMemoryUnregister", context)
        self.regions.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def CudaSharedMemoryStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("CudaSharedMemoryStatus", context)
        return service_pb2.CudaSharedMemoryStatusResponse()

    def CudaSharedMemoryRegister(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("CudaSharedMemoryRegister", context)
        memory = (ctypes.c_uint8 * request.byte_size).from_address(int.from_bytes(request.raw_handle, "little"))
        self.cuda_regions[request.name] = np.ctypeslib.as_array(memory)
        return service_pb2.CudaSharedMemoryRegisterResponse()

    def CudaSharedMemoryUnregister(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("CudaSharedMemoryUnregister", context)
        self.cuda_regions.pop(request.name, None)
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._begin("ModelInfer", context)
        (given,), (wanted,) = request.inputs, request.outputs
        sent = sum(map(len, request.raw_input_contents))
        pixels = self._at(given, context) if not sent else np.frombuffer(request.raw_input_contents[0], np.uint8)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name=wanted.name, datatype="UINT8", shape=given.shape)
        if wanted.parameters:
            self._at(wanted, context)[:] = 255 - pixels
            answer.raw_output_contents.append(b"")
        else:
            answer.raw_output_contents.append((255 - pixels).tobytes())
        self.sent.append(sent + len(answer.raw_output_contents[0]))
        return answer

    def _at(self, tensor: Any, context: grpc.ServicerContext) -> np.ndarray:
        name = tensor.parameters["shared_memory_region"].string_param
        size = tensor.parameters["shared_memory_byte_size"].int64_param
        offset = tensor.parameters["shared_memory_offset"].int64_param
        known = self.regions | self.cuda_regions
        if name not in known:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unable to find shared memory region: '{name}'")
        return known[name][offset : offset + size]


@contextmanager
def serving(triton: FakeTriton) -> Iterator[FakeTriton]:
    """It answers at `triton.url`."""
    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    triton.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield triton
    finally:
        server.stop(None).wait()


class HttpHandler(BaseHTTPRequestHandler):
    """Triton's HTTP for one model, `negative`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = self.path.partition("/v2/")[2]  # a proxy sends whole URLs
        answers = {
            "models/stats": {"model_stats": [{"name": "negative"}]},
            "models/negative/config": {"parameters": {"styles": {"string_value": "negative"}}},
            "systemsharedmemory/status": [],
        }
        self.answer(json.dumps(answers[path]).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/infer"):
            self.answer(b'{"error":"Unable to open shared memory region"}', status=400)
            return
        length = int(self.headers["Inference-Header-Content-Length"])
        (image,) = json.loads(body[:length])["inputs"]
        stylized = bytes(255 - np.frombuffer(body[length:], np.uint8))
        output = {"name": "stylized", "datatype": "UINT8", "shape": image["shape"]}
        header = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": len(stylized)}}]}).encode()
        self.answer(header + stylized, {"Inference-Header-Content-Length": str(len(header))})

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def serving_http() -> Iterator[str]:
    """The URL of a server with `HttpHandler`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), HttpHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving_elsewhere(scheme: str) -> Iterator[str]:
    """The URL of a server in a process of its own: this one may be forked."""
    command = [sys.executable, __file__, scheme]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


class FakeRuntime:
    """The part of `cuda.bindings.runtime` that the client uses; a GPU's memory is this process's."""

    CUDA_IPC_HANDLE_SIZE = 64
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDeviceToDevice=3)  # noqa: N815

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.device = 0
        self.synchronized: list[int] = []
        self.shares = True

    def cudaGetDevice(self) -> tuple[int, int]:  # noqa: N802
        return 0, self.device

    def cudaSetDevice(self, device: int) -> tuple[int]:  # noqa: N802
        self.device = device
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        self.memory.pop(pointer)
        return (0,)

    def cudaIpcGetMemHandle(self, pointer: int) -> tuple[int, Any]:  # noqa: N802
        if not self.shares:
            return 801, None
        handle = ctypes.create_string_buffer(pointer.to_bytes(8, "little"), self.CUDA_IPC_HANDLE_SIZE)
        return 0, SimpleNamespace(getPtr=lambda: ctypes.addressof(handle))

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaPointerGetAttributes(self, pointer: int) -> tuple[int, Any]:  # noqa: N802
        return 0, SimpleNamespace(device=1)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        return 0, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        self.synchronized.append(stream)
        return (0,)

    def cudaDeviceSynchronize(self) -> tuple[int]:  # noqa: N802
        self.synchronized.append(-1)
        return (0,)

    def cudaGetErrorName(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"cudaErrorNotSupported"

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"operation not supported"


class GpuArray:
    """An array that says it lies on a GPU, with `__cuda_array_interface__` or DLPack's methods."""

    def __init__(self, values: np.ndarray, stream: int | None = None) -> None:
        self.values, self.shape = values, values.shape
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": values.shape,
            "typestr": values.dtype.str,
            "strides": None if values.flags.c_contiguous else values.strides,
            "data": (values.ctypes.data, False),
            "stream": stream,
        }


class DlpackArray:
    """As `GpuArray`, by DLPack alone. The tensor in a capsule does not say where it lies: the device does."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1

    def __dlpack__(self, stream: int) -> object:
        return self.values.__dlpack__()


def read(array: Any) -> np.ndarray:
    """What lies at an answer's pointer."""
    interface = array.__cuda_array_interface__
    shape = interface["shape"]
    memory = (ctypes.c_uint8 * int(np.prod(shape))).from_address(interface["data"][0])
    return np.ctypeslib.as_array(memory).reshape(shape).copy()


if __name__ == "__main__":
    if sys.argv[1] == "grpc":
        with serving(FakeTriton()) as running:
            print(running.url, flush=True)
            sys.stdin.read()
    else:
        with serving_http() as address:
            print(address, flush=True)
            sys.stdin.read()
