"""What Triton's two protocols share: connections, what is asked of the server, and shared memory."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from nst_client.errors import Rejected, Unavailable
from nst_client.transports import buffers, statistics
from nst_client.transports.base import Array, ModelConfig, Request
from nst_client.transports.coroutines import in_thread, maybe_await, run_blocking
from nst_client.transports.cuda_pixels import CudaPixels, not_shared
from nst_client.transports.statistics import Statistics
from nst_client.transports.triton.addresses import is_this_host
from nst_client.transports.triton.cuda_memory import CudaRegion
from nst_client.transports.triton.errors import NoRoom, ServerErrors, UnknownRegion, UnusableRegion
from nst_client.transports.triton.proxies import Proxy
from nst_client.transports.triton.settings import TritonSettings
from nst_client.transports.triton.shared_memory import Region, RegionPool, SystemRegion
from nst_core.contract import IMAGE, STYLIZED
from nst_core.errors import InputError

REGISTRATION_SECONDS = 5.0
"""Timeout for registering or unregistering a region."""

log = logging.getLogger(__name__)

UINT8 = "UINT8"
"""Triton's name of a pixel's type."""

kept_after_fork: list[Any] = []
"""The parent's connections and regions in a forked process, which must not end them."""


@dataclass(frozen=True)
class SharedTensor:
    """A tensor in shared memory, not in the message: `size` bytes of a registered region."""

    region: str
    size: int
    offset: int = 0


@dataclass(frozen=True)
class InferenceOutput:
    """An output: its shape, Triton's name of its type, and its values, None where the message does not hold them."""

    shape: list[int]
    datatype: str
    values: Array | None


class TritonTransport(ABC):
    """A `Transport` by a protocol of Triton's."""

    scheme: str
    takes_cuda = True

    def __init__(self, settings: TritonSettings) -> None:
        self.settings = settings
        self.address = f"{self.scheme}{'s' if settings.tls else ''}://{settings.host}{settings.path}"
        self._reset()

    def _reset(self) -> None:
        """Begin without a connection and without shared memory."""
        optional = self.settings.shared_memory is None
        self.errors = ServerErrors(self.address, self.scheme, self.settings)
        self.regions = self._region_pool(partial(SystemRegion, sparing=optional), "system", optional=optional)
        self.cuda_regions: dict[int, RegionPool] = {}
        """By the number of the GPU."""
        self.sharing = self.settings.shared_memory
        """Whether images go through shared memory; None until it is known whether they can."""
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._connecting = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in another process too, has the settings and connects by itself."""
        return type(self), (self.settings,)

    @property
    def client(self) -> Any:
        """The connection of this process and, with asyncio, of the running loop; the first call creates it.

        Raises `InputError` if another running loop has it, or if it cannot be created.
        """
        self._reset_after_fork()
        loop = asyncio.get_running_loop() if self.settings.aio else None
        with self._connecting:
            if self._client is not None and self._loop is not loop:
                self._abandon()
            if self._client is None:
                self.errors.proxy = self._find_proxy()
                log.debug("connecting to %s%s", self.address, self.errors.through_proxy)
                self._client, self._loop = self._make_client(), loop
            return self._client

    def _reset_after_fork(self) -> None:
        """In a forked process, begin anew, and leave alone what the parent has."""
        if self._process != os.getpid():
            kept_after_fork.append((self._client, self._loop, self.regions, self.cuda_regions))
            self._reset()

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
        if not loaded and self.settings.several:  # a server that drains has unloaded its models; another is asked
            raise Unavailable(f"{self.address} cannot answer now: the server that was asked has no model")
        with self.errors.unexpected_answer("to the question for its models"):
            return sorted({_text(model["name"]) for model in loaded})

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """See `Transport`."""
        config = await self._call("get_model_config", model, seconds=seconds)
        with self.errors.unexpected_answer(f"to the question for the config of {model}"):
            entries = config.get("parameters", {}).items()
            parameters = {name: _text(entry.get("string_value", "")) for name, entry in entries}
            return ModelConfig(parameters, int(config.get("max_batch_size", 0)))

    async def infer(self, request: Request, seconds: float) -> Array:
        """See `Transport`; images go through shared memory if they can.

        `CudaPixels`, and what is stylized of them, go through CUDA's. Raises `InputError` where that cannot be.
        """
        self._reset_after_fork()
        deadline = time.monotonic() + seconds
        image = request.inputs[IMAGE]
        if isinstance(image, CudaPixels):
            return await self._infer_shared(self._regions_on(image.device), request, deadline)
        if request.output != STYLIZED or not await self._shares(image.nbytes):
            return await self._infer_by_message(request, deadline)
        try:
            return await self._infer_shared(self.regions, request, deadline)
        except (UnusableRegion, NoRoom, UnknownRegion) as error:
            if self.settings.shared_memory:
                raise
            log.info("%s: no shared memory for images of %d bytes: %s", self.address, image.nbytes, error)
        output = await self._infer_by_message(request, deadline)
        self.sharing = False  # the server does answer, so it was the memory
        return output

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """See `Transport`."""
        counters = await self._call("get_inference_statistics", model, seconds=seconds)
        with self.errors.unexpected_answer(f"to the question for the statistics of {model}"):
            return statistics.from_triton(counters)

    async def close(self) -> None:
        """See `Transport`."""
        self._reset_after_fork()
        for pool in (self.regions, *self.cuda_regions.values()):
            await pool.close()
        client, self._client = self._client, None
        if client is None:
            return
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            self._abandon_client(client)
        else:
            await maybe_await(client.close())

    async def _shares(self, size: int) -> bool:
        """Whether an image of `size` bytes goes through shared memory."""
        if self.settings.shared_memory is not None:
            return self.settings.shared_memory
        if self.sharing is False or not self.regions.worthwhile(2 * size):
            return False
        if self.sharing is None:
            host = self.settings.host
            self.sharing = not self.settings.several and await in_thread(is_this_host, host, aio=self.settings.aio)
            log.info("%s: images go %s", self.address, "through shared memory" if self.sharing else "in messages")
        return self.sharing and self.regions.worthwhile(2 * size)  # other tasks may have made regions meanwhile

    def _region_pool(self, make: Callable[[int], Region], kind: str, *, optional: bool = False) -> RegionPool:
        # A weak reference, or only the garbage collector would end a client that nobody closes.
        registry = RegionRegistry(weakref.proxy(self), kind)
        return RegionPool(make, registry, self._region_cleaner(kind), aio=self.settings.aio, optional=optional)

    def _region_cleaner(self, kind: str) -> Callable[[list[str]], None]:
        """Unregisters regions, by name, when `self` is gone: in any thread, without a loop, also at exit."""
        transport_class, settings = type(self), replace(self.settings, shared_memory=False, aio=False)

        def unregister_all(names: list[str]) -> None:
            transport = transport_class(settings)
            registry = RegionRegistry(transport, kind)
            try:
                for name in names:
                    with suppress(Rejected):
                        run_blocking(registry.unregister(name, REGISTRATION_SECONDS))
            finally:
                run_blocking(transport.close())

        return unregister_all

    def _regions_on(self, device: int) -> RegionPool:
        """The regions of a GPU. Raises `InputError`."""
        settings = self.settings
        if device not in self.cuda_regions:
            if settings.shared_memory is False or settings.several or not is_this_host(settings.host):
                raise not_shared(self.address)
            self.cuda_regions[device] = self._region_pool(partial(CudaRegion, device=device), "cuda")
        return self.cuda_regions[device]

    async def _infer_by_message(self, request: Request, deadline: float) -> Array:
        output = await self._infer(request, {}, deadline - time.monotonic())
        if output.values is None:
            raise Rejected(f"{self.address} answered without {request.output}: not a style model of contract 1")
        return buffers.copied(output.values)

    async def _infer_shared(self, pool: RegionPool, request: Request, deadline: float) -> Array:
        try:
            return await self._infer_in_region(pool, request, deadline)
        except UnknownRegion:  # the server has restarted
            return await self._infer_in_region(pool, request, deadline)

    async def _infer_in_region(self, pool: RegionPool, request: Request, deadline: float) -> Array:
        """The image lies at the beginning of a region, and the output behind it."""
        image = request.inputs[IMAGE]
        size = image.nbytes
        async with pool.lease(2 * size, deadline - time.monotonic()) as region:
            region.write(image)
            shared = {IMAGE: SharedTensor(region.name, size), request.output: SharedTensor(region.name, size, size)}
            output = await self._infer(request, shared, deadline - time.monotonic())
            if output.shape != list(image.shape) or output.datatype != UINT8:
                raise Rejected(
                    f"the model {request.model} answered {output.datatype} {output.shape} to {UINT8} "
                    f"{list(image.shape)}: not a style model of contract 1"
                )
            stylized: Array = region.read(size, image)
            return stylized

    @abstractmethod
    async def _infer(self, request: Request, shared: Mapping[str, SharedTensor], seconds: float) -> InferenceOutput:
        """Run a model; the `shared` tensors are not in the messages."""

    @abstractmethod
    def _find_proxy(self) -> Proxy | None:
        """The proxy that the environment selects for the server. Raises `InputError`."""

    @abstractmethod
    def _make_client(self) -> Any:
        """A connection; nothing is sent yet."""

    def _abandon_client(self, client: Any) -> None:
        """Close a connection whose loop is closed or stopped, if the garbage collector does not."""
        return

    @abstractmethod
    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """The answer to one of the protocol's `METHODS`, as JSON has it, of any shape. Raises `ServiceError`."""


class RegionRegistry:
    """A server's register of shared memory of one kind, `system` or `cuda`."""

    def __init__(self, transport: TritonTransport, kind: str) -> None:
        self._transport, self._kind = transport, kind

    async def register(self, region: Region, seconds: float) -> None:
        """Tell the server of a region. Raises `ServiceError`."""
        await self._call("register_{}_shared_memory", region.name, *region.registration(), seconds=seconds)

    async def unregister(self, name: str, seconds: float) -> None:
        """Have the server forget a region. Raises `ServiceError`."""
        await self._call("unregister_{}_shared_memory", name, seconds=seconds)

    async def names(self, seconds: float) -> list[str]:
        """The names of all regions. Raises `ServiceError`."""
        status = await self._call("get_{}_shared_memory_status", seconds=seconds)
        with self._transport.errors.unexpected_answer("to the question for its shared memory"):
            # Over gRPC a mapping by name, over HTTP a list.
            return list(status.get("regions", {})) if isinstance(status, dict) else [entry["name"] for entry in status]

    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        seconds = min(seconds, REGISTRATION_SECONDS)
        return await self._transport._call(method.format(self._kind), *arguments, seconds=seconds)


def _text(value: Any) -> str:
    """A value that must be text. Raises `TypeError`."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text belongs")
    return value
