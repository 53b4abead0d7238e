"""Timing, and the precision of what was timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

REST_SECONDS = 0.01
"""Pause before a single request, so that threads of the previous engine no longer spin on the shared cores."""

TIMEOUT_SECONDS = 300.0
"""Timeout of a request, long enough to measure a growing queue."""

UNSTABLE = 0.10
"""A figure is unstable if the medians of its first and last half differ by more than this share."""

FEWEST = 5
"""Minimum number of samples for a standard error of their median."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Precision:
    """Precision of the median of samples.

    `error` is its standard error as a share of the median. Consecutive samples are correlated, so that they count as
    fewer `independent` ones.
    """

    error: float
    independent: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Precision | None:
        """Compute it by a bootstrap with a fixed seed; None for fewer than `FEWEST` samples."""
        count = len(samples)
        if count < FEWEST:
            return None
        values, independent = np.asarray(samples), independent_samples(samples)
        drawn = values[np.random.default_rng(0).integers(count, size=(RESAMPLES, count))]
        variance = float(np.log(np.median(drawn, axis=1)).var(ddof=1))
        return cls((variance * count / independent) ** 0.5, independent)


@dataclass(frozen=True)
class Summary:
    """Summary of samples, in milliseconds.

    `spread` is the interquartile range as a share of the median. `unstable` says that the samples drifted while they
    were taken. `median_precision` is used to compare two documents. `samples` are in the order of their measurement.
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
    """Summarize one or more samples in seconds; percentiles by linear interpolation."""
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
    """Return how many independent samples these count as, by the lag-1 autocorrelation of their ranks.

    Kendall's correction makes up for the bias of a short series.
    """
    count = len(samples)
    ranks = np.argsort(np.argsort(samples)) - (count - 1) / 2.0
    found = float(ranks[1:] @ ranks[:-1] / (ranks @ ranks))
    correlation = min(0.9, max(0.0, found + (1.0 + 3.0 * found) / count))
    return count * (1.0 - correlation) / (1.0 + correlation)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def timed_on_gpu(work: Callable[[], object]) -> float:
    """Return the seconds that the current CUDA device takes for `work`, measured with CUDA events.

    A call returns before the device is done, so a clock of the host would time the call only. If the result is copied
    to main memory, use `timed`: the copy waits.
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
    """Return the seconds of each work in `rounds` rounds, in turns so that a drift of the machine affects all alike.

    The works must be warm. Each waits `rest` seconds, in which idle threads of the previous one stop spinning. With
    `operator.call` as the clock, each work returns its own seconds.
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
    """Return summaries of works that take turns for about `seconds` seconds, in `fewest` to `most` rounds.

    Each runs at least three times and for `warm_up` seconds before: the first image of a shape is slower, the second
    records a CUDA graph, and the second model of a server was a sixth slower in its first seconds.
    """
    for work in works.values():
        taken, runs = 0.0, 0
        while runs < 3 or taken < warm_up:
            taken, runs = taken + timed(work), runs + 1
    a_round = timed(lambda: [work() for work in works.values()]) + REST_SECONDS * len(works)
    rounds = min(most, max(fewest, round(seconds / a_round)))
    return {name: summarize(taken) for name, taken in interleaved(works, rounds, rest=REST_SECONDS).items()}


def against_first(summaries: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    """Return each summary as a row, with its `ratio` to the first one's median."""
    first = next(iter(summaries.values())).median
    return {name: {**asdict(own), "ratio": own.median / first} for name, own in summaries.items()}
