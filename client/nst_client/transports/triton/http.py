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
from nst_client.transports.triton.http_connections import (
    AsyncConnections,
    BlockingConnections,
    Connections,
    HttpRequest,
    HttpResponse,
    Origin,
)
from nst_client.transports.triton.proxies import Proxy, proxy_for_http
from nst_client.transports.triton.settings import TritonSettings, system_ca
from nst_client.transports.triton.tensors import array_of, bytes_of, dtype_of
from nst_client.transports.triton.transport import (
    InferenceOutput,
    SharedTensor,
    TritonTransport,
)
from nst_core.contract import TOKEN_HEADER

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that gives the length of the JSON at the start of a body; the tensors follow."""

GATEWAY_STATUSES = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
"""Statuses from a proxy whose server does not answer."""

MAX_ERROR_BYTES = 2**16
"""Maximum bytes of an answer that are read as an error message."""


class HttpTransport(TritonTransport):
    """A `Transport` over HTTP."""

    scheme = "http"

    def __init__(self, settings: TritonSettings) -> None:
        super().__init__(settings)
        self._base = quote(settings.path.rstrip("/"), safe="/%")

    def _find_proxy(self) -> Proxy | None:
        return proxy_for_http("https" if self.settings.tls else "http", *self._host_and_port())

    def _host_and_port(self) -> tuple[str, int]:
        (server,) = self.settings.servers
        return server.host, server.port or (443 if self.settings.tls else 80)

    def _make_client(self) -> Connections:
        settings = self.settings
        context = ssl.create_default_context(cafile=settings.ca or system_ca()) if settings.tls else None
        origin = Origin(*self._host_and_port(), context, self.errors.proxy)
        return AsyncConnections(origin) if settings.aio else BlockingConnections(origin)

    def _abandon_client(self, client: AsyncConnections) -> None:
        client.abandon()

    async def _infer(self, request: Request, shared: Mapping[str, SharedTensor], seconds: float) -> InferenceOutput:
        tensors = [values for name, values in request.inputs.items() if name not in shared]
        header = json.dumps(
            {
                "inputs": [_input_entry(name, values, shared.get(name)) for name, values in request.inputs.items()],
                "outputs": [{"name": request.output, "parameters": _tensor_parameters(shared.get(request.output))}],
            }
        ).encode()
        body: list[bytes | memoryview] = [header, *(bytes_of(values) for values in tensors)]
        headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        path = f"/v2/models/{quote(request.model, safe='')}/infer"
        answer = await self._exchange(HttpRequest("POST", path, headers, body), seconds)
        with self.errors.unexpected_answer(f"to the inference of {request.model}"):
            length = int(answer.headers.get(HEADER_LENGTH.lower(), len(answer.body)))
            if not 0 <= length <= len(answer.body):
                raise ValueError(f"its header has {length} bytes, but the whole body {len(answer.body)}")
            content = self._json(answer.body[:length])
            return _output_of(content, answer.body[length:], request.output, in_message=request.output not in shared)

    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        answer = await self._exchange(METHODS[method](*arguments), seconds)
        if not method.startswith("get_"):
            return None
        with self.errors.unexpected_answer("to a query"):
            content = self._json(answer.body)
            return content["model_stats"] if method == "get_inference_statistics" else content

    async def _exchange(self, request: HttpRequest, seconds: float) -> HttpResponse:
        """Send a request and return an answer with status 200. Raises `ServiceError`."""
        headers = {"Accept-Encoding": "identity", **request.headers}
        if self.settings.token:
            headers[TOKEN_HEADER] = self.settings.token
        connections = self.client
        with self._translated_errors():
            path = self._base + request.path
            sent = HttpRequest(request.method, path, headers, request.body)
            answer: HttpResponse = await maybe_await(connections.exchange(sent, seconds))
        if answer.status != HTTPStatus.OK:
            message = _error_message(answer)
            raise self.errors.of_message(message) or self._of_status(message, answer.status)
        return answer

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise the libraries' errors in the block as `ServiceError`."""
        try:
            yield
        except TimeoutError as error:
            raise self.errors.timed_out() from error
        except _connection_errors(self.settings.aio) as error:
            raise self._of_connection(error) from error

    def _of_connection(self, error: Exception) -> ServiceError:
        """Return the error for a failed connection; aiohttp's errors contain the socket's."""
        error = getattr(error, "certificate_error", getattr(error, "os_error", error))
        if isinstance(error, ssl.SSLCertVerificationError):
            return self.errors.untrusted(error.verify_message)
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return self.errors.no_tls()
        if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
            return self.errors.timed_out()
        if isinstance(error, RemoteDisconnected):
            return self.errors.unreachable()
        if status := _proxy_status(error, aio=self.settings.aio):
            return self._of_status("", status)
        # Bytes that are not HTTP. An answer that ends too early is a broken connection, below.
        not_http = isinstance(error, (BadStatusLine, LineTooLong, UnknownProtocol, ValueError))
        if not_http or any(part in str(error) for part in ("Expected HTTP/", "Bad status line")):
            return self._not_triton()
        return self.errors.unreachable()

    def _json(self, body: memoryview) -> Any:
        try:
            return json.loads(bytes(body))
        except ValueError as error:  # such as a proxy's page
            raise self._not_triton() from error

    def _not_triton(self) -> ServiceError:
        return ServiceError(
            f"{self.address} does not answer in Triton's HTTP protocol{self.errors.through_proxy}; "
            "give Triton's HTTP port, by default 8000"
        )

    def _of_status(self, message: str, status: int) -> ServiceError:
        """Return the error for an HTTP status."""
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return ServiceError(
                f"cannot reach {self.address}{self.errors.through_proxy}, which asks for a user and a password "
                "(status 407); write them into its URL, http://user:password@host:port"
            )
        if status in GATEWAY_STATUSES:
            return Unavailable(f"{self.address} cannot answer now{self.errors.through_proxy}: HTTP status {status}")
        return self.errors.rejected(message or f"HTTP status {status}{self.errors.through_proxy} without a reason")


def _input_entry(name: str, values: Array, shared: SharedTensor | None) -> dict[str, Any]:
    """Return an input's entry in the JSON header."""
    parameters = _tensor_parameters(shared) if shared else {"binary_data_size": values.nbytes}
    return {
        "name": name,
        "shape": list(values.shape),
        "datatype": np_to_triton_dtype(values.dtype),
        "parameters": parameters,
    }


def _tensor_parameters(shared: SharedTensor | None) -> dict[str, Any]:
    """Return the parameters that locate a tensor in the body or in shared memory."""
    if shared is None:
        return {"binary_data": True}
    return {
        "shared_memory_region": shared.region,
        "shared_memory_byte_size": shared.size,
        "shared_memory_offset": shared.offset,
    }


def _output_of(content: Any, tensors: memoryview, output: str, *, in_message: bool) -> InferenceOutput:
    """Read an output from the JSON and the tensors after it. Raises various errors for JSON of another shape."""
    start = 0
    for tensor in content["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if tensor["name"] != output:
            start += size or 0
            continue
        shape = [int(side) for side in tensor["shape"]]
        if not in_message:
            return InferenceOutput(shape, tensor["datatype"], None)
        if size is None:
            values = np.array(tensor["data"], dtype_of(tensor["datatype"])).reshape(shape)
        else:
            values = array_of(tensors[start : start + size], tensor["datatype"], shape)
        return InferenceOutput(shape, tensor["datatype"], values)
    return InferenceOutput([], "", None)


def _error_message(answer: HttpResponse) -> str:
    """Return the server's error message, or an empty text if the answer is not Triton's."""
    try:
        message = json.loads(bytes(answer.body[:MAX_ERROR_BYTES]))["error"]
    except (ValueError, LookupError, TypeError):
        return ""
    return message if isinstance(message, str) else ""


def _proxy_status(error: Exception, *, aio: bool) -> int | None:
    """Return the HTTP status with which a proxy refuses a tunnel; None for any other error."""
    if aio:
        import aiohttp

        return error.status if isinstance(error, aiohttp.ClientHttpProxyError) else None
    refused = re.match(r"Tunnel connection failed: (\d+)", str(error))  # http.client gives only this message
    return int(refused[1]) if refused else None


def _connection_errors(aio: bool) -> tuple[type[Exception], ...]:
    """Return the libraries' errors for a failed connection or an answer that is not HTTP."""
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
"""The protocol's requests, by the names of NVIDIA's client."""
