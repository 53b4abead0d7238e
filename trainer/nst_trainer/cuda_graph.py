"""Repeated work on a GPU as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

WARM_UP_ITERATIONS = 3
"""Calls that run operation by operation before the capture."""


class CudaGraphReplay:
    """Work on a GPU that is captured as a CUDA graph after `WARM_UP_ITERATIONS` calls.

    The first calls do real work, too. They let PyTorch and its libraries set up what a capture cannot: plans,
    workspaces, an optimiser's state. Launching a graph then takes one call instead of hundreds.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        """`work` reads and writes tensors at fixed addresses, and does not synchronize with the device."""
        self.work, self.device = work, device
        self.calls = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Start the work once, without waiting for it."""
        if self.replay is None and self.calls == WARM_UP_ITERATIONS:
            self.replay = self.capture()
        if self.replay is not None:
            self.replay()
        else:
            self.warm_up()
        self.calls += 1

    def warm_up(self) -> None:
        """Do the work on the capturing stream, as PyTorch requires, in order with the current stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self.work()
        current.wait_stream(self.stream)

    def capture(self) -> Callable[[], None]:
        """Capture the work; return the function that launches all its kernels as one graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
            self.work()
        return graph.replay

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream for warm-up and capture."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
