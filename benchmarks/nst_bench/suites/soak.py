"""Soak test: whether a server's memory stops growing under images of changing sizes from several clients.

Half of the sizes repeat, half are random, so that memory which an engine keeps per shape becomes visible. Memory is
the resident set of Triton, of its stubs (the processes that run the models) and of the clients.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nst_bench.drawing.plots import figure
from nst_bench.drawing.tables import columns, table
from nst_bench.drawing.words import shown
from nst_bench.measure import UNSTABLE
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import Call, send_changing_sizes, start_callers
from nst_bench.served.resources import served_model
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Cost, Document, Effort, Plot, Suite
from nst_bench.upgrades import memory_shown
from nst_server.process.model_processes import model_processes

SIZES = ((97, 131), (181, 255), (256, 256), (333, 501), (480, 271), (512, 512))
"""(height, width) of the repeated sizes; random sizes are at most as large as the last."""
SMALLEST_PIXELS = 64
"""Minimum side of random sizes."""

TOLERANCE = 0.01
"""Memory that grows by at most this share in the second half has stopped growing."""

SHORTEST_MINUTES = 5.0
"""In shorter runs, memory still fills up, so that its growth means nothing."""

STUBS, TRITON, CALLERS = "stubs", "Triton", "callers"


@dataclass(frozen=True)
class Trend:
    """Memory over the second half of a soak test, MiB.

    `growth` is the rise of a fitted line from start to end, `error` its standard error, corrected for autocorrelation.
    `grew` is true if the growth exceeds `TOLERANCE` of `level`, the median, by more than twice its error.
    """

    level: float
    growth: float
    error: float
    grew: bool


@dataclass(frozen=True)
class SoakEffort(Effort):
    """Duration, clients, and the interval of memory samples in seconds."""

    minutes: Annotated[float, typer.Option(help="Duration in minutes.", min=0.5)] = 10.0
    callers: Annotated[int, typer.Option(help="Number of concurrent clients, one process each.", min=1)] = 4
    every_seconds: float = 2.0

    takes_time = ("minutes",)


def measure(context: Context[SoakEffort], server: ModelServer) -> Document:
    """Check that a server's memory stops growing.

    Stylizes images of changing sizes, and exits with 1 if memory keeps growing or a request fails.
    """
    effort = context.effort
    seconds = 60.0 * effort.minutes
    with start_callers(effort.callers, server.endpoints.grpc, server.style) as callers:
        photo = sample_photograph(*SIZES[-1])
        tasks = [partial(send_changing_sizes, photo, SIZES, SMALLEST_PIXELS, seconds, n) for n in range(effort.callers)]
        answers = callers.assign(tasks)
        times, memory = _watch(server.process.pid, callers.pids, seconds, context)
        requests = sorted(request for answer in answers() for request in answer)
    errors = Counter(request.error for request in requests if request.error)
    trends = {name: trend(times, mib) for name, mib in memory.items()}
    drift = latency_drift(requests)
    return {
        "model": {"name": server.model},
        "minutes": effort.minutes,
        "callers": effort.callers,
        "requests": len(requests),
        "shapes": len({request.size for request in requests}),
        "errors": dict(errors),
        "trends": {name: memory_shown(mib) | asdict(trends[name]) for name, mib in memory.items()},
        "latency_drift": drift,
        "latency_unstable": drift is not None and abs(drift - 1.0) > UNSTABLE,
        "passed": not errors and not any(own.grew for own in trends.values()),
    }


def _watch(
    server: int, callers: Sequence[int], seconds: float, context: Context[SoakEffort]
) -> tuple[list[float], dict[str, list[float]]]:
    """Return the times of the samples in seconds, and the memory in MiB by processes."""
    begin = time.monotonic()
    times: list[float] = []
    memory: dict[str, list[float]] = {TRITON: [], STUBS: [], CALLERS: []}
    noted = 0.0
    while (now := time.monotonic() - begin) < seconds:
        times.append(now)
        for name, pids in ((TRITON, [server]), (STUBS, model_processes(server)), (CALLERS, callers)):
            memory[name].append(sum(map(resident_mib, pids)))
        if now - noted >= 30.0:
            noted = now
            context.on_progress(
                f"{now:.0f} s: " + ", ".join(f"{shown(name)} {mib[-1]:.0f} MiB" for name, mib in memory.items())
            )
        time.sleep(context.effort.every_seconds)
    return times, memory


def trend(seconds: Sequence[float], mib: Sequence[float]) -> Trend:
    """Fit samples of memory at `seconds`; the second half must have at least five."""
    times, values = np.asarray(seconds), np.asarray(mib)
    late = times >= times[0] + (times[-1] - times[0]) / 2.0
    times, values = times[late] - times[late].mean(), values[late]
    slope = float(times @ values / (times @ times))
    residuals = values - values.mean() - slope * times
    # Consecutive samples are correlated, so that they count as fewer independent ones.
    power = float(residuals @ residuals)
    correlation = float(residuals[1:] @ residuals[:-1]) / power if power > 0 else 0.0
    independent = len(times) * (1.0 - max(0.0, correlation)) / (1.0 + max(0.0, correlation))
    deviation = (power / max(1.0, independent - 2.0) / float(times @ times)) ** 0.5
    span = float(times[-1] - times[0])
    level, growth, error = float(np.median(values)), slope * span, deviation * span
    return Trend(level, growth, error, growth - 2.0 * error > TOLERANCE * level)


def latency_drift(requests: Sequence[Call]) -> float | None:
    """Return the latency in the last third relative to the middle third, for the repeated sizes.

    It is the median over sizes of the ratio of medians, or None if no size occurs in both. The first third is left out,
    as first requests of a shape are slower.
    """
    if not requests:
        return None
    begin, end = requests[0].due, requests[-1].due
    edges = np.linspace(begin, end, 4)
    ratios = []
    for size in SIZES:
        same = [request for request in requests if request.size == size and not request.error]
        middle, last = ([own.seconds for own in same if start < own.due <= stop] for start, stop in pairwise(edges[1:]))
        if middle and last:
            ratios.append(float(np.median(last) / np.median(middle)))
    return float(np.median(ratios)) if ratios else None


def resident_mib(pid: int) -> float:
    """Return a process's resident set in MiB, 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def tables(document: Document) -> list[str]:
    """Render the memory's trend."""
    errors, drift = document["errors"], document["latency_drift"]
    too_short = document["minutes"] < SHORTEST_MINUTES
    trends = columns(
        "processes   | start        | half time       | end",
        "{processes} | {start:.0f}  | {half_time:.0f} | {end:.0f}",
    )
    trends["growth in the second half"] = lambda row: f"{row['growth']:+.1f} ± {2 * row['error']:.1f}"
    trends["verdict"] = lambda row: "test too short" if too_short else "grew" if row["grew"] else "stable"
    latency = "Latency was not compared."
    if drift is not None:
        latency = f"Latency in the last third is {drift:.3f} times that in the middle third"
        latency += " (*unstable*)." if document["latency_unstable"] else "."
    return [
        f"`{document['model']['name']}`.",
        "",
        f"{document['minutes']:g} minutes, {document['callers']} concurrent clients: {document['requests']:,} images "
        f"of {document['shapes']:,} sizes, {sum(errors.values())} errors. {latency}",
        "",
        "Resident memory, MiB. A line is fitted to the second half; memory grew if the line's rise, less twice its "
        "standard error, is more than 1 % of the median:",
        "",
        *table([{"processes": name, **trend} for name, trend in document["trends"].items()], trends),
        *(["", *(f"- {count} x {error}" for error, count in errors.items())] if errors else []),
    ]


def plot(own: Mapping[str, Document], machine: str) -> Plot | None:
    """Draw the optimisation's peak memory by size (from `gatys`) and that of the serving processes."""
    peaks = {f"optimisation, {row['size']}²": row["peak_mib"] for row in own.get("gatys", {}).get("iterations", ())}
    trends = own.get("soak", {}).get("trends", {})
    bars = peaks | {f"serving: {shown(name)}": processes["peak"] for name, processes in trends.items()}
    if not bars:
        return None
    with figure("memory", f"Peak resident memory\n{machine}") as (axes, finish):
        drawn = axes.barh(list(bars), list(bars.values()), color=["C0"] * len(peaks) + ["C1"] * len(trends))
        axes.bar_label(drawn, [f"{value:,.0f} MiB" for value in bars.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.25 * max(bars.values())), xlabel="MiB")
        by_name = ", ".join(f"{name} {value:,.0f}" for name, value in bars.items())
        return finish(f"Peak resident memory on {machine}, MiB: {by_name}.")


def failure(document: Document) -> str | None:
    """Return what grew and what failed, or None."""
    if document["passed"]:
        return None
    grown = [shown(name) for name, own in document["trends"].items() if own["grew"]]
    failed = sum(document["errors"].values())
    return f"soak test failed: memory grew in {', '.join(grown) or 'no process'}; {failed} failed requests"


SUITE = Suite(
    name="soak",
    title="Memory under load",
    resources=served_model,
    measure=measure,
    tables=tables,
    plots=(plot,),
    failure=failure,
    effort=SoakEffort(),
    on_cpu={"default": Cost(75, SoakEffort(minutes=1.0)), "full": Cost(640, SoakEffort())},
    on_gpu={"default": Cost(75, SoakEffort(minutes=1.0)), "full": Cost(640, SoakEffort())},
    rank=80,
)
