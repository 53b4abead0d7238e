"""Triton over gRPC, and over HTTP by NVIDIA's client library, blocking and for asyncio."""

from __future__ import annotations

import base64
import errno
import io
import ipaddress
import json
import os
import socket
import ssl
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nst_client import buffers, statistics
from nst_client.coroutines import finished, settled, worked
from nst_client.cuda_memory import CudaPixels, CudaRegion, not_shared
from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, Unreachable, Untrusted
from nst_client.shared_memory import UNKNOWN, Forgotten, NoRoom, Region, Regions, SystemRegion, Unseen
from nst_client.statistics import Statistics
from nst_client.transports import INPUT, OUTPUT, Array, ModelConfig, Request
from nst_core.errors import InputError

TOKEN = "nst-token"
"""The HTTP header that carries the token; over gRPC Triton wants its own prefix before it."""

LARGEST_MESSAGE = 2**31 - 1
"""Bytes; Triton's own limit. gRPC's default for answers is 4 MiB, which a picture of 1.4 megapixels exceeds."""

CHANNEL = (
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    # A server that comes back is found within a second or so. By default the pauses between attempts grow to two
    # minutes, in which every call fails at once.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A host that vanished without a word is noticed 20 s after bytes for it stay unacknowledged. Pings on idle wires
    # no oftener than Triton allows: from three within five minutes each it ends the connection.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Requests go in turn to every address that a name or a list has and that is connected. gRPC's own health checks
    # would need the method Watch, which Triton leaves out: a server that drains is told by its refusals.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # A name is looked up again when a connection ends, at most so often; by default every 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
)

AWAY = (
    *("has no available versions", "is not at ready state", "Server is stopping", "maximum queue size"),
    "is not healthy",
)
"""How a server says that it cannot answer now; the last of a model whose process has died, which nst-serve sees to."""

GATEWAY = ("502", "503", "504")
"""HTTP's statuses of a proxy whose server is away."""

REGION_SECONDS = 5.0
"""How long a server may take to register or forget a region."""


@dataclass(frozen=True)
class Settings:
    """How a server is reached, or several with a comma between their hosts; see `StyleClient`.

    `aio` is for asyncio.
    """

    host: str
    tls: bool = False
    timeout: float = 60.0
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    shared_memory: bool | None = None
    aio: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise InputError("the token has other characters than printable ASCII, or none: take it as it was issued")
        if self.ca is not None:
            _check_ca(self.ca)
        if self.shared_memory and self.several:
            raise InputError(f"shared memory is for one server, and {self.host} are several: leave shared_memory out")
        if self.shared_memory and not _is_this_host(self.host):
            raise InputError(f"shared memory reaches no other host, and {self.host} is one: leave shared_memory out")

    @property
    def several(self) -> bool:
        """Whether a list of servers was given; the addresses of one name are gRPC's to know."""
        return "," in self.host


@dataclass(frozen=True)
class Place:
    """Where a tensor lies instead of in the message: `size` bytes of a registered region."""

    region: str
    size: int
    offset: int = 0


@dataclass(frozen=True)
class Answer:
    """What a server says to an inference: the shape of the output, and its values if they lie in the message."""

    shape: list[int]
    values: Array | None


class Triton(ABC):
    """What the two protocols have in common; every call is awaited if it must be."""

    scheme: str
    takes_cuda = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = f"{self.scheme}{'s' if settings.tls else ''}://{settings.host}"
        optional = settings.shared_memory is None
        self.regions = self._regions(partial(SystemRegion, sparing=optional), "system", optional=optional)
        self.cuda_regions: dict[int, Regions] = {}
        """By the number of the GPU."""
        self.sharing = settings.shared_memory
        """Whether pictures go through shared memory; None until somebody has looked whether they can."""

    @cached_property
    def client(self) -> Any:
        """The connection; one for asyncio belongs to the loop in which it is made, so it is made by the first call."""
        return self._make_client()

    async def models(self, seconds: float) -> list[str]:
        """See `Transport`."""
        # The statistics name what is loaded; the repository's index belongs to model control, which nst-serve guards.
        loaded = await self._call("get_inference_statistics", seconds=seconds)
        if not loaded and self.settings.several:  # one that drains has unloaded its models; another is asked
            raise Unavailable(f"{self.address} cannot answer now: the server that was asked has no model")
        return sorted({model["name"] for model in loaded})

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """See `Transport`."""
        config = await self._call("get_model_config", model, seconds=seconds)
        parameters = {name: entry.get("string_value", "") for name, entry in config.get("parameters", {}).items()}
        return ModelConfig(parameters, int(config.get("max_batch_size", 0)))

    async def infer(self, request: Request, seconds: float) -> Array:
        """See `Transport`; a picture and what is painted of it go through shared memory if they can.

        A picture in a GPU's memory, `CudaPixels`, goes through CUDA's and so does its answer. Raises `InputError`
        where that cannot be.
        """
        deadline = time.monotonic() + seconds
        picture = request.inputs[INPUT]
        if isinstance(picture, CudaPixels):
            return await self._infer_shared(self._regions_of(picture), request, deadline)
        if request.output != OUTPUT or not await self._shares(picture.nbytes):
            return await self._infer_sent(request, deadline)
        try:
            return await self._infer_shared(self.regions, request, deadline)
        except (Unseen, NoRoom, Forgotten):
            if self.settings.shared_memory:
                raise
        answer = await self._infer_sent(request, deadline)
        self.sharing = False  # the server does answer, so it was the memory
        return answer

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """See `Transport`."""
        return statistics.from_triton(await self._call("get_inference_statistics", model, seconds=seconds))

    async def close(self) -> None:
        """See `Transport`."""
        for regions in (self.regions, *self.cuda_regions.values()):
            await regions.close()
        if "client" in self.__dict__:
            await settled(self.client.close())

    async def _shares(self, size: int) -> bool:
        """Whether a picture of so many bytes goes through shared memory."""
        if self.settings.shared_memory is not None:
            return self.settings.shared_memory
        if self.sharing is False or not self.regions.worthwhile(2 * size):
            return False
        if self.sharing is None:
            host = self.settings.host
            self.sharing = not self.settings.several and await worked(_is_this_host, host, aio=self.settings.aio)
        return self.sharing and self.regions.worthwhile(2 * size)  # other tasks have made some meanwhile

    def _regions(self, make: Callable[[int], Region], kind: str, *, optional: bool = False) -> Regions:
        transport = weakref.proxy(self)  # or only the garbage collector would end a client that nobody closes

        async def call(action: str, *arguments: Any, seconds: float) -> Any:
            return await transport._region(kind, action, *arguments, seconds=seconds)

        return Regions(make, call, self._cleaner(kind), aio=self.settings.aio, optional=optional)

    def _regions_of(self, picture: CudaPixels) -> Regions:
        """Those of the GPU that a picture lies on. Raises `InputError`."""
        device, settings = picture.device, self.settings
        if device not in self.cuda_regions:
            if settings.shared_memory is False or settings.several or not _is_this_host(settings.host):
                raise not_shared(self.address)
            self.cuda_regions[device] = self._regions(partial(CudaRegion, device=device), "cuda")
        return self.cuda_regions[device]

    async def _infer_sent(self, request: Request, deadline: float) -> Array:
        answer = await self._infer(request, {}, deadline - time.monotonic())
        if answer.values is None:
            raise Rejected(f"{self.address} answered without {request.output}: not a style model of contract 1")
        return buffers.copied(answer.values)

    async def _infer_shared(self, regions: Regions, request: Request, deadline: float) -> Array:
        try:
            return await self._infer_in_region(regions, request, deadline)
        except Forgotten:  # the server was started again since
            return await self._infer_in_region(regions, request, deadline)

    async def _infer_in_region(self, regions: Regions, request: Request, deadline: float) -> Array:
        """The picture at the beginning of a region, what is painted of it behind."""
        picture = request.inputs[INPUT]
        size = picture.nbytes
        async with regions.lease(2 * size, deadline - time.monotonic()) as region:
            region.write(picture)
            places = {INPUT: Place(region.name, size), request.output: Place(region.name, size, size)}
            answer = await self._infer(request, places, deadline - time.monotonic())
            if answer.shape != list(picture.shape):
                raise Rejected(
                    f"the model {request.model} answered {answer.shape} to {list(picture.shape)}: not a style model "
                    "of contract 1"
                )
            painted: Array = region.read(size, picture)
            return painted

    async def _region(self, kind: str, action: str, *arguments: Any, seconds: float) -> Any:
        """What `Regions` asks of a server: to `register` a region, to `unregister` one, or which are `listed`."""
        seconds = min(seconds, REGION_SECONDS)
        if action == "listed":
            said = await self._call(f"get_{kind}_shared_memory_status", seconds=seconds)
            # Over gRPC a mapping by name, over HTTP a list.
            return list(said.get("regions", {})) if isinstance(said, dict) else [region["name"] for region in said]
        if action == "register":
            (region,) = arguments
            arguments = (region.name, *region.registration())
        return await self._call(f"{action}_{kind}_shared_memory", *arguments, seconds=seconds)

    @abstractmethod
    async def _infer(self, request: Request, places: Mapping[str, Place], seconds: float) -> Answer:
        """Run a model; tensors that have places lie there and not in the messages."""

    @abstractmethod
    def _make_client(self) -> Any: ...

    @abstractmethod
    def _cleaner(self, kind: str) -> Callable[[list[str]], None]:
        """Has the server forget regions, by name, when `self` is gone: in any thread, without a loop, also at exit."""

    @abstractmethod
    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """The answer, as JSON has it, of what NVIDIA's client calls `method`; errors as ours."""

    @abstractmethod
    def _by_status(self, said: str, status: str) -> ServiceError:
        """What a server's words mean that are none of those which both protocols have."""

    @abstractmethod
    @contextmanager
    def _errors(self) -> Iterator[None]:
        """A library's errors as ours."""

    def _refused(self, said: str, status: str) -> ServiceError:
        """What a server's words mean."""
        if "is restricted, expecting header" in said:
            return Rejected(
                f"{self.address} asks for a token, and "
                f"{'none was given' if self.settings.token is None else 'the one that was given is wrong'}: "
                "give it with --token-file FILE or in NST_TOKEN"
            )
        if said.startswith(UNKNOWN):
            return Forgotten(f"{self.address} answered: {said}")
        if any(sign in said for sign in AWAY):
            return Unavailable(f"{self.address} cannot answer now: {said}")
        return self._by_status(said, status)

    def _rejected(self, said: str) -> Rejected:
        return Rejected(f"{self.address} answered: {said}")

    def _nobody(self) -> Unreachable:
        return Unreachable(
            f"no server answers at {self.address}; start one with nst-serve, or give its address with --url"
        )

    def _too_slow(self) -> TimedOut:
        return TimedOut(f"{self.address} did not answer within {self.settings.timeout:g} s; allow more with --timeout")

    def _no_tls(self) -> ServiceError:
        return ServiceError(f"{self.address} does not speak TLS: is it {self.scheme}://{self.settings.host}?")

    def _untrusted(self, why: str) -> Untrusted:
        return Untrusted(f"the certificate of {self.address} is not trusted ({why}): give its CA with --ca FILE")


class Grpc(Triton):
    """Triton's gRPC protocol."""

    scheme = "grpc"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._places: list[str] = []
        """Addresses of the servers, once they are looked up."""

    def _make_client(self) -> Any:
        # Or its core writes refused handshakes to stderr, beside the error that tells of them.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc  # type: ignore[import-untyped]

        target, options = self.settings.host, list(CHANNEL)
        if self.settings.several:  # all of them show a certificate of the first name
            options.append(("grpc.default_authority", target.partition(",")[0]))
            target = f"{'ipv6' if self._places[0].startswith('[') else 'ipv4'}:{','.join(self._places)}"
        library = grpc.aio if self.settings.aio else grpc
        if not self.settings.tls:
            return library.insecure_channel(target, options=options)
        ca = self.settings.ca or _system_ca()
        credentials = grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
        return library.secure_channel(target, credentials, options=options)

    def _cleaner(self, kind: str) -> Callable[[list[str]], None]:
        settings = replace(self.settings, shared_memory=False, aio=False)

        def clean(names: list[str]) -> None:
            other = Grpc(settings)
            try:
                for name in names:
                    with suppress(Rejected):
                        finished(other._region(kind, "unregister", name, seconds=REGION_SECONDS))
            finally:
                finished(other.close())

        return clean

    async def _infer(self, request: Request, places: Mapping[str, Place], seconds: float) -> Answer:
        from tritonclient.grpc import service_pb2

        from nst_client import wire

        message = service_pb2.ModelInferRequest(model_name=request.model)
        tensors = []
        for name, values in request.inputs.items():
            tensor = message.inputs.add(name=name, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
            if name in places:
                _put(tensor, places[name])
            else:
                tensors.append(values)
        output = message.outputs.add(name=request.output)
        if request.output in places:
            _put(output, places[request.output])
        data = await self._in_turn("ModelInfer", wire.encoded(message, tensors), seconds)
        try:
            answer, contents = wire.decoded(data)
            painted = None if request.output in places else wire.tensor_of(answer, contents, request.output)
        except ValueError as error:
            raise self._rejected(str(error)) from error
        shape = next((list(tensor.shape) for tensor in answer.outputs if tensor.name == request.output), [])
        return Answer(shape, painted)

    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        from google.protobuf.json_format import MessageToDict
        from tritonclient.grpc import service_pb2

        name, fields, wrapped = METHODS[method]
        message = getattr(service_pb2, f"{name}Request")(**dict(zip(fields, arguments, strict=False)))
        data = await self._in_turn(name, message.SerializeToString(), seconds)
        answer = getattr(service_pb2, f"{name}Response").FromString(data)
        said = MessageToDict(answer, preserving_proto_field_name=True)
        return said.get(wrapped, []) if wrapped else said

    async def _in_turn(self, name: str, message: bytes, seconds: float) -> bytes:
        """Of several servers, another one if one cannot answer: each twice, since other calls take turns too."""
        deadline = time.monotonic() + seconds
        if not self._places:
            hosts = self.settings.host.split(",")
            found = await worked(_places, hosts, aio=self.settings.aio)
            if not found and self.settings.several:
                raise self._nobody()
            self._places = found or hosts
        for _ in range(2 * len(self._places) - 1 if len(self._places) > 1 else 0):
            with suppress(Unreachable, Unavailable):
                return await self._ask(name, message, deadline - time.monotonic())
        return await self._ask(name, message, deadline - time.monotonic())

    async def _ask(self, name: str, message: bytes, seconds: float) -> bytes:
        """What a server answers to an encoded message, encoded as well."""
        metadata = [(f"triton-grpc-protocol-{TOKEN}", self.settings.token)] if self.settings.token else []
        with self._errors():
            call = self.client.unary_unary(f"/inference.GRPCInferenceService/{name}")
            answer: bytes = await settled(call(message, metadata=metadata, timeout=max(seconds, 0.001)))
        return answer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise self._refused(error.details() or "nothing", str(error.code())) from error

    def _by_status(self, said: str, status: str) -> ServiceError:
        if "CERTIFICATE_VERIFY_FAILED" in said or "Hostname Verification Check failed" in said:
            return self._untrusted(said.rpartition(": ")[2])
        if "WRONG_VERSION_NUMBER" in said:
            return self._no_tls()
        if status.endswith("DEADLINE_EXCEEDED"):
            return self._too_slow()
        # A server that ends cancels what it still has; a caller's own cancellation never comes this way.
        return self._nobody() if status.endswith(("UNAVAILABLE", "CANCELLED")) else self._rejected(said)


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
"""What NVIDIA's client calls gRPC's methods, in whose words HTTP is asked: gRPC's name, the fields of its request, and
the one field of its answer that matters."""


def _put(tensor: Any, place: Place) -> None:
    """Tell of a tensor in a gRPC message where it lies."""
    tensor.parameters["shared_memory_region"].string_param = place.region
    tensor.parameters["shared_memory_byte_size"].int64_param = place.size
    tensor.parameters["shared_memory_offset"].int64_param = place.offset


class Http(Triton):
    """Triton's HTTP protocol (KServe v2) with its binary extension."""

    scheme = "http"

    @property
    def _library(self) -> Any:
        import tritonclient.http as triton

        return triton

    def _make_client(self) -> Any:
        settings = self.settings
        if settings.aio:
            return _aio_http()(
                settings.host,
                ssl=settings.tls,
                ssl_context=self._context() if settings.tls else True,
                conn_timeout=None,
            )
        return self._library.InferenceServerClient(
            settings.host,
            connection_timeout=settings.timeout,
            network_timeout=settings.timeout,
            ssl=settings.tls,
            ssl_context_factory=self._context,
        )

    def _cleaner(self, kind: str) -> Callable[[list[str]], None]:
        settings = replace(self.settings, shared_memory=False, aio=False)

        def clean(names: list[str]) -> None:
            other = Http(settings)
            for name in names:
                with suppress(Rejected):
                    finished(other._region(kind, "unregister", name, seconds=REGION_SECONDS))

        return clean

    async def _region(self, kind: str, action: str, *arguments: Any, seconds: float) -> Any:
        # Not by NVIDIA's blocking client: gevent lets nobody but the thread that has used a socket close what is
        # shared, and cannot be started when the interpreter ends.
        if action == "unregister" and not self.settings.aio:
            (name,) = arguments
            return self._unregister(kind, name, min(seconds, REGION_SECONDS))
        return await super()._region(kind, action, *arguments, seconds=seconds)

    def _unregister(self, kind: str, name: str, seconds: float) -> None:
        host, headers = self.settings.host, {TOKEN: self.settings.token or ""}
        connection = (
            HTTPSConnection(host, timeout=seconds, context=ssl.create_default_context(cafile=self.settings.ca))
            if self.settings.tls
            else HTTPConnection(host, timeout=seconds)
        )
        try:
            with closing(connection):
                connection.request("POST", f"/v2/{kind}sharedmemory/region/{name}/unregister", headers=headers)
                answer = connection.getresponse()
                said = answer.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise self._nobody() from error
        if answer.status != HTTPStatus.OK:
            raise self._refused(said, str(answer.status))

    async def _infer(self, request: Request, places: Mapping[str, Place], seconds: float) -> Answer:
        inputs = []
        for name, values in request.inputs.items():
            tensor = self._library.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
            if name in places:
                tensor.set_shared_memory(places[name].region, places[name].size, places[name].offset)
            else:
                tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        output = self._library.InferRequestedOutput(request.output)
        if place := places.get(request.output):
            output.set_shared_memory(place.region, place.size, offset=place.offset)
        answer = await self._call("infer", request.model, inputs, outputs=[output], seconds=seconds)
        told = answer.get_output(request.output)
        return Answer(told["shape"] if told else [], None if place else answer.as_numpy(request.output))

    async def _call(self, method: str, *arguments: Any, seconds: float, **named: Any) -> Any:
        if method == "register_cuda_shared_memory":
            name, handle, *others = arguments
            arguments = (name, base64.b64encode(handle).decode(), *others)
        headers = {TOKEN: self.settings.token} if self.settings.token else {}
        with self._errors():
            async with self._within(seconds):
                answer = await settled(getattr(self.client, method)(*arguments, headers=headers, **named))
        return answer["model_stats"] if method == "get_inference_statistics" else answer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            raise self._refused(error.message() or "nothing", error.status() or "") from error
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
        # Bytes that are no HTTP, or no JSON; an answer that ends too early is a connection that was cut.
        if isinstance(error, ValueError) or any(sign in str(error) for sign in ("Expected HTTP/", "Bad status line")):
            return ServiceError(f"{self.address} does not speak Triton's HTTP: is it the gRPC port?")
        return self._nobody()

    def _by_status(self, said: str, status: str) -> ServiceError:
        if status in GATEWAY:
            return Unavailable(f"{self.address} cannot answer now: HTTP's status {status}")
        return self._rejected(said)

    @asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[None]:
        """`TimeoutError` after so many seconds; the library's own limits are for a socket's next bytes only."""
        if self.settings.aio:
            import asyncio

            async with asyncio.timeout(max(seconds, 0.001)):
                yield
        else:
            import gevent

            with gevent.Timeout(max(seconds, 0.001), TimeoutError):
                yield

    def _context(self, cafile: str | None = None) -> ssl.SSLContext:
        """Trust in the CA that was given, else in the system's (`cafile` is the library's own idea of them)."""
        import gevent.ssl

        make = ssl.create_default_context if self.settings.aio else gevent.ssl.create_default_context
        context: ssl.SSLContext = make(cafile=self.settings.ca or _system_ca() or cafile)
        return context


def _aio_http() -> Any:
    """NVIDIA's HTTP client for asyncio, whose bodies go as streams."""
    import tritonclient.http.aio as triton

    class Client(triton.InferenceServerClient):  # type: ignore[misc]
        async def _post(self, request_uri: str, request_body: Any, *others: Any, **named: Any) -> Any:
            # aiohttp warns that bytes of more than 1 MiB may hold up the loop.
            body = io.BytesIO(request_body) if isinstance(request_body, bytes) else request_body
            return await super()._post(request_uri, body, *others, **named)

    return Client


def _connection_errors(aio: bool) -> tuple[type[Exception], ...]:
    """What NVIDIA's HTTP clients let through of a connection that fails, or of an answer that is none."""
    common = (OSError, ValueError, HTTPException)
    if not aio:
        return common
    import aiohttp

    return (*common, aiohttp.ClientError)


def _check_ca(ca: Path) -> None:
    try:
        ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise InputError(f"{ca}: no certificates in PEM form") from error
    except OSError as error:
        raise InputError(f"{ca}: {error.strerror}") from error


def _system_ca() -> Path | None:
    """The file of the CAs that this system trusts; None where there is none and the library's own have to do."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file) if file else None


def _places(hosts: list[str]) -> list[str]:
    """The addresses, with ports, that these hosts have now, of one family as gRPC wants them.

    It looks up one name only by itself.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        found: list[Any] = []
        for host in hosts:
            with suppress(OSError, ValueError):  # of a name that is not known now; the other servers answer
                parts = urlsplit(f"//{host}")
                found += socket.getaddrinfo(parts.hostname, parts.port, family, socket.SOCK_STREAM)
        if found:
            places = [(address[0], address[1]) for *_, address in found]
            return [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip, port in places]
    return []


def _is_this_host(host: str) -> bool:
    """Whether all addresses of a host are this one's: only those can be listened on."""
    name = urlsplit(f"//{host}").hostname
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(
        ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback or _can_bind(family, address)
        for family, *_, address in found
    )


def _can_bind(family: int, address: tuple[Any, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.bind(address)
    except OSError:
        return False
    return True
