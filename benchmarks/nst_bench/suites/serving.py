"""Serving: latency against an in-process session, concurrent clients, mixed sizes, and Poisson arrivals.

The in-process session ("bare session" in documents) is the served model in this process, with the engine, threads and
instances of its config and images in memory. It shares the machine with Triton, so both stay loaded and take turns in
one run; a drift of the machine affects both alike. Concurrent clients must not be slower than one client: each of
their rates is compared with that of one client that sends the same images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from nst_bench.drawing.serving import plot, tables
from nst_bench.drawing.words import shown
from nst_bench.engines.base import Stylize
from nst_bench.engines.baseline import Baseline
from nst_bench.measure import against_first, in_turns, timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import Callers, Turn, rate_of, start_callers, summary, take_turn
from nst_bench.served.resources import served_model
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_core.images import Pixels

BARE = "bare session"
WAYS = ("gRPC", "HTTP", "shared memory")

APART, CHANGING = "each caller another size", "each caller changes sizes"
"""How mixed sizes are spread over clients."""

PERCENTILE = 95
"""Percentile of the latency that must be within the limit."""

FEWEST_REQUESTS, MOST_REQUESTS = 20, 200
"""Requests per way and size; the minimum applies to a rate of arrivals, too."""


@dataclass(frozen=True)
class ServingEffort(Effort):
    """Seconds for the latency of a size, for one of `blocks` turns of throughput, and for a rate of arrivals.

    `sizes` are the image sides of single requests, `loaded` those of concurrent clients, of which `callers` gives the
    numbers; arrivals use the last of `loaded`. `mixed` gives the numbers of clients with mixed sizes of sides within
    `sides`, whose turns take `mixed_turn` seconds. `limit` is the latency limit of the arrivals in milliseconds: the
    highest rate whose 95th percentile stays within it is searched.
    """

    latency: float = 30.0
    blocks: int = 3
    turn: float = 6.0
    arrivals: float = 9.0
    probes: int = 5
    sizes: tuple[int, ...] = (256, 512)
    loaded: tuple[int, ...] = (512,)
    callers: tuple[int, ...] = (1, 2, 4, 8)
    mixed: tuple[int, ...] = ()
    mixed_turn: float = 2.0
    sides: tuple[int, int] = (128, 640)
    limit: Annotated[
        float | None,
        typer.Option(
            help="Latency limit for 95 % of the requests, in ms; by default twice the latency of a single request.",
            min=1.0,
            rich_help_panel="Tuning",
        ),
    ] = None

    takes_time = ("latency", "turn", "arrivals", "mixed_turn", "probes")


@dataclass(frozen=True)
class _Setup:
    """What is measured, and with what; `ways` call the server, by protocol."""

    server: ModelServer
    bare: Baseline
    callers: Callers
    ways: Mapping[str, Stylize]
    effort: ServingEffort
    on_progress: Callable[[str], None]

    def seconds_alone(self, pixels: Pixels) -> float:
        """Return the seconds of a single warm request over gRPC."""
        return min(timed(partial(self.ways["gRPC"], pixels)) for _ in range(4))


def measure(context: Context[ServingEffort], server: ModelServer) -> Document:
    """Measure serving: latency, throughput and arrival rates.

    Measures single requests against an in-process session, concurrent clients, mixed sizes, and the highest rate of
    Poisson arrivals within a latency limit. Takes about five minutes, on a GPU two.
    """
    bare, effort = Baseline(server.exported.folder), context.effort
    document: Document = {"model": _model(server, bare)}
    count = max((*effort.callers, *effort.mixed))
    with ExitStack() as stack:
        callers = stack.enter_context(start_callers(count, server.endpoints.grpc, server.style))
        setup = _Setup(server, bare, callers, server.ways(stack), effort, context.on_progress)
        for name, part in _parts(setup):
            document[name] = part
            context.keep(document)
    return document


def _parts(setup: _Setup) -> Iterator[tuple[str, Any]]:
    """Yield the parts of the document, the most important first."""
    effort = setup.effort
    latency = [row for size in effort.sizes for row in _latency(setup, size)]
    yield "latency", latency
    loads = []
    for size in reversed(effort.loaded):
        pixels = sample_photograph(size, size)
        _warm_batches(setup, pixels, max(effort.callers))
        loads.append(_throughput(setup, pixels, setup.seconds_alone(pixels)))
    yield "throughput", loads[0]
    yield "throughput_by_size", loads[1:]
    if effort.mixed:
        mixed = [row for count in effort.mixed for row in _mixed(setup, count)]
        yield "mixed", {"sides": list(effort.sides), "rows": mixed}
        yield "slowest_against_one", slowest(loads, mixed)
    if effort.probes:
        pixels = sample_photograph(effort.loaded[-1], effort.loaded[-1])
        single = [row["median"] for row in latency if (row["size"], row["way"]) == (len(pixels), WAYS[0])]
        limit = effort.limit or 2.0 * (single[0] if single else 1000.0 * setup.seconds_alone(pixels))
        bare_rate = loads[0]["bare"]["rate"]
        highest = bare_rate if setup.bare.threads else max(row["rate"] for row in loads[0]["rows"])
        yield "arrivals", _arrivals(setup, pixels, highest, limit)


def _model(server: ModelServer, bare: Baseline) -> Document:
    """Describe the served model and its settings."""
    exported = server.exported
    verification = exported.version / "verification.json"
    network = json.loads(verification.read_text())["network"] if verification.is_file() else {}
    return {
        "name": server.model,
        "network": network.get("name"),
        "width": network.get("width"),
        "styles": len(exported.styles),
        "precision": exported.precision,
        "provider": bare.provider,
        "instances": len(bare.sessions),
        "threads": bare.threads,
        "seconds_to_ready": server.seconds,
    }


def _latency(setup: _Setup, size: int) -> list[Document]:
    """Measure single requests, each way in turn, with the ratio to the in-process session's median."""
    pixels = sample_photograph(size, size)
    works = {BARE: partial(setup.bare.stylize, pixels), **{way: partial(setup.ways[way], pixels) for way in WAYS}}
    summaries = in_turns(works, setup.effort.latency, FEWEST_REQUESTS, MOST_REQUESTS)
    rows = [{"size": size, "way": way, **row} for way, row in against_first(summaries).items()]
    ratios = ", ".join(f"{row['way']} {row['ratio']:.3f}" for row in rows[1:])
    setup.on_progress(f"{size} x {size}: {rows[0]['median']:.1f} ms in-process; relative to it: {ratios}")
    return rows


def _warm_batches(setup: _Setup, pixels: Pixels, largest: int) -> None:
    """Run every batch size that concurrent clients can cause: each is a shape whose first run is slower."""
    config = setup.server.exported.config
    if config.HasField("dynamic_batching"):
        for size in range(1, min(largest, config.max_batch_size) + 1):
            setup.ways["gRPC"](np.repeat(pixels[None], size, axis=0))


def _throughput(setup: _Setup, pixels: Pixels, alone: float) -> Document:
    """Measure images/s by number of clients, and of the in-process sessions together, in `blocks` turns each.

    A turn is a fixed number of images, at least two per client, of about `alone` seconds each, and ends with the last
    answer. With several instances some are idle at the end, which affects both sides alike.
    """
    counts = setup.effort.callers
    most = max(counts)
    wanted = setup.effort.turn * len(setup.bare.sessions) / alone
    requests = most * max(2, math.ceil(wanted / most))
    bare_rates: list[float] = []
    turns: dict[int, list[Turn]] = {count: [] for count in counts}
    setup.callers.closed_loop(most, 2 * most, pixels)
    for _ in range(setup.effort.blocks):
        bare_rates.append(requests / setup.bare.seconds_for(pixels, requests))
        for count in counts:
            turns[count].append(take_turn(setup.server, partial(setup.callers.closed_loop, count, requests, pixels)))
    single = [turn.rate for turn in turns.get(1, [])]
    rows = []
    for count, own in turns.items():
        row = {"callers": count, **rate_of([turn.rate for turn in own]), "ratio": _over(own, bare_rates)}
        against = {"against_one": _over(own, single)} if single else {}
        rows.append(row | against | summary(own))
        rate = f"{row['rate']:.2f} images/s, {row['ratio']:.3f} of the in-process sessions"
        setup.on_progress(f"{count} clients: {rate}")
    return {"size": len(pixels), "requests": requests, "bare": rate_of(bare_rates), "rows": rows}


def _mixed(setup: _Setup, count: int) -> list[Document]:
    """Measure images/s of `count` clients with as many sizes, against one client with the same images.

    Every size occurs equally often. One client sends them in turn; concurrent clients have one size each, or send all
    sizes in turn, each starting with another.
    """
    sizes, callers = mixture(count, *setup.effort.sides), setup.callers
    photo = sample_photograph(*(max(side) for side in zip(*sizes, strict=True)))
    callers.mixed_sizes(photo, [sizes])
    warm = callers.mixed_sizes(photo, [sizes])
    each = max(2, math.ceil(setup.effort.mixed_turn / sum(call.seconds for call in warm)))
    orders = {
        None: [each * sizes],
        APART: [each * [size] for size in sizes],
        CHANGING: [[sizes[(caller + turn) % count] for turn in range(each)] for caller in range(count)],
    }
    for order in orders.values():
        callers.mixed_sizes(photo, order)  # warm up the batches that these sizes cause
    turns: dict[str | None, list[Turn]] = {name: [] for name in orders}
    for _ in range(setup.effort.blocks):
        for name, order in orders.items():
            turns[name].append(take_turn(setup.server, partial(callers.mixed_sizes, photo, order)))
    single = [turn.rate for turn in turns.pop(None)]
    rate = float(np.median(single))
    rows = []
    for name, own in turns.items():
        row = {"mixture": name, "callers": count, **rate_of([turn.rate for turn in own])}
        rows.append(row | {"one_caller": rate, "against_one": _over(own, single)} | summary(own))
        note = f"{count} clients, {shown(name or '')}: {row['rate']:.2f} images/s; one client: {rate:.2f} images/s"
        setup.on_progress(note)
    return rows


def mixture(count: int, smallest: int, largest: int) -> list[tuple[int, int]]:
    """Return `count` different sizes (height, width) with sides from `smallest` to `largest`, always the same ones."""
    drawn = np.random.default_rng(0)
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        height, width = drawn.integers(smallest, largest, size=2, endpoint=True).tolist()
        found[height, width] = None
    return list(found)


def slowest(loads: Sequence[Document], mixed: Sequence[Document]) -> Document | None:
    """Return the lowest rate of concurrent clients relative to one client, and which clients it is of."""
    found = [
        (row["against_one"], f"{row['callers']} callers at {load['size']}²")
        for load in loads
        for row in load["rows"]
        if "against_one" in row and row["callers"] > 1
    ]
    found += [(row["against_one"], f"{row['callers']} callers, {row['mixture']}") for row in mixed]
    if not found:
        return None
    ratio, who = min(found)
    return {"ratio": ratio, "who": who}


def _over(own: Sequence[Turn], rates: Sequence[float]) -> float:
    """Return the median ratio of the turns' rates to those of the same blocks."""
    return float(np.median([turn.rate / rate for turn, rate in zip(own, rates, strict=True)]))


def _arrivals(setup: _Setup, pixels: Pixels, capacity: float, limit: float) -> Document:
    """Measure latency by arrival rate, and bisect for the highest rate whose percentile is within `limit` (ms).

    Requests arrive as a Poisson process, independent of earlier answers. The rates are below `capacity` (images/s),
    the rate of the in-process sessions, or of concurrent clients if the transport is the bottleneck.
    """
    low, high, rows = 0.0, capacity, []
    for number in range(setup.effort.probes):
        rate = (low + high) / 2.0
        count = max(FEWEST_REQUESTS, round(rate * setup.effort.arrivals))
        offsets = np.cumsum(np.random.default_rng(number).exponential(1.0 / rate, count)).tolist()
        row = {"rate": rate, **summary([take_turn(setup.server, partial(setup.callers.open_loop, offsets, pixels))])}
        row["within"] = row[f"p{PERCENTILE}"] <= limit
        low, high = (rate, high) if row["within"] else (low, rate)
        rows.append(row)
        within = f"{PERCENTILE} % within {row[f'p{PERCENTILE}']:.0f} ms"
        setup.on_progress(f"{rate:.2f} arrivals/s: {within}")
    rows.sort(key=lambda row: row["rate"])
    return {"size": len(pixels), "limit": limit, "percentile": PERCENTILE, "rate": low or None, "rows": rows}


FULL = ServingEffort(mixed=(4,))
SHORTER = ServingEffort(latency=12.0, turn=3.0, arrivals=6.0, probes=3)
FURTHER = ServingEffort(latency=6.0, turn=2.0, probes=0, callers=(1, 4))
GPU = ServingEffort(
    latency=4.0,
    blocks=2,
    turn=1.0,
    arrivals=2.0,
    probes=4,
    loaded=(256, 512),
    callers=(1, 2, 4, 8, 32),
    mixed=(8, 32),
    mixed_turn=1.0,
)
"""On a GPU, an image takes milliseconds."""

GPU_FURTHER = ServingEffort(
    latency=2.0, blocks=2, turn=0.7, arrivals=1.0, probes=0, callers=(1, 8, 32), mixed=(8,), mixed_turn=0.7
)

SUITE = Suite(
    name="serving",
    title="Serving",
    resources=served_model,
    measure=measure,
    tables=tables,
    plots=(plot,),
    effort=FULL,
    on_cpu={"default": Cost(130, SHORTER), "full": Cost(320, FULL), "further": Cost(60, FURTHER)},
    on_gpu={**dict.fromkeys(("command", "default", "full"), Cost(90, GPU)), "further": Cost(40, GPU_FURTHER)},
    rank=30,
)
