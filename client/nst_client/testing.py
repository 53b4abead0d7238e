"""A transport for tests of applications, with a function in place of a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

from nst_client.errors import Rejected
from nst_client.transports.base import Array, ModelConfig, Request
from nst_client.transports.statistics import Statistics
from nst_core.contract import IMAGE, Parameter

DEFAULT_MODELS: Mapping[str, Mapping[str, str]] = MappingProxyType({"style": {}})


class MockTransport:
    """Answers the requests of a `StyleClient` or `AsyncStyleClient` without a server or a network.

        client = StyleClient(transport=MockTransport(lambda request: 255 - request.inputs["image"]))

    `requests` holds all requests so far.
    """

    address = "mock:"

    def __init__(
        self, handler: Callable[[Request], Array], models: Mapping[str, Mapping[str, str]] = DEFAULT_MODELS
    ) -> None:
        """Create a transport with one model, `style`, or with other `models`.

        Args:
            handler: Takes a `Request` and returns the output as an array, or raises a `ServiceError`.
            models: The mocked server's models, by name, each with the `parameters` of its config: `styles` (by
                default the model's name), `min_side`, `max_pixels` and so on, all as text.
        """
        self.handler = handler
        self.configs = {
            name: ModelConfig({Parameter.STYLES: name, **parameters}) for name, parameters in models.items()
        }
        self.requests: list[Request] = []

    async def models(self, seconds: float) -> list[str]:
        """See `Transport`."""
        return list(self.configs)

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """See `Transport`."""
        return self.configs[model]

    async def infer(self, request: Request, seconds: float) -> Array:
        """See `Transport`."""
        if request.model not in self.configs:
            raise Rejected(f"{self.address} has no model {request.model!r}; it has: {', '.join(self.configs)}")
        self.requests.append(request)
        return self.handler(request)

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """See `Transport`; every request counts as an execution."""
        batches = Counter(len(request.inputs[IMAGE]) for request in self.requests if request.model == model)
        return Statistics(batches.total(), 0, sum(size * n for size, n in batches.items()), batches.total(), batches)

    async def close(self) -> None:
        """See `Transport`."""
