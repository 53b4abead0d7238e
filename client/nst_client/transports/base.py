"""What a client needs of a server, however it is reached: Triton, ONNX Runtime in this process, a function in a test.

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
    """A model's config: its `parameters`, and the maximum of images in a request (0: any number)."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    max_batch: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """An inference: the inputs of a model, by name, and the name of the output that is wanted."""

    model: str
    inputs: Mapping[str, Array]
    output: str


class Transport(Protocol):
    """The connection to a server. Each call ends within `seconds`.

    Raises children of `ServiceError`: `Unreachable` and `Unavailable` for what may be retried.
    """

    address: str

    async def models(self, seconds: float) -> list[str]:
        """Names of the models that are ready."""

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """A model's config."""

    async def infer(self, request: Request, seconds: float) -> Array:
        """The output that the request wants."""

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """The server's counters of a model."""

    async def close(self) -> None:
        """Close the connection and free what it holds."""
