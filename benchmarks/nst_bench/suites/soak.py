"""Whether a server's memory stops growing: pictures of changing sizes from several callers, for minutes.

Half of the sizes are a few odd ones that come again and again, half are drawn anew, so that what an engine keeps
by shape shows. Memory is the resident set of Triton, of its stubs (where the models run) and of the callers.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nst_bench.machine.description import document_header
from nst_bench.measure import UNSTABLE
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import SizedCall, send_changing_sizes, start_callers
from nst_bench.served.server import ModelServer

SCHEMA = "nst-bench-soak/1"

SIZES = ((97, 131), (181, 255), (256, 256), (333, 501), (480, 271), (512, 512))
"""(height, width) that come again and again; none that is drawn is larger than the last."""
SMALLEST = 64
"""Side of those that are drawn, pixels."""

TOLERANCE = 0.01
"""Memory that grows by no more than this share of itself in the second half has stopped growing."""

STUBS, TRITON, CALLERS = "stubs", "Triton", "callers"


@dataclass(frozen=True)
class Trend:
    """Memory over the second half of a soak, MiB.

    `growth` is that of a straight line fitted to it, from its beginning to its end; `error` the standard error of
    that, for samples that depend on those before them. It `grew` if the growth is above `TOLERANCE` of the
    `level`, the median, by more than twice its error.
    """

    level: float
    growth: float
    error: float
    grew: bool


def measure(
    served: ModelServer,
    *,
    minutes: float = 10.0,
    callers: int = 4,
    every: float = 2.0,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Paint for `minutes` with so many callers, looking at the memory `every` seconds; a document."""
    document = document_header(SCHEMA)
    seconds = 60.0 * minutes
    style = served.style
    with start_callers(callers, served.endpoints.grpc, style) as ready:
        photo = sample_photograph(*SIZES[-1])
        answers = ready.assign(
            [partial(send_changing_sizes, photo, SIZES, SMALLEST, seconds, seed) for seed in range(callers)]
        )
        memory = _watch(served.process.pid, ready.pids, seconds, every, on_progress)
        requests = sorted((one for answer in answers() for one in answer), key=lambda one: one.sent)
    errors = Counter(one.error for one in requests if one.error)
    times = [one["seconds"] for one in memory]
    trends = {name: trend(times, [one[name] for one in memory]) for name in (TRITON, STUBS, CALLERS)}
    drift = latency_drift(requests)
    return {
        **document,
        "model": {"name": served.model},
        "minutes": minutes,
        "callers": callers,
        "requests": len(requests),
        "shapes": len({(one.height, one.width) for one in requests}),
        "errors": dict(errors),
        "memory": memory,
        "trends": {name: asdict(one) for name, one in trends.items()},
        "latency_drift": drift,
        "latency_unstable": drift is not None and abs(drift - 1.0) > UNSTABLE,
        "passed": not errors and not any(one.grew for one in trends.values()),
    }


def _watch(
    server: int, callers: Sequence[int], seconds: float, every: float, on_progress: Callable[[str], None]
) -> list[dict[str, float]]:
    """Samples of the memory in MiB, with the seconds since the beginning."""
    begin = time.monotonic()
    samples: list[dict[str, float]] = []
    said = 0.0
    while (now := time.monotonic() - begin) < seconds:
        group = processes_of_group(server)
        stubs = [pid for pid in group if pid != server]
        parts = {TRITON: [server], STUBS: stubs, CALLERS: callers}
        samples.append({"seconds": now, **{name: sum(map(resident_mib, pids)) for name, pids in parts.items()}})
        if now - said >= 30.0:
            said = now
            on_progress(f"{now:.0f} s: " + ", ".join(f"{name} {samples[-1][name]:.0f} MiB" for name in parts))
        time.sleep(every)
    return samples


def trend(seconds: Sequence[float], mib: Sequence[float]) -> Trend:
    """Of samples of memory at `seconds`; their second half must hold five or more."""
    times, values = np.asarray(seconds), np.asarray(mib)
    late = times >= times[0] + (times[-1] - times[0]) / 2.0
    times, values = times[late] - times[late].mean(), values[late]
    slope = float(times @ values / (times @ times))
    residuals = values - values.mean() - slope * times
    # Memory that is up stays up: n samples, each correlated with the one before, are worth fewer independent ones.
    power = float(residuals @ residuals)
    correlation = float(residuals[1:] @ residuals[:-1]) / power if power > 0 else 0.0
    worth = len(times) * (1.0 - max(0.0, correlation)) / (1.0 + max(0.0, correlation))
    deviation = (power / max(1.0, worth - 2.0) / float(times @ times)) ** 0.5
    span = float(times[-1] - times[0])
    level, growth, error = float(np.median(values)), slope * span, deviation * span
    return Trend(level, growth, error, growth - 2.0 * error > TOLERANCE * level)


def latency_drift(requests: Sequence[SizedCall]) -> float | None:
    """How long a picture takes in the last third against the middle one, for the sizes that come again.

    The median over the sizes of the ratio of medians; None if no size was painted in both. The first third is
    not looked at: first pictures of a shape are slower.
    """
    if not requests:
        return None
    begin, end = requests[0].sent, requests[-1].sent
    edges = np.linspace(begin, end, 4)
    ratios = []
    for size in SIZES:
        own = [one for one in requests if (one.height, one.width) == size and not one.error]
        middle, last = ([one.seconds for one in own if start < one.sent <= stop] for start, stop in pairwise(edges[1:]))
        if middle and last:
            ratios.append(float(np.median(last) / np.median(middle)))
    return float(np.median(ratios)) if ratios else None


def processes_of_group(group: int) -> list[int]:
    """Processes of a process group: Triton, which leads one, and its stubs."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group:
            found.append(int(stat.parent.name))
    return found


def resident_mib(pid: int) -> float:
    """A process's resident set in MiB; 0 for one that has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
