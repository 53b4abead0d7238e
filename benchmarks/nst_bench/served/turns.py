"""Turns of callers: what they waited, and what the server counted meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nst_bench.measure import UNSTABLE, summarize
from nst_bench.served.callers import Call
from nst_bench.served.server import ModelServer
from nst_client import ServiceError, Statistics, StyleClient

Document = dict[str, Any]

COUNTERS_TIMEOUT_SECONDS = 5.0
"""In which the server must have counted what it answered."""


@dataclass(frozen=True)
class Turn:
    """Calls, and what the server counted while they ran."""

    calls: list[Call]
    counted: Statistics

    @property
    def rate(self) -> float:
        """Images a second, from the first call to the last answer."""
        return len(self.calls) / (max(call.done for call in self.calls) - self.calls[0].due)


def take_turn(server: ModelServer, run: Callable[[], list[Call]]) -> Turn:
    """Run what calls the server, and read its counters before and after."""
    with StyleClient(server.endpoints.grpc, shared_memory=False) as client:
        before = client.statistics(server.style)
        calls = run()
        deadline = time.monotonic() + COUNTERS_TIMEOUT_SECONDS  # Triton answers first and counts after
        while True:
            counted = between(before, client.statistics(server.style))
            images = sum(size * count for size, count in counted.batches.items())
            if min(counted.requests, images) >= len(calls):
                return Turn(calls, counted)
            if time.monotonic() > deadline:
                raise ServiceError(f"{len(calls)} requests were answered, and the server counted {counted}")
            time.sleep(0.01)


def between(before: Statistics, after: Statistics) -> Statistics:
    """What the server counted between two moments."""
    requests = after.requests - before.requests
    batches = Counter(after.batches)
    batches.subtract(before.batches)

    def mean(name: str) -> float:
        total = getattr(after, name) * after.requests - getattr(before, name) * before.requests
        return total / requests if requests else 0.0

    return Statistics(
        requests,
        after.failures - before.failures,
        after.images - before.images,
        after.executions - before.executions,
        {size: count for size, count in sorted(batches.items()) if count},
        mean("queue_seconds"),
        mean("compute_seconds"),
    )


def rate_of(rates: Sequence[float]) -> Document:
    """The median of the turns' rates; `spread` is their range as a share of it."""
    median = float(np.median(rates))
    spread = (max(rates) - min(rates)) / median
    return {"rate": median, "rates": list(rates), "rate_spread": spread, "rate_unstable": spread > UNSTABLE}


def summary(turns: Sequence[Turn]) -> Document:
    """Latency in milliseconds, where it was spent, and the real batches, of turns together.

    `batch` is the mean number of images in a run of the model; a request's compute time is that of its whole
    run. What is left of its latency is the network and the client.
    """
    calls = [call for turn in turns for call in turn.calls]
    counted = [turn.counted for turn in turns]
    requests = sum(part.requests for part in counted)
    batches: Counter[int] = Counter()
    for part in counted:
        batches.update(part.batches)
    queue = sum(part.queue_seconds * part.requests for part in counted) / requests
    compute = sum(part.compute_seconds * part.requests for part in counted) / requests
    mean = float(np.mean([call.seconds for call in calls]))
    return {
        **asdict(summarize([call.seconds for call in calls])),
        "batch": sum(part.images for part in counted) / sum(part.executions for part in counted),
        "batches": {str(size): count for size, count in sorted(batches.items())},
        "mean": 1000.0 * mean,
        "queue": 1000.0 * queue,
        "compute": 1000.0 * compute,
        "rest": 1000.0 * (mean - queue - compute),
    }
