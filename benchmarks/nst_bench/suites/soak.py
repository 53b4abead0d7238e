"""Whether a server's memory stops growing: images of changing sizes from several callers, for minutes.

Half of the sizes are a few odd ones that come again and again, half are drawn anew, so that what an engine keeps
by shape shows. Memory is the resident set of Triton, of its stubs (where the models run) and of the callers.
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
from nst_bench.measure import UNSTABLE
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import Call, send_changing_sizes, start_callers
from nst_bench.served.resources import served_model
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Cost, Document, Effort, Plot, Suite
from nst_bench.upgrades import memory_shown
from nst_server.process.model_processes import model_processes

SIZES = ((97, 131), (181, 255), (256, 256), (333, 501), (480, 271), (512, 512))
"""(height, width) that come again and again; none that is drawn is larger than the last."""
SMALLEST_PIXELS = 64
"""Side of those that are drawn."""

TOLERANCE = 0.01
"""Memory that grows by no more than this share of itself in the second half has stopped growing."""

SHORTEST_MINUTES = 5.0
"""Below which memory still fills up, so that its growth says nothing."""

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


@dataclass(frozen=True)
class SoakEffort(Effort):
    """How long, and how often the memory is looked at."""

    minutes: Annotated[float, typer.Option(help="How long.", min=0.5)] = 10.0
    callers: Annotated[int, typer.Option(help="At once, each a process.", min=1)] = 4
    every_seconds: float = 2.0

    takes_time = ("minutes",)


def measure(context: Context[SoakEffort], server: ModelServer) -> Document:
    """Stylize images of changing sizes for minutes, and exit with 1 if memory grows on or a request fails."""
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
    """Seconds since the beginning, and samples of the memory in MiB by processes."""
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
                f"{now:.0f} s: " + ", ".join(f"{name} {mib[-1]:.0f} MiB" for name, mib in memory.items())
            )
        time.sleep(context.effort.every_seconds)
    return times, memory


def trend(seconds: Sequence[float], mib: Sequence[float]) -> Trend:
    """Of samples of memory at `seconds`; their second half must hold five or more."""
    times, values = np.asarray(seconds), np.asarray(mib)
    late = times >= times[0] + (times[-1] - times[0]) / 2.0
    times, values = times[late] - times[late].mean(), values[late]
    slope = float(times @ values / (times @ times))
    residuals = values - values.mean() - slope * times
    # Memory that is up stays up: n samples, each correlated with the one before, count as fewer independent ones.
    power = float(residuals @ residuals)
    correlation = float(residuals[1:] @ residuals[:-1]) / power if power > 0 else 0.0
    independent = len(times) * (1.0 - max(0.0, correlation)) / (1.0 + max(0.0, correlation))
    deviation = (power / max(1.0, independent - 2.0) / float(times @ times)) ** 0.5
    span = float(times[-1] - times[0])
    level, growth, error = float(np.median(values)), slope * span, deviation * span
    return Trend(level, growth, error, growth - 2.0 * error > TOLERANCE * level)


def latency_drift(requests: Sequence[Call]) -> float | None:
    """How long an image takes in the last third against the middle one, for the sizes that come again.

    The median over the sizes of the ratio of medians; None if no size was asked for in both. The first third is
    not looked at: first images of a shape are slower.
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
    """A process's resident set in MiB; 0 for one that has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def tables(document: Document) -> list[str]:
    """Whether memory stopped growing."""
    errors, drift = document["errors"], document["latency_drift"]
    too_short = document["minutes"] < SHORTEST_MINUTES
    trends = columns(
        "processes   | at the start | at half time    | at the end",
        "{processes} | {start:.0f}  | {half_time:.0f} | {end:.0f}",
    )
    trends["rise in the second half"] = lambda row: f"{row['growth']:+.1f} ± {2 * row['error']:.1f}"
    trends["verdict"] = lambda row: "too short to say" if too_short else "grew" if row["grew"] else "stopped"
    latency = "Latency was not compared."
    if drift is not None:
        latency = f"The last third took {drift:.3f} of the middle's time"
        latency += " (*unstable*)." if document["latency_unstable"] else "."
    return [
        f"`{document['model']['name']}`.",
        "",
        f"For {document['minutes']:g} minutes, {document['callers']} callers: {document['requests']:,} images of "
        f"{document['shapes']:,} sizes, {sum(errors.values())} errors. {latency}",
        "",
        "Resident memory, MiB. A line is fitted to the second half; memory grew if the line rises by more than "
        "1 % of the median, by more than twice the error of that rise:",
        "",
        *table([{"processes": name, **trend} for name, trend in document["trends"].items()], trends),
        *(["", *(f"- {count} x {error}" for error, count in errors.items())] if errors else []),
    ]


def plot(own: Mapping[str, Document], machine: str) -> Plot | None:
    """The optimisation's peak by size (from `gatys`), and what the processes of serving hold."""
    peaks = {f"optimisation, {row['size']}²": row["peak_mib"] for row in own.get("gatys", {}).get("iterations", ())}
    trends = own.get("soak", {}).get("trends", {})
    bars = peaks | {f"serving: {name}, peak": processes["peak"] for name, processes in trends.items()}
    if not bars:
        return None
    with figure("memory", f"Resident memory\n{machine}") as (axes, finish):
        drawn = axes.barh(list(bars), list(bars.values()), color=["C0"] * len(peaks) + ["C1"] * len(trends))
        axes.bar_label(drawn, [f"{value:,.0f} MiB" for value in bars.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.25 * max(bars.values())), xlabel="MiB")
        by_name = ", ".join(f"{name} {value:,.0f}" for name, value in bars.items())
        return finish(f"Resident memory on {machine}, MiB: {by_name}.")


def failure(document: Document) -> str | None:
    """What grew, and what failed."""
    if document["passed"]:
        return None
    grown = [name for name, own in document["trends"].items() if own["grew"]]
    failed = sum(document["errors"].values())
    return f"memory that grew: {', '.join(grown) or 'none'}; requests that failed: {failed}"


SUITE = Suite(
    name="soak",
    title="Memory of serving",
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
