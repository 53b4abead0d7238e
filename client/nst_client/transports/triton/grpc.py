"""Triton's gRPC protocol, blocking and for asyncio."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from tritonclient.utils import np_to_triton_dtype

from nst_client.errors import ServiceError, Unavailable, Unreachable
from nst_client.transports.base import Request
from nst_client.transports.coroutines import in_thread, maybe_await
from nst_client.transports.triton.addresses import HTTPS_PORT, resolved
from nst_client.transports.triton.proxies import Proxy, proxy_for_grpc
from nst_client.transports.triton.settings import TritonSettings, system_ca
from nst_client.transports.triton.tensors import array_of
from nst_client.transports.triton.transport import InferenceOutput, SharedTensor, TritonTransport
from nst_core.contract import TOKEN_HEADER
from nst_core.errors import InputError

MAX_MESSAGE_BYTES = 2**31 - 1
"""Triton's limit. gRPC's default for answers is 4 MiB, which an image of 1.4 megapixels exceeds."""

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Reconnect to a restarted server within about a second. By default the pauses between attempts grow to two
    # minutes, in which every call fails at once.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Detect a vanished host 20 s after it stops acknowledging bytes. Idle connections are pinged no more often than
    # Triton allows: it closes a connection after three pings that are less than five minutes apart.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Send requests in turn to every connected address of a name or a list. gRPC's own health checks need the method
    # Watch, which Triton lacks; a draining server refuses requests instead.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # Resolve a name again when a connection ends, at most this often; the default is every 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
)

_process_with_grpc = 0
"""The first process to use gRPC, among this one and its parents by fork."""


class GrpcTransport(TritonTransport):
    """A `Transport` over gRPC."""

    scheme = "grpc"

    def __init__(self, settings: TritonSettings) -> None:
        super().__init__(settings)
        self._addresses: list[str] = []
        """The servers' addresses, once they are resolved."""

    def _find_proxy(self) -> Proxy | None:
        if self.settings.several:  # gRPC would send a proxy the list as if it were a name
            return None
        (server,) = self.settings.servers
        return proxy_for_grpc(server.host, server.port or HTTPS_PORT)

    def _make_client(self) -> Any:
        _check_fork()
        from nst_client.transports.grpc_library import grpc

        target, options = self.settings.host, list(CHANNEL_OPTIONS)
        if self.settings.several:  # all of them present a certificate for the first name
            options.append(("grpc.default_authority", target.partition(",")[0]))
            target = f"{'ipv6' if self._addresses[0].startswith('[') else 'ipv4'}:{','.join(self._addresses)}"
        if self.errors.proxy is None:
            options.append(("grpc.enable_http_proxy", 0))
        library = grpc.aio if self.settings.aio else grpc
        if not self.settings.tls:
            return library.insecure_channel(target, options=options)
        ca = self.settings.ca or system_ca()
        credentials = grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
        return library.secure_channel(target, credentials, options=options)

    async def _infer(self, request: Request, shared: Mapping[str, SharedTensor], seconds: float) -> InferenceOutput:
        from nst_client.transports.grpc_library import service_pb2
        from nst_client.transports.triton import grpc_messages

        message = service_pb2.ModelInferRequest(model_name=request.model)
        tensors = []
        for name, values in request.inputs.items():
            tensor = message.inputs.add(name=name, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
            if name in shared:
                _refer_to(tensor, shared[name])
            else:
                tensors.append(values)
        output = message.outputs.add(name=request.output)
        if request.output in shared:
            _refer_to(output, shared[request.output])
        data = await self._send("ModelInfer", grpc_messages.encoded(message, tensors), seconds)
        with self.errors.unexpected_answer(f"to the inference of {request.model}"):
            answer, contents = grpc_messages.decoded(data)
            for tensor, content in grpc_messages.outputs(answer, contents):
                if tensor.name == request.output:
                    shape = list(tensor.shape)
                    in_message = request.output not in shared
                    sent = array_of(content, tensor.datatype, shape) if in_message else None
                    return InferenceOutput(shape, tensor.datatype, sent)
        return InferenceOutput([], "", None)

    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        from google.protobuf.json_format import MessageToDict

        from nst_client.transports.grpc_library import service_pb2
        from nst_client.transports.triton import grpc_messages

        name, fields, wrapper = METHODS[method]
        message = getattr(service_pb2, f"{name}Request")(**dict(zip(fields, arguments, strict=False)))
        data = await self._send(name, message.SerializeToString(), seconds)
        with self.errors.unexpected_answer(f"to {name}"):
            answer = grpc_messages.message_of(getattr(service_pb2, f"{name}Response"), data)
            content = MessageToDict(answer, preserving_proto_field_name=True)
        return content.get(wrapper, []) if wrapper else content

    async def _send(self, name: str, message: bytes, seconds: float) -> bytes:
        """Return a server's answer. Try each of several servers up to twice, since other calls take turns too."""
        deadline = time.monotonic() + seconds
        if not self._addresses:
            self._addresses = await self._resolve()
        retries = 2 * len(self._addresses) - 1 if len(self._addresses) > 1 else 0
        for _ in range(retries):
            with suppress(Unreachable, Unavailable):
                return await self._send_once(name, message, deadline - time.monotonic())
        return await self._send_once(name, message, deadline - time.monotonic())

    async def _resolve(self) -> list[str]:
        hosts = self.settings.host.split(",")
        if self._find_proxy():  # which resolves the names behind it
            return hosts
        found = await in_thread(resolved, hosts, aio=self.settings.aio)
        if not found and self.settings.several:
            raise self.errors.unreachable()
        return found or hosts

    async def _send_once(self, name: str, message: bytes, seconds: float) -> bytes:
        """Send an encoded message and return the encoded answer."""
        metadata = [(f"triton-grpc-protocol-{TOKEN_HEADER}", self.settings.token)] if self.settings.token else []
        with self._translated_errors():
            call = self.client.unary_unary(f"/inference.GRPCInferenceService/{name}")
            answer: bytes = await maybe_await(call(message, metadata=metadata, timeout=max(seconds, 0.001)))
        return answer

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise gRPC's errors in the block as `ServiceError`."""
        from nst_client.transports.grpc_library import grpc

        try:
            yield
        except grpc.RpcError as error:
            message = error.details() or "nothing"
            raise self.errors.of_message(message) or self._of_status(message, str(error.code())) from error

    def _of_status(self, message: str, status: str) -> ServiceError:
        """Return the error for a gRPC status."""
        if "CERTIFICATE_VERIFY_FAILED" in message or "Hostname Verification Check failed" in message:
            return self.errors.untrusted(message.rpartition(": ")[2])
        if "WRONG_VERSION_NUMBER" in message:
            return self.errors.no_tls()
        if status.endswith("DEADLINE_EXCEEDED"):
            return self.errors.timed_out()
        # A server that stops cancels its requests; a caller's own cancellation is not an RpcError.
        if status.endswith(("UNAVAILABLE", "CANCELLED")):
            return self.errors.unreachable()
        return self.errors.rejected(message)


_REGION = ("name", "key", "byte_size")
_CUDA_REGION = ("name", "raw_handle", "device_id", "byte_size")

METHODS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "get_inference_statistics": ("ModelStatistics", ("name",), "model_stats"),
    "get_model_config": ("ModelConfig", ("name",), "config"),
    "get_system_shared_memory_status": ("SystemSharedMemoryStatus", (), ""),
    "register_system_shared_memory": ("SystemSharedMemoryRegister", _REGION, ""),
    "unregister_system_shared_memory": ("SystemSharedMemoryUnregister", ("name",), ""),
    "get_cuda_shared_memory_status": ("CudaSharedMemoryStatus", (), ""),
    "register_cuda_shared_memory": ("CudaSharedMemoryRegister", _CUDA_REGION, ""),
    "unregister_cuda_shared_memory": ("CudaSharedMemoryUnregister", ("name",), ""),
}
"""gRPC's methods, by the names of NVIDIA's client: gRPC's name, the fields of the request, and the field of the answer
to return."""


def _refer_to(tensor: Any, shared: SharedTensor) -> None:
    """Set the tensor's location in shared memory."""
    tensor.parameters["shared_memory_region"].string_param = shared.region
    tensor.parameters["shared_memory_byte_size"].int64_param = shared.size
    tensor.parameters["shared_memory_offset"].int64_param = shared.offset


def _check_fork() -> None:
    """Raise `InputError` in a process that was forked from one that used gRPC, whose threads it lacks."""
    global _process_with_grpc
    supported = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("1", "true", "yes", "y", "t")
    if _process_with_grpc not in (0, os.getpid()) and not supported:
        raise InputError(
            "gRPC does not work in a process that was forked after its parent had used gRPC; start processes with "
            "multiprocessing.get_context('spawn'), make the first call after the fork, or use http://host:8000"
        )
    _process_with_grpc = os.getpid()
