"""Taking times, and saying how well they are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

REST_SECONDS = 0.01
"""Before a single request: the threads of the engine before it no longer spin on the cores that all share."""

TIMEOUT_SECONDS = 300.0
"""How long a request may take: a queue that grows is measured, not cut short."""

UNSTABLE = 0.10
"""A figure is unstable when the medians of its first and last half differ by more than this share."""

FEWEST = 5
"""Samples below which nothing is said about how well their median is known."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Precision:
    """How well the median of samples is known.

    `error` is its standard error, as a share of the median. A sample is like the one before it, so that all count as
    fewer `independent` ones.
    """

    error: float
    independent: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Precision | None:
        """By a bootstrap with a fixed seed; None of fewer than `FEWEST`."""
        count = len(samples)
        if count < FEWEST:
            return None
        values, independent = np.asarray(samples), independent_samples(samples)
        drawn = values[np.random.default_rng(0).integers(count, size=(RESAMPLES, count))]
        variance = float(np.log(np.median(drawn, axis=1)).var(ddof=1))
        return cls((variance * count / independent) ** 0.5, independent)


@dataclass(frozen=True)
class Summary:
    """Samples of one thing, in milliseconds.

    `spread` is the middle half's width as a share of the median. `unstable`: it drifted while it was measured.
    `median_precision` is what two documents are compared by. `samples` are all of them, in the order in which they were
    taken.
    """

    n: int
    median: float
    p95: float
    p99: float
    minimum: float
    maximum: float
    spread: float
    unstable: bool
    median_precision: Precision | None
    samples: tuple[float, ...]


def summarize(seconds: Sequence[float]) -> Summary:
    """The summary of samples in seconds, at least one; percentiles by linear interpolation."""
    samples = 1000.0 * np.asarray(seconds, dtype=np.float64)
    median = float(np.median(samples))
    half = len(samples) // 2
    drift = abs(np.median(samples[:half]) - np.median(samples[-half:])) / median if half >= 3 else 0.0
    low, high, p95, p99 = np.percentile(samples, (25, 75, 95, 99)).tolist()
    return Summary(
        n=len(samples),
        median=median,
        p95=p95,
        p99=p99,
        minimum=float(samples.min()),
        maximum=float(samples.max()),
        spread=(high - low) / median,
        unstable=bool(drift > UNSTABLE),
        median_precision=Precision.of(samples.tolist()),
        samples=tuple(samples.round(3).tolist()),
    )


def independent_samples(samples: Sequence[float]) -> float:
    """How many independent samples these count as, by the correlation of each one's rank with the next one's.

    A short series' own mean hides a part of the correlation, which Kendall's correction adds again.
    """
    count = len(samples)
    ranks = np.argsort(np.argsort(samples)) - (count - 1) / 2.0
    found = float(ranks[1:] @ ranks[:-1] / (ranks @ ranks))
    correlation = min(0.9, max(0.0, found + (1.0 + 3.0 * found) / count))
    return count * (1.0 - correlation) / (1.0 + correlation)


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
    works: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    rest: float = 0.0,
    clock: Callable[[Callable[[], Any]], float] = timed,
) -> dict[str, list[float]]:
    """Seconds of each work in `rounds` rounds, taking turns, so that a drift of the machine hits all alike.

    The works must be warm. Each waits `rest` seconds, in which idle threads of the one before stop looking for
    more to do. With `operator.call` for a clock each says itself how long it took.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            time.sleep(rest)
            seconds[name].append(clock(work))
    return seconds


def in_turns(
    works: Mapping[str, Callable[[], object]], seconds: float, fewest: int, most: int, *, warm_up: float = 0.0
) -> dict[str, Summary]:
    """Summaries of works that take turns for about so many seconds, in `fewest` to `most` rounds.

    Each is run three times before, and for `warm_up` seconds: the first image of a shape is another figure, the second
    records a CUDA graph, and in its first seconds the second model of a server was seen to take a sixth longer.
    """
    for work in works.values():
        taken, runs = 0.0, 0
        while runs < 3 or taken < warm_up:
            taken, runs = taken + timed(work), runs + 1
    a_round = timed(lambda: [work() for work in works.values()]) + REST_SECONDS * len(works)
    rounds = min(most, max(fewest, round(seconds / a_round)))
    return {name: summarize(taken) for name, taken in interleaved(works, rounds, rest=REST_SECONDS).items()}


def against_first(summaries: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    """Each summary as a row has it, and its `ratio` to the first one's median."""
    first = next(iter(summaries.values())).median
    return {name: {**asdict(own), "ratio": own.median / first} for name, own in summaries.items()}
