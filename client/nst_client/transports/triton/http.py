"""Triton's HTTP protocol (KServe v2) with its binary extension, blocking and for asyncio."""

from __future__ import annotations

import base64
import errno
import json
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.client import BadStatusLine, HTTPException, LineTooLong, RemoteDisconnected, UnknownProtocol
from typing import Any
from urllib.parse import quote

import numpy as np
from tritonclient.utils import np_to_triton_dtype

from nst_client.errors import ServiceError, Unavailable
from nst_client.transports.base import Array, Request
from nst_client.transports.coroutines import maybe_await
from nst_client.transports.triton import grpc_messages as wire
from nst_client.transports.triton.http_connections import (
    AsyncConnections,
    BlockingConnections,
    Connections,
    HttpRequest,
    HttpResponse,
    Origin,
)
from nst_client.transports.triton.proxies import Proxy, proxy_for_http
from nst_client.transports.triton.transport import (
    InferenceOutput,
    SharedTensor,
    TritonSettings,
    TritonTransport,
    system_ca,
)
from nst_core.contract import TOKEN_HEADER

HEADER_LENGTH = "Inference-Header-Content-Length"
"""How many bytes of a body are its JSON; the tensors come behind."""

GATEWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
"""Statuses of a proxy whose server is away."""


class HttpTransport(TritonTransport):
    """A `Transport` by HTTP."""

    scheme = "http"

    def __init__(self, settings: TritonSettings) -> None:
        super().__init__(settings)
        self._base = quote(settings.path.rstrip("/"), safe="/%")

    def _proxy(self) -> Proxy | None:
        return proxy_for_http("https" if self.settings.tls else "http", *self._place())

    def _place(self) -> tuple[str, int]:
        (server,) = self.settings.servers
        return server.host, server.port or (443 if self.settings.tls else 80)

    def _make_client(self) -> Connections:
        settings = self.settings
        context = ssl.create_default_context(cafile=settings.ca or system_ca()) if settings.tls else None
        target = Origin(*self._place(), context, self.proxy)
        return AsyncConnections(target) if settings.aio else BlockingConnections(target)

    def _abandon_client(self, client: AsyncConnections) -> None:
        client.abandon()

    async def _infer(self, request: Request, places: Mapping[str, SharedTensor], seconds: float) -> InferenceOutput:
        tensors = [values for name, values in request.inputs.items() if name not in places]
        header = json.dumps(
            {
                "inputs": [_described(name, values, places.get(name)) for name, values in request.inputs.items()],
                "outputs": [{"name": request.output, "parameters": _placed(places.get(request.output))}],
            }
        ).encode()
        body: list[bytes | memoryview] = [header, *(wire.bytes_of(values) for values in tensors)]
        headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        path = f"/v2/models/{quote(request.model, safe='')}/infer"
        answer = await self._exchanged(HttpRequest("POST", path, headers, body), seconds)
        with self._understood(f"to the inference of {request.model}"):
            length = int(answer.headers.get(HEADER_LENGTH.lower(), len(answer.body)))
            if not 0 <= length <= len(answer.body):
                raise ValueError(f"its header has {length} bytes, and all of it {len(answer.body)}")
            told = self._json(answer.body[:length])
            return _inferred(told, answer.body[length:], request.output, in_message=request.output not in places)

    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        answer = await self._exchanged(METHODS[method](*arguments), seconds)
        if not method.startswith("get_"):
            return None
        with self._understood("to a question about it"):
            said = self._json(answer.body)
            return said["model_stats"] if method == "get_inference_statistics" else said

    async def _exchanged(self, request: HttpRequest, seconds: float) -> HttpResponse:
        """The answer to a request, which is a good one. Raises children of `ServiceError`."""
        headers = {"Accept-Encoding": "identity", **request.headers}
        if self.settings.token:
            headers[TOKEN_HEADER] = self.settings.token
        connections = self.client
        with self._errors():
            path = self._base + request.path
            sent = HttpRequest(request.method, path, headers, request.body)
            answer: HttpResponse = await maybe_await(connections.exchange(sent, seconds))
        if answer.status != HTTPStatus.OK:
            raise self._refused(_reason(answer), str(answer.status))
        return answer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise self._too_slow() from error
        except _connection_errors(self.settings.aio) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ServiceError:
        """What went wrong with the connection; aiohttp's errors have the socket's inside."""
        error = getattr(error, "certificate_error", getattr(error, "os_error", error))
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._untrusted(error.verify_message)
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return self._no_tls()
        if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
            return self._too_slow()
        if isinstance(error, RemoteDisconnected):
            return self._nobody()
        if status := _proxy_status(error, aio=self.settings.aio):
            return self._by_status("", status)
        # Bytes that are no HTTP; an answer that ends too early is a connection that was cut.
        is_odd = isinstance(error, (BadStatusLine, LineTooLong, UnknownProtocol, ValueError))
        if is_odd or any(sign in str(error) for sign in ("Expected HTTP/", "Bad status line")):
            return self._speaks_otherwise()
        return self._nobody()

    def _json(self, body: memoryview) -> Any:
        try:
            return json.loads(bytes(body))
        except ValueError as error:  # such as a proxy's page
            raise self._speaks_otherwise() from error

    def _speaks_otherwise(self) -> ServiceError:
        return ServiceError(f"{self.address} does not speak Triton's HTTP{self.way}: is it the gRPC port?")

    def _by_status(self, said: str, status: str) -> ServiceError:
        if status == str(int(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED)):
            return ServiceError(
                f"{self.address} cannot be reached{self.way}: the proxy wants a user and a password (status 407)"
            )
        if int(status) in GATEWAY:
            return Unavailable(f"{self.address} cannot answer now{self.way}: HTTP's status {status}")
        return self._rejected(said or f"HTTP's status {status}{self.way} and no reason")


def _described(name: str, values: Array, place: SharedTensor | None) -> dict[str, Any]:
    """An input, as the JSON header has it."""
    parameters = _placed(place) if place else {"binary_data_size": values.nbytes}
    return {
        "name": name,
        "shape": list(values.shape),
        "datatype": np_to_triton_dtype(values.dtype),
        "parameters": parameters,
    }


def _placed(place: SharedTensor | None) -> dict[str, Any]:
    """Where an output lies: in the body, or in shared memory."""
    if place is None:
        return {"binary_data": True}
    return {
        "shared_memory_region": place.region,
        "shared_memory_byte_size": place.size,
        "shared_memory_offset": place.offset,
    }


def _inferred(told: Any, tensors: memoryview, output: str, *, in_message: bool) -> InferenceOutput:
    """An output of an inference, of the JSON and what comes behind it. Raises what a JSON of another shape leads to."""
    start = 0
    for tensor in told["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if tensor["name"] != output:
            start += size or 0
            continue
        shape = [int(side) for side in tensor["shape"]]
        if not in_message:
            return InferenceOutput(shape, tensor["datatype"], None)
        if size is None:
            values = np.array(tensor["data"], wire.dtype_of(tensor["datatype"])).reshape(shape)
        else:
            values = wire.array_of(tensors[start : start + size], tensor["datatype"], shape)
        return InferenceOutput(shape, tensor["datatype"], values)
    return InferenceOutput([], "", None)


def _reason(answer: HttpResponse) -> str:
    """The server's words for an error, or nothing if they are not Triton's."""
    try:
        said = json.loads(bytes(answer.body[:LONGEST_REASON]))["error"]
    except (ValueError, LookupError, TypeError):
        return ""
    return said if isinstance(said, str) else ""


LONGEST_REASON = 2**16
"""Bytes."""


def _proxy_status(error: Exception, *, aio: bool) -> str:
    """The status with which a proxy refuses a tunnel; empty for any other error."""
    if aio:
        import aiohttp

        return str(error.status) if isinstance(error, aiohttp.ClientHttpProxyError) else ""
    refused = re.match(r"Tunnel connection failed: (\d+)", str(error))  # http.client has no more than these words
    return refused[1] if refused else ""


def _connection_errors(aio: bool) -> tuple[type[Exception], ...]:
    """What the libraries let through of a connection that fails, or of an answer that is none."""
    common = (OSError, ValueError, HTTPException)
    if not aio:
        return common
    import aiohttp

    return (*common, aiohttp.ClientError)


def _get(path: str) -> HttpRequest:
    return HttpRequest("GET", path, {})


def _post(path: str, content: Mapping[str, Any]) -> HttpRequest:
    return HttpRequest("POST", path, {"Content-Type": "application/json"}, [json.dumps(content).encode()])


def _statistics(model: str = "") -> HttpRequest:
    return _get(f"/v2/models/{quote(model, safe='')}/stats" if model else "/v2/models/stats")


def _register_system(name: str, key: str, size: int) -> HttpRequest:
    return _post(f"/v2/systemsharedmemory/region/{name}/register", {"key": key, "offset": 0, "byte_size": size})


def _register_cuda(name: str, handle: bytes, device: int, size: int) -> HttpRequest:
    raw = {"b64": base64.b64encode(handle).decode()}
    content = {"raw_handle": raw, "device_id": device, "byte_size": size}
    return _post(f"/v2/cudasharedmemory/region/{name}/register", content)


def _unregister(kind: str, name: str) -> HttpRequest:
    return HttpRequest("POST", f"/v2/{kind}sharedmemory/region/{name}/unregister", {})


METHODS: Mapping[str, Callable[..., HttpRequest]] = {
    "get_inference_statistics": _statistics,
    "get_model_config": lambda model: _get(f"/v2/models/{quote(model, safe='')}/config"),
    "get_system_shared_memory_status": lambda: _get("/v2/systemsharedmemory/status"),
    "register_system_shared_memory": _register_system,
    "unregister_system_shared_memory": partial(_unregister, "system"),
    "get_cuda_shared_memory_status": lambda: _get("/v2/cudasharedmemory/status"),
    "register_cuda_shared_memory": _register_cuda,
    "unregister_cuda_shared_memory": partial(_unregister, "cuda"),
}
"""The requests, by the names of what `TritonTransport` asks."""
