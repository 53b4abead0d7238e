"""Taking times, and saying what they are worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

REST = 0.01
"""Seconds before a single request: the threads of the engine before it spin no longer on the cores that all share."""

UNSTABLE = 0.10
"""A figure is unstable when the medians of its first and last half differ by more than this share."""


@dataclass(frozen=True)
class Summary:
    """Samples of one thing, in milliseconds.

    `spread` is the middle half's width as a share of the median. `unstable`: it drifted while it was measured.
    `samples` are all of them, in the order in which they were taken, so that two documents can be compared.
    """

    n: int
    median: float
    p95: float
    p99: float
    minimum: float
    maximum: float
    spread: float
    unstable: bool
    samples: tuple[float, ...]


def summarize(seconds: Sequence[float]) -> Summary:
    """The summary of samples in seconds, at least one; percentiles by linear interpolation."""
    samples = 1000.0 * np.asarray(seconds, dtype=np.float64)
    median = float(np.median(samples))
    half = len(samples) // 2
    drift = abs(np.median(samples[:half]) - np.median(samples[-half:])) / median if half >= 3 else 0.0
    low, high, p95, p99 = np.percentile(samples, (25, 75, 95, 99)).tolist()
    return Summary(
        len(samples),
        median,
        p95,
        p99,
        float(samples.min()),
        float(samples.max()),
        (high - low) / median,
        bool(drift > UNSTABLE),
        tuple(samples.round(3).tolist()),
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def timed_on_gpu(work: Callable[[], object]) -> float:
    """Seconds that the current CUDA device takes for what `work` gives it, by the device's own events.

    A call returns before the device is done, so that a clock of the host would time the call. For work whose result
    comes back into main memory `timed` is right: that copy waits.
    """
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000.0


def interleaved(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    rest: float = 0.0,
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each work in `rounds` rounds, taking turns, so that a drift of the machine hits all alike.

    The works must be warm. Each waits `rest` seconds, in which idle threads of the one before stop looking for
    more to do. `on_progress` is called after each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            time.sleep(rest)
            seconds[name].append(timed(work))
            on_progress()
    return seconds
