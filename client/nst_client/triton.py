"""Triton over gRPC and HTTP, blocking and for asyncio, through NVIDIA's client library."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nst_client import statistics
from nst_client.coroutines import finished, settled, worked
from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, Unreachable, Untrusted
from nst_client.shared_memory import UNKNOWN, Forgotten, NoRoom, Region, Regions, Unseen
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
    shared_memory: bool | None = False
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

    @property
    def shares(self) -> bool:
        """Whether shared memory is to be tried."""
        return self.shared_memory or (self.shared_memory is None and not self.several and _is_this_host(self.host))


class Triton(ABC):
    """What the two protocols have in common: every call is one of NVIDIA's client, awaited if it must be."""

    scheme: str

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = f"{self.scheme}{'s' if settings.tls else ''}://{settings.host}"
        self.sharing = settings.shares
        self.regions = Regions(self._region, self._cleaner(), aio=settings.aio) if self.sharing else None

    @cached_property
    def client(self) -> Any:
        """NVIDIA's client; one for asyncio belongs to the loop in which it is made, so it is made by the first call."""
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
        """See `Transport`; a picture and what is painted of it go through shared memory if that is set."""
        if self.regions is not None and self.sharing and request.output == OUTPUT:
            try:
                return await self._infer_shared(self.regions, request, seconds)
            except (Unseen, NoRoom):
                if self.settings.shared_memory:
                    raise
                self.sharing = False
        result = await self._infer(request, self._inputs(request), self._output(request), seconds)
        answer = result.as_numpy(request.output)
        if answer is None:
            raise Rejected(f"{self.address} answered without {request.output}: not a style model of contract 1")
        return np.require(answer, requirements="W")  # NVIDIA's client gives what can only be read

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """See `Transport`."""
        return statistics.from_triton(await self._call("get_inference_statistics", model, seconds=seconds))

    async def close(self) -> None:
        """See `Transport`."""
        if self.regions is not None:
            await self.regions.close()
        if "client" in self.__dict__:
            await settled(self.client.close())

    async def _infer_shared(self, regions: Regions, request: Request, seconds: float) -> Array:
        """The picture at the beginning of a region, what is painted of it behind."""
        picture, deadline = request.inputs[INPUT], time.monotonic() + seconds

        def left() -> float:
            return deadline - time.monotonic()

        async with regions.lease(2 * picture.nbytes, left()) as region:
            region.write(picture)
            inputs, output = self._inputs(request, region), self._output(request, region, picture.nbytes)
            try:
                result = await self._infer(request, inputs, output, left())
            except Forgotten:  # the server was started again since
                await regions.register(region, left())
                result = await self._infer(request, inputs, output, left())
            return region.read(picture.nbytes, self._shape(result, request.output))

    async def _infer(self, request: Request, inputs: list[Any], output: Any, seconds: float) -> Any:
        return await self._call("infer", request.model, inputs, outputs=[output], seconds=seconds)

    def _inputs(self, request: Request, region: Region | None = None) -> list[Any]:
        """Triton's input objects; the picture's only tells its place where it lies in a region."""
        inputs = []
        for name, values in request.inputs.items():
            one = self._library.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
            if region is not None and name == INPUT:
                one.set_shared_memory(region.name, values.nbytes)
            else:
                one.set_data_from_numpy(values)
            inputs.append(one)
        return inputs

    def _output(self, request: Request, region: Region | None = None, size: int = 0) -> Any:
        output = self._library.InferRequestedOutput(request.output)
        if region is not None:
            output.set_shared_memory(region.name, size, offset=size)
        return output

    async def _region(self, action: str, *arguments: Any, seconds: float) -> None:
        """Register or unregister a region."""
        await self._call(f"{action}_system_shared_memory", *arguments, seconds=min(seconds, REGION_SECONDS))

    @property
    @abstractmethod
    def _library(self) -> Any:
        """NVIDIA's module of the protocol."""

    @abstractmethod
    def _make_client(self) -> Any: ...

    @abstractmethod
    def _cleaner(self) -> Callable[[list[str]], None]:
        """Has the server forget regions, by name, when `self` is gone: in any thread, without a loop, also at exit."""

    @abstractmethod
    async def _call(self, method: str, *arguments: Any, seconds: float, **named: Any) -> Any:
        """The answer of a method of NVIDIA's client, as JSON has it (but `infer`'s); its errors as ours."""

    @abstractmethod
    def _by_status(self, said: str, status: str) -> ServiceError:
        """What a server's words mean that are none of those which both protocols have."""

    @abstractmethod
    def _shape(self, result: Any, output: str) -> list[int]:
        """Of an output that lies in shared memory."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Its library's errors as ours."""
        try:
            yield
        except InferenceServerException as error:
            raise self._refused(error.message() or "nothing", error.status() or "") from error

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

    @property
    def _library(self) -> Any:
        import tritonclient.grpc as triton

        return triton

    def _make_client(self) -> Any:
        # Or its core writes refused handshakes to stderr, beside the error that tells of them.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import tritonclient.grpc.aio

        library = tritonclient.grpc.aio if self.settings.aio else tritonclient.grpc
        ca = self.settings.ca or _system_ca()
        target, options = self.settings.host, list(CHANNEL)
        if self.settings.several:  # all of them show a certificate of the first name
            options.append(("grpc.default_authority", target.partition(",")[0]))
            target = f"{'ipv6' if self._places[0].startswith('[') else 'ipv4'}:{','.join(self._places)}"
        return library.InferenceServerClient(
            target,
            ssl=self.settings.tls,
            root_certificates=None if ca is None else str(ca),
            channel_args=options,
        )

    def _cleaner(self) -> Callable[[list[str]], None]:
        settings = replace(self.settings, shared_memory=False, aio=False)

        def clean(names: list[str]) -> None:
            other = Grpc(settings)
            try:
                for name in names:
                    finished(other._region("unregister", name, seconds=REGION_SECONDS))
            finally:
                finished(other.close())

        return clean

    async def _call(self, method: str, *arguments: Any, seconds: float, **named: Any) -> Any:
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
                return await self._ask(method, *arguments, seconds=deadline - time.monotonic(), **named)
        return await self._ask(method, *arguments, seconds=deadline - time.monotonic(), **named)

    async def _ask(self, method: str, *arguments: Any, seconds: float, **named: Any) -> Any:
        headers = {f"triton-grpc-protocol-{TOKEN}": self.settings.token} if self.settings.token else {}
        if method.startswith("get_"):
            named["as_json"] = True
        with self._errors():
            call = getattr(self.client, method)
            answer = await settled(call(*arguments, headers=headers, client_timeout=max(seconds, 0.001), **named))
        return answer if method not in _WRAPPED else answer.get(_WRAPPED[method], [])

    def _shape(self, result: Any, output: str) -> list[int]:
        return list(result.get_output(output).shape)

    def _by_status(self, said: str, status: str) -> ServiceError:
        if "CERTIFICATE_VERIFY_FAILED" in said or "Hostname Verification Check failed" in said:
            return self._untrusted(said.rpartition(": ")[2])
        if "WRONG_VERSION_NUMBER" in said:
            return self._no_tls()
        if status.endswith("DEADLINE_EXCEEDED"):
            return self._too_slow()
        # A server that ends cancels what it still has; a caller's own cancellation never comes this way.
        return self._nobody() if status.endswith(("UNAVAILABLE", "CANCELLED")) else self._rejected(said)


_WRAPPED = {
    "get_model_config": "config",
    "get_inference_statistics": "model_stats",
}
"""The one field that these answers have; HTTP leaves out the first."""


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

    def _cleaner(self) -> Callable[[list[str]], None]:
        host, headers = self.settings.host, {TOKEN: self.settings.token or ""}
        context = ssl.create_default_context(cafile=self.settings.ca) if self.settings.tls else None

        def clean(names: list[str]) -> None:
            # Not by NVIDIA's client: gevent cannot be started when the interpreter ends.
            connection = (
                HTTPSConnection(host, timeout=REGION_SECONDS, context=context)
                if context
                else HTTPConnection(host, timeout=REGION_SECONDS)
            )
            with suppress(OSError, HTTPException), closing(connection):
                for name in names:
                    connection.request("POST", f"/v2/systemsharedmemory/region/{name}/unregister", headers=headers)
                    connection.getresponse().read()

        return clean

    async def _call(self, method: str, *arguments: Any, seconds: float, **named: Any) -> Any:
        headers = {TOKEN: self.settings.token} if self.settings.token else {}
        with self._errors():
            async with self._within(seconds):
                answer = await settled(getattr(self.client, method)(*arguments, headers=headers, **named))
        return answer["model_stats"] if method == "get_inference_statistics" else answer

    def _shape(self, result: Any, output: str) -> list[int]:
        shape: list[int] = result.get_output(output)["shape"]
        return shape

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with super()._errors():
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
    """Only an address of this host can be listened on."""
    name = urlsplit(f"//{host}").hostname
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as one:
            try:
                one.bind(address)
            except OSError:
                continue
            return True
    return False
