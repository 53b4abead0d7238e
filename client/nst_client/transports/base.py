"""The interface between a client and a server: Triton, ONNX Runtime in this process, or a function in a test.

A transport lists models, reads a model's config, and runs a model. It turns its library's errors into ours. The
methods are coroutines, so that the client's code is written once; those of a blocking transport never suspend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nst_client.transports.statistics import Statistics

Array = npt.NDArray[Any]
StyleWeights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelConfig:
    """A model's config: its `parameters`, and the maximum number of images per request (0: any number)."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    max_batch: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """An inference request: the model, its inputs by name, and the name of the wanted output.

    The input `image` is `uint8 [N, H, W, 3]`; models of several styles also take `style_weights` float32 `[N, S]`.
    """

    model: str
    inputs: Mapping[str, Array]
    output: str


class Transport(Protocol):
    """The connection to a server. Each call ends within `seconds`.

    Methods raise subclasses of `ServiceError`; the client retries after `Unreachable` and `Unavailable`.
    """

    address: str
    """The server's name in messages."""

    async def models(self, seconds: float) -> list[str]:
        """Return the names of the models that are ready."""

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """Return a model's config."""

    async def infer(self, request: Request, seconds: float) -> Array:
        """Run a model and return the wanted output."""

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """Return the server's counters for a model."""

    async def close(self) -> None:
        """Close the connection and free its resources."""
