"""What Triton's two protocols share: connections, queries and shared memory."""

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
"""Triton's name for the type of pixels."""

kept_after_fork: list[Any] = []
"""The parent's connections and regions, in a forked process, which must not close them."""


@dataclass(frozen=True)
class SharedTensor:
    """A tensor in shared memory instead of the message: `size` bytes of a registered region."""

    region: str
    size: int
    offset: int = 0


@dataclass(frozen=True)
class InferenceOutput:
    """An output: its shape, Triton's name for its type, and its values; None if they are in shared memory."""

    shape: list[int]
    datatype: str
    values: Array | None


class TritonTransport(ABC):
    """A `Transport` over one of Triton's protocols."""

    scheme: str
    takes_cuda = True

    def __init__(self, settings: TritonSettings) -> None:
        self.settings = settings
        self.address = f"{self.scheme}{'s' if settings.tls else ''}://{settings.host}{settings.path}"
        self._reset()

    def _reset(self) -> None:
        """Start without a connection and without shared memory."""
        optional = self.settings.shared_memory is None
        self.errors = ServerErrors(self.address, self.scheme, self.settings)
        self.regions = self._region_pool(partial(SystemRegion, sparing=optional), "system", optional=optional)
        self.cuda_regions: dict[int, RegionPool] = {}
        """Pools by GPU number."""
        self.sharing = self.settings.shared_memory
        """Whether images go through shared memory; None until that is decided."""
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._connecting = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone: a copy opens its own connection."""
        return type(self), (self.settings,)

    @property
    def client(self) -> Any:
        """The connection of this process and, with asyncio, of the running loop; created on first use.

        Raises `InputError` if it belongs to another running loop, or cannot be created.
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
        """Forget the parent's connections in a forked process, without closing them."""
        if self._process != os.getpid():
            kept_after_fork.append((self._client, self._loop, self.regions, self.cuda_regions))
            self._reset()

    def _abandon(self) -> None:
        """Drop the connection of another event loop."""
        if self._loop is not None and self._loop.is_running():
            raise InputError(
                f"this AsyncStyleClient for {self.address} belongs to another running event loop; "
                "create a client in each loop"
            )
        self._abandon_client(self._client)
        self._client = None

    async def models(self, seconds: float) -> list[str]:
        """See `Transport`."""
        # Statistics name the loaded models; the repository index belongs to model control, which nst serve protects.
        loaded = await self._call("get_inference_statistics", seconds=seconds)
        if not loaded and self.settings.several:  # a draining server has unloaded its models; ask another
            raise Unavailable(f"{self.address} cannot answer now: one of the servers has no model loaded")
        with self.errors.unexpected_answer("to the query for its models"):
            return sorted({_text(model["name"]) for model in loaded})

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """See `Transport`."""
        config = await self._call("get_model_config", model, seconds=seconds)
        with self.errors.unexpected_answer(f"to the query for the config of {model}"):
            entries = config.get("parameters", {}).items()
            parameters = {name: _text(entry.get("string_value", "")) for name, entry in entries}
            return ModelConfig(parameters, int(config.get("max_batch_size", 0)))

    async def infer(self, request: Request, seconds: float) -> Array:
        """See `Transport`; images go through shared memory if possible.

        `CudaPixels` and their stylized pixels go through CUDA shared memory, or raise `InputError` if they cannot.
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
            log.info(
                "%s: sending images of %d bytes in messages, without shared memory: %s",
                self.address,
                image.nbytes,
                error,
            )
        output = await self._infer_by_message(request, deadline)
        self.sharing = False  # the server answers, so shared memory was the problem
        return output

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """See `Transport`."""
        counters = await self._call("get_inference_statistics", model, seconds=seconds)
        with self.errors.unexpected_answer(f"to the query for the statistics of {model}"):
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
        """Return whether to send an image of `size` bytes through shared memory."""
        if self.settings.shared_memory is not None:
            return self.settings.shared_memory
        if self.sharing is False or not self.regions.worthwhile(2 * size):
            return False
        if self.sharing is None:
            host = self.settings.host
            self.sharing = not self.settings.several and await in_thread(is_this_host, host, aio=self.settings.aio)
            log.info("%s: images go %s", self.address, "through shared memory" if self.sharing else "in messages")
        return self.sharing and self.regions.worthwhile(2 * size)  # other tasks may have created regions meanwhile

    def _region_pool(self, make: Callable[[int], Region], kind: str, *, optional: bool = False) -> RegionPool:
        # A weak reference; otherwise a client that nobody closes would wait for the garbage collector.
        registry = RegionRegistry(weakref.proxy(self), kind)
        return RegionPool(make, registry, self._region_cleaner(kind), aio=self.settings.aio, optional=optional)

    def _region_cleaner(self, kind: str) -> Callable[[list[str]], None]:
        """Return what unregisters regions after `self` is gone: in any thread, without a loop, even at exit."""
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
        """Return the pool of a GPU's regions. Raises `InputError`."""
        settings = self.settings
        if device not in self.cuda_regions:
            if settings.shared_memory is False or settings.several or not is_this_host(settings.host):
                raise not_shared(self.address)
            self.cuda_regions[device] = self._region_pool(partial(CudaRegion, device=device), "cuda")
        return self.cuda_regions[device]

    async def _infer_by_message(self, request: Request, deadline: float) -> Array:
        output = await self._infer(request, {}, deadline - time.monotonic())
        if output.values is None:
            raise Rejected(
                f"{self.address} answered without the output {request.output}, so model {request.model} is not a style "
                "model; export it again with nst export"
            )
        return buffers.copied(output.values)

    async def _infer_shared(self, pool: RegionPool, request: Request, deadline: float) -> Array:
        try:
            return await self._infer_in_region(pool, request, deadline)
        except UnknownRegion:  # the server has restarted
            return await self._infer_in_region(pool, request, deadline)

    async def _infer_in_region(self, pool: RegionPool, request: Request, deadline: float) -> Array:
        """Run a model on the image at the beginning of a region; the output follows the image."""
        image = request.inputs[IMAGE]
        size = image.nbytes
        async with pool.lease(2 * size, deadline - time.monotonic()) as region:
            region.write(image)
            shared = {IMAGE: SharedTensor(region.name, size), request.output: SharedTensor(region.name, size, size)}
            output = await self._infer(request, shared, deadline - time.monotonic())
            if output.shape != list(image.shape) or output.datatype != UINT8:
                raise Rejected(
                    f"model {request.model} returned {output.datatype} {output.shape} for {UINT8} "
                    f"{list(image.shape)}, so it is not a style model; export it again with nst export"
                )
            stylized: Array = region.read(size, image)
            return stylized

    @abstractmethod
    async def _infer(self, request: Request, shared: Mapping[str, SharedTensor], seconds: float) -> InferenceOutput:
        """Run a model; the tensors in `shared` are in shared memory instead of the messages."""

    @abstractmethod
    def _find_proxy(self) -> Proxy | None:
        """Return the proxy that the environment selects for the server. Raises `InputError`."""

    @abstractmethod
    def _make_client(self) -> Any:
        """Create a connection, without sending anything yet."""

    def _abandon_client(self, client: Any) -> None:
        """Close a connection whose event loop is closed or stopped, unless the garbage collector does."""
        return

    @abstractmethod
    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """Call one of the protocol's `METHODS`; returns the answer as JSON of any shape. Raises `ServiceError`."""


class RegionRegistry:
    """A server's register of shared memory of one kind, `system` or `cuda`."""

    def __init__(self, transport: TritonTransport, kind: str) -> None:
        self._transport, self._kind = transport, kind

    async def register(self, region: Region, seconds: float) -> None:
        """Register a region with the server. Raises `ServiceError`."""
        await self._call("register_{}_shared_memory", region.name, *region.registration(), seconds=seconds)

    async def unregister(self, name: str, seconds: float) -> None:
        """Unregister a region from the server. Raises `ServiceError`."""
        await self._call("unregister_{}_shared_memory", name, seconds=seconds)

    async def names(self, seconds: float) -> list[str]:
        """Return the names of all regions. Raises `ServiceError`."""
        status = await self._call("get_{}_shared_memory_status", seconds=seconds)
        with self._transport.errors.unexpected_answer("to the query for its shared memory"):
            # Over gRPC a mapping by name, over HTTP a list.
            return list(status.get("regions", {})) if isinstance(status, dict) else [entry["name"] for entry in status]

    async def _call(self, method: str, *arguments: Any, seconds: float) -> Any:
        seconds = min(seconds, REGISTRATION_SECONDS)
        return await self._transport._call(method.format(self._kind), *arguments, seconds=seconds)


def _text(value: Any) -> str:
    """Return a value that must be a string. Raises `TypeError`."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value
