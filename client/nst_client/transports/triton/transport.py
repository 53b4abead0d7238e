"""Triton over gRPC, blocking and for asyncio, and what its two protocols have in common."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tritonclient.utils import np_to_triton_dtype

from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, Unreachable, Untrusted
from nst_client.transports import buffers, statistics
from nst_client.transports.base import Array, ModelConfig, Request, ServerAddress, server_addresses
from nst_client.transports.coroutines import in_thread, maybe_await, run_blocking
from nst_client.transports.statistics import Statistics
from nst_client.transports.triton.cuda_memory import CudaPixels, CudaRegion, not_shared
from nst_client.transports.triton.proxies import Proxy, proxy_for_grpc
from nst_client.transports.triton.shared_memory import (
    UNKNOWN,
    Forgotten,
    NoRoom,
    Region,
    RegionPool,
    SystemRegion,
    Unseen,
)
from nst_core.contract import IMAGE, STYLIZED, TOKEN_HEADER
from nst_core.errors import InputError

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

REGION_SECONDS = 5.0
"""How long a server may take to register or forget a region."""

HTTPS_PORT = 443
"""What grpcs:// means without a port, as gRPC itself has it."""

UINT8 = "UINT8"
"""Triton's name of a pixel's type."""

LONGEST_WORDS = 500
"""Characters of a server's words that an error repeats."""

_parents: list[Any] = []
"""What a forked process has from its parent and must not end: connections and shared memory are the parent's."""

_grpc_process = 0
"""The process that has used gRPC first, among this one and those that it was forked from."""


@dataclass(frozen=True)
class TritonSettings:
    """How a server is reached, or several with a comma between their hosts; see `StyleClient`.

    `aio` is for asyncio, `path` what comes before Triton's own paths behind a reverse proxy. Raises `InputError` for
    what cannot be.
    """

    host: str
    tls: bool = False
    timeout: float = 60.0
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    shared_memory: bool | None = None
    aio: bool = False
    path: str = ""

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

    @property
    def servers(self) -> list[ServerAddress]:
        """The hosts and ports."""
        return server_addresses(self.host)


@dataclass(frozen=True)
class SharedTensor:
    """Where a tensor lies instead of in the message: `size` bytes of a registered region."""

    region: str
    size: int
    offset: int = 0


@dataclass(frozen=True)
class InferenceOutput:
    """What a server says to an inference: the output's shape, Triton's name of its type, and its values.

    These are None where they do not lie in the message.
    """

    shape: list[int]
    datatype: str
    values: Array | None


class TritonTransport(ABC):
    """What the two protocols have in common; every call is awaited if it must be."""

    scheme: str
    takes_cuda = True

    def __init__(self, settings: TritonSettings) -> None:
        self.settings = settings
        self.address = f"{self.scheme}{'s' if settings.tls else ''}://{settings.host}{settings.path}"
        self._begin()

    def _begin(self) -> None:
        """With nothing: no connection, no shared memory."""
        optional = self.settings.shared_memory is None
        self.regions = self._regions(partial(SystemRegion, sparing=optional), "system", optional=optional)
        self.cuda_regions: dict[int, RegionPool] = {}
        """By the number of the GPU."""
        self.sharing = self.settings.shared_memory
        """Whether pictures go through shared memory; None until somebody has looked whether they can."""
        self.proxy: Proxy | None = None
        """What lies between here and the server; known once there is a connection."""
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._making = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in another process too, has the settings and makes a connection of its own."""
        return type(self), (self.settings,)

    @property
    def client(self) -> Any:
        """The connection of this process and, with asyncio, of the loop that runs; the first call makes it.

        Raises `InputError` if another loop, which runs too, has it, or if none can be made.
        """
        self._leave_parents()
        loop = asyncio.get_running_loop() if self.settings.aio else None
        with self._making:
            if self._client is not None and self._loop is not loop:
                self._abandon()
            if self._client is None:
                self.proxy = self._proxy()
                self._client, self._loop = self._make_client(), loop
            return self._client

    @property
    def way(self) -> str:
        """Words for an error: by which proxy the server is reached, if by one."""
        return "" if self.proxy is None else f" through {self.proxy}"

    def _leave_parents(self) -> None:
        """In a process that was forked from the client's own, begin anew, and leave alone what is the parent's."""
        if self._process != os.getpid():
            _parents.append((self._client, self._loop, self.regions, self.cuda_regions))
            self._begin()

    def _abandon(self) -> None:
        """Drop the connection of another loop."""
        if self._loop is not None and self._loop.is_running():
            raise InputError(
                f"this AsyncStyleClient of {self.address} belongs to another event loop, which is running: "
                "make a client in each loop"
            )
        self._abandon_client(self._client)
        self._client = None

    async def models(self, seconds: float) -> list[str]:
        """See `Transport`."""
        # The statistics name what is loaded; the repository's index belongs to model control, which nst-serve guards.
        loaded = await self._call("get_inference_statistics", seconds=seconds)
        if not loaded and self.settings.several:  # one that drains has unloaded its models; another is asked
            raise Unavailable(f"{self.address} cannot answer now: the server that was asked has no model")
        with self._understood("to the question for its models"):
            return sorted({_text(model["name"]) for model in loaded})

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """See `Transport`."""
        config = await self._call("get_model_config", model, seconds=seconds)
        with self._understood(f"to the question for the config of {model}"):
            entries = config.get("parameters", {}).items()
            parameters = {name: _text(entry.get("string_value", "")) for name, entry in entries}
            return ModelConfig(parameters, int(config.get("max_batch_size", 0)))

    async def infer(self, request: Request, seconds: float) -> Array:
        """See `Transport`; a picture and what is painted of it go through shared memory if they can.

        A picture in a GPU's memory, `CudaPixels`, goes through CUDA's and so does its answer. Raises `InputError`
        where that cannot be.
        """
        self._leave_parents()
        deadline = time.monotonic() + seconds
        picture = request.inputs[IMAGE]
        if isinstance(picture, CudaPixels):
            return await self._infer_shared(self._regions_of(picture), request, deadline)
        if request.output != STYLIZED or not await self._shares(picture.nbytes):
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
        counted = await self._call("get_inference_statistics", model, seconds=seconds)
        with self._understood(f"to the question for the statistics of {model}"):
            return statistics.from_triton(counted)

    async def close(self) -> None:
        """See `Transport`."""
        self._leave_parents()
        for regions in (self.regions, *self.cuda_regions.values()):
            await regions.close()
        client, self._client = self._client, None
        if client is None:
            return
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            self._abandon_client(client)
        else:
            await maybe_await(client.close())

    async def _shares(self, size: int) -> bool:
        """Whether a picture of so many bytes goes through shared memory."""
        if self.settings.shared_memory is not None:
            return self.settings.shared_memory
        if self.sharing is False or not self.regions.worthwhile(2 * size):
            return False
        if self.sharing is None:
            host = self.settings.host
            self.sharing = not self.settings.several and await in_thread(_is_this_host, host, aio=self.settings.aio)
        return self.sharing and self.regions.worthwhile(2 * size)  # other tasks have made some meanwhile

    def _regions(self, make: Callable[[int], Region], kind: str, *, optional: bool = False) -> RegionPool:
        transport = weakref.proxy(self)  # or only the garbage collector would end a client that nobody closes

        async def call(action: str, *arguments: Any, seconds: float) -> Any:
            return await transport._region(kind, action, *arguments, seconds=seconds)

        return RegionPool(make, call, self._cleaner(kind), aio=self.settings.aio, optional=optional)

    def _regions_of(self, picture: CudaPixels) -> RegionPool:
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

    async def _infer_shared(self, regions: RegionPool, request: Request, deadline: float) -> Array:
        try:
            return await self._infer_in_region(regions, request, deadline)
        except Forgotten:  # the server was started again since
            return await self._infer_in_region(regions, request, deadline)

    async def _infer_in_region(self, regions: RegionPool, request: Request, deadline: float) -> Array:
        """The picture at the beginning of a region, what is painted of it behind."""
        picture = request.inputs[IMAGE]
        size = picture.nbytes
        async with regions.lease(2 * size, deadline - time.monotonic()) as region:
            region.write(picture)
            places = {IMAGE: SharedTensor(region.name, size), request.output: SharedTensor(region.name, size, size)}
            answer = await self._infer(request, places, deadline - time.monotonic())
            if answer.shape != list(picture.shape) or answer.datatype != UINT8:
                raise Rejected(
                    f"the model {request.model} answered {answer.datatype} {answer.shape} to {UINT8} "
                    f"{list(picture.shape)}: not a style model of contract 1"
                )
            painted: Array = region.read(size, picture)
            return painted

    async def _region(self, kind: str, action: str, *arguments: Any, seconds: float) -> Any:
        """What `RegionPool` asks of a server: to `register` a region, to `unregister` one, or which are `listed`."""
        seconds = min(seconds, REGION_SECONDS)
        if action == "listed":
            said = await self._call(f"get_{kind}_shared_memory_status", seconds=seconds)
            with self._understood("to the question for its shared memory"):
                # Over gRPC a mapping by name, over HTTP a list.
                return list(said.get("regions", {})) if isinstance(said, dict) else [region["name"] for region in said]
        if action == "register":
            (region,) = arguments
            arguments = (region.name, *region.registration())
        return await self._call(f"{action}_{kind}_shared_memory", *arguments, seconds=seconds)

    @abstractmethod
    async def _infer(self, request: Request, places: Mapping[str, SharedTensor], seconds: float) -> InferenceOutput:
        """Run a model; tensors that have places lie there and not in the messages."""

    @abstractmethod
    def _proxy(self) -> Proxy | None:
        """What the environment puts between here and the server. Raises `InputError`."""

    @abstractmethod
    def _make_client(self) -> Any:
        """A connection; nothing is sent yet."""

    def _abandon_client(self, client: Any) -> None:
        """End a connection whose loop is closed or stopped, where its end is not left to the garbage collector."""
        return

    def _cleaner(self, kind: str) -> Callable[[list[str]], None]:
        """Has the server forget regions, by name, when `self` is gone: in any thread, without a loop, also at exit."""
        make, settings = type(self), replace(self.settings, shared_memory=False, aio=False)

        def clean(names: list[str]) -> None:
            other = make(settings)
            try:
                for name in names:
                    with suppress(Rejected):
                        run_blocking(other._region(kind, "unregister", name, seconds=REGION_SECONDS))
            finally:
                run_blocking(other.close())

        return clean

    @abstractmethod
    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """The answer to one of `METHODS`, as JSON has it, of any shape; errors as ours."""

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
            return Forgotten(f"{self.address} answered: {_line(said)}")
        if any(sign in said for sign in AWAY):
            return Unavailable(f"{self.address} cannot answer now: {_line(said)}")
        return self._by_status(said, status)

    @contextmanager
    def _understood(self, what: str) -> Iterator[None]:
        """`ServiceError` where an answer in the block is not of the shape that Triton gives it."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServiceError(
                f"{self.address} does not answer as Triton does {what}{self.way}: {_why(error)}"
            ) from error

    def _rejected(self, said: str) -> Rejected:
        return Rejected(f"{self.address} answered: {_line(said)}")

    def _nobody(self) -> Unreachable:
        if self.proxy is not None:
            return Unreachable(
                f"no server answers at {self.address}{self.way}; if it is reached without a proxy, name it in no_proxy"
            )
        return Unreachable(
            f"no server answers at {self.address}; start one with nst-serve, or give its address with --url"
        )

    def _too_slow(self) -> TimedOut:
        return TimedOut(
            f"{self.address} did not answer within {self.settings.timeout:g} s{self.way}; allow more with --timeout"
        )

    def _no_tls(self) -> ServiceError:
        return ServiceError(f"{self.address} does not speak TLS: is it {self.scheme}://{self.settings.host}?")

    def _untrusted(self, why: str) -> Untrusted:
        return Untrusted(f"the certificate of {self.address} is not trusted ({why}): give its CA with --ca FILE")


class GrpcTransport(TritonTransport):
    """Triton's gRPC protocol."""

    scheme = "grpc"

    def __init__(self, settings: TritonSettings) -> None:
        super().__init__(settings)
        self._places: list[str] = []
        """Addresses of the servers, once they are looked up."""

    def _proxy(self) -> Proxy | None:
        if self.settings.several:  # gRPC would ask a proxy for the list as if it were a name
            return None
        (server,) = self.settings.servers
        return proxy_for_grpc(server.host, server.port or HTTPS_PORT)

    def _make_client(self) -> Any:
        _check_fork()
        # Or its core writes refused handshakes to stderr, beside the error that tells of them.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc  # type: ignore[import-untyped]

        target, options = self.settings.host, list(CHANNEL)
        if self.settings.several:  # all of them show a certificate of the first name
            options.append(("grpc.default_authority", target.partition(",")[0]))
            target = f"{'ipv6' if self._places[0].startswith('[') else 'ipv4'}:{','.join(self._places)}"
        if self.proxy is None:
            options.append(("grpc.enable_http_proxy", 0))
        library = grpc.aio if self.settings.aio else grpc
        if not self.settings.tls:
            return library.insecure_channel(target, options=options)
        ca = self.settings.ca or system_ca()
        credentials = grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
        return library.secure_channel(target, credentials, options=options)

    async def _infer(self, request: Request, places: Mapping[str, SharedTensor], seconds: float) -> InferenceOutput:
        from tritonclient.grpc import service_pb2

        from nst_client.transports.triton import grpc_messages as wire

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
        with self._understood(f"to the inference of {request.model}"):
            answer, contents = wire.decoded(data)
            for tensor, content in wire.outputs(answer, contents):
                if tensor.name == request.output:
                    shape = list(tensor.shape)
                    there = request.output in places
                    sent = None if there else wire.array_of(content, tensor.datatype, shape)
                    return InferenceOutput(shape, tensor.datatype, sent)
        return InferenceOutput([], "", None)

    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        from google.protobuf.json_format import MessageToDict
        from tritonclient.grpc import service_pb2

        from nst_client.transports.triton import grpc_messages as wire

        name, fields, wrapped = METHODS[method]
        message = getattr(service_pb2, f"{name}Request")(**dict(zip(fields, arguments, strict=False)))
        data = await self._in_turn(name, message.SerializeToString(), seconds)
        with self._understood(f"to {name}"):
            answer = wire.message_of(getattr(service_pb2, f"{name}Response"), data)
            said = MessageToDict(answer, preserving_proto_field_name=True)
        return said.get(wrapped, []) if wrapped else said

    async def _in_turn(self, name: str, message: bytes, seconds: float) -> bytes:
        """Of several servers, another one if one cannot answer: each twice, since other calls take turns too."""
        deadline = time.monotonic() + seconds
        if not self._places:
            hosts = self.settings.host.split(",")
            # The names of what lies behind a proxy are the proxy's to look up.
            found = [] if self._proxy() else await in_thread(_places, hosts, aio=self.settings.aio)
            if not found and self.settings.several:
                raise self._nobody()
            self._places = found or hosts
        for _ in range(2 * len(self._places) - 1 if len(self._places) > 1 else 0):
            with suppress(Unreachable, Unavailable):
                return await self._ask(name, message, deadline - time.monotonic())
        return await self._ask(name, message, deadline - time.monotonic())

    async def _ask(self, name: str, message: bytes, seconds: float) -> bytes:
        """What a server answers to an encoded message, encoded as well."""
        metadata = [(f"triton-grpc-protocol-{TOKEN_HEADER}", self.settings.token)] if self.settings.token else []
        with self._errors():
            call = self.client.unary_unary(f"/inference.GRPCInferenceService/{name}")
            answer: bytes = await maybe_await(call(message, metadata=metadata, timeout=max(seconds, 0.001)))
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


def _put(tensor: Any, place: SharedTensor) -> None:
    """Tell of a tensor in a gRPC message where it lies."""
    tensor.parameters["shared_memory_region"].string_param = place.region
    tensor.parameters["shared_memory_byte_size"].int64_param = place.size
    tensor.parameters["shared_memory_offset"].int64_param = place.offset


def _check_fork() -> None:
    """Raises `InputError` in a process that was forked from one that used gRPC, whose threads are not in the child."""
    global _grpc_process
    supported = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("1", "true", "yes", "y", "t")
    if _grpc_process not in (0, os.getpid()) and not supported:
        raise InputError(
            "gRPC cannot be used in a process that was forked after its parent had used it: start processes with "
            "multiprocessing.get_context('spawn'), make the first call after the fork, or use http://host:8000"
        )
    _grpc_process = os.getpid()


def _text(value: Any) -> str:
    """A value that must be text. Raises `TypeError`."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text belongs")
    return value


def _line(said: str) -> str:
    """A server's words in one line of some length."""
    words = " ".join(said.split())
    return words if len(words) <= LONGEST_WORDS else f"{words[:LONGEST_WORDS]}..."


def _why(error: Exception) -> str:
    """What is wrong with an answer."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return _line(str(error)) or type(error).__name__


def _check_ca(ca: Path) -> None:
    try:
        ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise InputError(f"{ca}: no certificates in PEM form") from error
    except OSError as error:
        raise InputError(f"{ca}: {error.strerror}") from error


def system_ca() -> Path | None:
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
                (server,) = server_addresses(host)
                found += socket.getaddrinfo(server.host, server.port or HTTPS_PORT, family, socket.SOCK_STREAM)
        if found:
            places = [(address[0], address[1]) for *_, address in found]
            return [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip, port in places]
    return []


def _is_this_host(host: str) -> bool:
    """Whether all addresses of a host are this one's: only those can be listened on."""
    try:
        (server,) = server_addresses(host)
        found = socket.getaddrinfo(server.host, 0, type=socket.SOCK_STREAM)
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
