"""What serving costs: a request against the bare session, many callers, mixed sizes, and arrivals at their own times.

The bare session is the served model in this process with the engine, threads and instances of its config, and
pictures in memory. It and Triton share the machine, so they never run at the same moment: both stay loaded and take
turns, in one run, so that a drift of the machine hits both alike.

Callers at once must not be slower than one: each of their rates stands against that of one caller who paints the same
pictures, of one size and of mixed sizes.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from nst_bench.engines.bare import BareModel
from nst_bench.machine.description import document_header
from nst_bench.measure import REST, UNSTABLE, interleaved, summarize, timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import Call, Callers, start_callers
from nst_bench.served.server import ModelServer
from nst_client import ServiceError, Statistics, StyleClient
from nst_core.images import Pixels

SCHEMA = "nst-bench-serving/1"

BARE = "bare session"
WAYS = ("gRPC", "HTTP", "shared memory")

APART, CHANGING = "each caller another size", "each caller changes sizes"
"""The mixtures of sizes."""

PERCENTILE = 95
"""Of the latency that the limit is for."""


@dataclass(frozen=True)
class Effort:
    """How long to measure, in seconds: a size's latency, a turn of `blocks` of the throughput, a rate of arrivals.

    `sizes` are the sides of the pictures of single requests, `loaded` of those that `callers` ask for at once, and
    arrivals come at the last of `loaded`. `mixed` are the callers of mixed sizes, of sides within `sides`, whose turns
    take `mixed_turn`.
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

    def scaled(self, share: float) -> Effort:
        """For a share of the time."""
        if share >= 1.0:
            return self
        turns = {name: share * getattr(self, name) for name in ("latency", "turn", "arrivals", "mixed_turn")}
        return replace(self, **turns, probes=max(2, round(share * self.probes)))


FULL = Effort(mixed=(4,))
CARD = Effort(4.0, 2, 1.0, 2.0, 4, loaded=(256, 512), callers=(1, 2, 4, 8, 32), mixed=(8, 32), mixed_turn=1.0)
"""On a GPU, where a picture takes milliseconds."""

CARD_SHORT = Effort(2.0, 2, 0.7, 1.0, 0, loaded=(512,), callers=(1, 8, 32), mixed=(8,), mixed_turn=0.7)
"""A further model on a GPU."""

FEWEST, MOST = 20, 200
"""Requests of one way and size, and the fewest of a rate of arrivals."""


@dataclass(frozen=True)
class _Measured:
    """What is measured, and with what."""

    served: ModelServer
    style: str
    bare: BareModel
    callers: Callers
    effort: Effort
    on_progress: Callable[[str], None]


def measure(
    served: ModelServer,
    *,
    limit: float | None = None,
    effort: Effort = FULL,
    on_progress: Callable[[str], None] = lambda note: None,
    keep: Callable[[dict[str, Any]], None] = lambda document: None,
) -> dict[str, Any]:
    """Latency of single requests, throughput by callers, mixed sizes, arrivals; a document.

    `limit` is for the arrivals, in milliseconds: the rate is searched at which the 95th percentile stays below;
    if not given, twice the median of a single request over gRPC. `keep` gets the document after each part.
    """
    document = document_header(SCHEMA)
    bare = BareModel(served.exported.folder)
    document["model"] = _model(served, bare)
    with start_callers(max((*effort.callers, *effort.mixed)), served.endpoints.grpc, served.style) as ready:
        on = _Measured(served, served.style, bare, ready, effort, on_progress)
        for name, part in _parts(on, limit):
            document[name] = part
            keep(document)
    return document


def _parts(on: _Measured, limit: float | None) -> Iterator[tuple[str, Any]]:
    """What a document holds, in the order of importance."""
    effort = on.effort
    latency = [row for size in effort.sizes for row in _latency(on, size)]
    yield "latency", latency
    loads = []
    for size in reversed(effort.loaded):
        pixels = sample_photograph(size, size)
        _warm_batches(on, pixels, max(effort.callers))
        loads.append(_throughput(on, pixels, _alone(on, pixels)))
    yield "throughput", loads[0]
    yield "throughput_by_size", loads[1:]
    if effort.mixed:
        mixed = [row for count in effort.mixed for row in _mixed(on, count)]
        yield "mixed", {"sides": list(effort.sides), "rows": mixed}
        yield "slowest_against_one", slowest(loads, mixed)
    if effort.probes:
        size = effort.loaded[-1]
        single = next((row["median"] for row in latency if (row["size"], row["way"]) == (size, WAYS[0])), None)
        single = single or 1000.0 * _alone(on, sample_photograph(size, size))
        most = loads[0]["bare"]["rate"] if on.bare.threads else max(row["rate"] for row in loads[0]["rows"])
        yield "arrivals", _arrivals(on, sample_photograph(size, size), most, limit or 2.0 * single)


def _model(served: ModelServer, bare: BareModel) -> dict[str, Any]:
    """What is served and how, as its own folder says."""
    exported = served.exported
    verification = exported.version / "verification.json"
    network = json.loads(verification.read_text())["network"] if verification.is_file() else {}
    return {
        "name": served.model,
        "network": network.get("name"),
        "width": network.get("width"),
        "styles": len(exported.styles),
        "precision": exported.precision,
        "provider": bare.provider,
        "instances": len(bare.sessions),
        "threads": bare.threads,
        "seconds_to_ready": served.seconds,
    }


def _latency(on: _Measured, size: int) -> list[dict[str, Any]]:
    """Single requests, every way in turn; each with its ratio to the bare session's median."""
    pixels = sample_photograph(size, size)
    endpoints = on.served.endpoints
    with ExitStack() as stack:
        clients = {
            "gRPC": StyleClient(endpoints.grpc, shared_memory=False),
            "HTTP": StyleClient(endpoints.http, shared_memory=False),
            "shared memory": StyleClient(endpoints.grpc, shared_memory=True),
        }
        works: dict[str, Callable[[], object]] = {BARE: partial(on.bare.stylize, pixels)}
        for way, client in clients.items():
            works[way] = partial(stack.enter_context(client).stylize, pixels, on.style)
        for work in works.values():
            work()  # the first picture of a shape is another figure
            work()
        round_seconds = timed(lambda: [work() for work in works.values()]) + REST * len(works)
        rounds = min(MOST, max(FEWEST, round(on.effort.latency / round_seconds)))
        samples = interleaved(works, rounds, rest=REST)
    rows = [{"size": size, "way": way, **asdict(summarize(seconds))} for way, seconds in samples.items()]
    for row in rows:
        row["ratio"] = row["median"] / rows[0]["median"]
    served = ", ".join(f"{row['way']} {row['ratio']:.3f}" for row in rows[1:])
    on.on_progress(f"{size} x {size}: {rows[0]['median']:.1f} ms bare; times as long: {served}")
    return rows


def _alone(on: _Measured, pixels: Pixels) -> float:
    """Seconds of a single warm request over gRPC."""
    with StyleClient(on.served.endpoints.grpc, timeout=300.0, shared_memory=False) as client:
        client.stylize(pixels, on.style)
        return min(timed(partial(client.stylize, pixels, on.style)) for _ in range(3))


def _warm_batches(on: _Measured, pixels: Pixels, largest: int) -> None:
    """Every size of batch that callers at once can make is a shape of its own, and its first run is slower."""
    config = on.served.exported.config
    if not config.HasField("dynamic_batching"):
        return
    with StyleClient(on.served.endpoints.grpc, timeout=300.0, shared_memory=False) as client:
        for size in range(1, min(largest, config.max_batch_size) + 1):
            client.stylize(np.repeat(pixels[None], size, axis=0), on.style)


def _throughput(on: _Measured, pixels: Pixels, alone: float) -> dict[str, Any]:
    """Pictures a second by callers, and of the bare sessions together, in `blocks` of a turn each.

    A turn is a fixed number of pictures, two a caller or more, of `alone` seconds each, and its time ends with
    the last: with more than one instance some are idle then, which is held against either side alike.
    """
    callers = on.effort.callers
    most = max(callers)
    wanted = on.effort.turn * len(on.bare.sessions) / alone
    requests = most * max(2, math.ceil(wanted / most))
    rates: list[float] = []
    turns: dict[int, list[Turn]] = {count: [] for count in callers}
    on.callers.closed_loop(most, 2 * most, pixels)
    for _ in range(on.effort.blocks):
        rates.append(requests / on.bare.seconds_for(pixels, requests))
        for count in callers:
            turns[count].append(_turn(on, partial(on.callers.closed_loop, count, requests, pixels)))
    one = [turn.rate for turn in turns.get(1, [])]
    rows = []
    for count, own in turns.items():
        row = {"callers": count, **_rate([turn.rate for turn in own]), "ratio": _over(own, rates)}
        against = {"against_one": _over(own, one)} if one else {}
        rows.append(row | against | summary(own))
        on.on_progress(
            f"{count} callers: {row['rate']:.2f} pictures a second, {row['ratio']:.3f} of the bare sessions'"
        )
    return {"size": len(pixels), "requests": requests, "bare": _rate(rates), "rows": rows}


def _mixed(on: _Measured, count: int) -> list[dict[str, Any]]:
    """Pictures a second of `count` callers and as many sizes, against one caller that paints the same pictures.

    Every size comes equally often, in a turn of all: one caller takes them in turn; callers at once have a size of
    their own each, or take all in turn, each beginning with another.
    """
    sizes = mixture(count, *on.effort.sides)
    photo = sample_photograph(*(max(side) for side in zip(*sizes, strict=True)))
    on.callers.mixed_sizes(photo, [sizes])
    warm = on.callers.mixed_sizes(photo, [sizes])
    each = max(2, math.ceil(on.effort.mixed_turn / sum(call.seconds for call in warm)))
    orders = {
        None: [each * sizes],
        APART: [each * [size] for size in sizes],
        CHANGING: [[sizes[(caller + turn) % count] for turn in range(each)] for caller in range(count)],
    }
    for order in orders.values():
        on.callers.mixed_sizes(photo, order)  # batches of sizes that have not met are first ones
    turns: dict[str | None, list[Turn]] = {mixture: [] for mixture in orders}
    for _ in range(on.effort.blocks):
        for name, order in orders.items():
            turns[name].append(_turn(on, partial(on.callers.mixed_sizes, photo, order)))
    one = [turn.rate for turn in turns.pop(None)]
    rows = []
    for name, own in turns.items():
        row = {"mixture": name, "callers": count, **_rate([turn.rate for turn in own])}
        rows.append(row | {"one_caller": float(np.median(one)), "against_one": _over(own, one)} | summary(own))
        on.on_progress(
            f"{count} callers, {name}: {row['rate']:.2f} pictures a second; one caller: {np.median(one):.2f}"
        )
    return rows


def mixture(count: int, smallest: int, largest: int) -> list[tuple[int, int]]:
    """`count` sizes (height, width), no two the same, of sides from `smallest` to `largest`; always the same ones."""
    drawn = np.random.default_rng(0)
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        height, width = drawn.integers(smallest, largest, size=2, endpoint=True).tolist()
        found[height, width] = None
    return list(found)


def slowest(loads: Sequence[dict[str, Any]], mixed: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The lowest rate of callers at once against one caller's, of one size and of mixed sizes, and whose it is."""
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
    """The median of the turns' rates over those of the same blocks."""
    return float(np.median([turn.rate / rate for turn, rate in zip(own, rates, strict=True)]))


def _arrivals(on: _Measured, pixels: Pixels, capacity: float, limit: float) -> dict[str, Any]:
    """Latency at rates of arrival, and by bisection the highest rate at which its percentile is within `limit` (ms).

    Requests come as a Poisson process, whatever became of those before. The rates lie below `capacity`, pictures a
    second, which the bare sessions reach, or callers at once where the transport is slower than they are.
    """
    low, high, rows = 0.0, capacity, []
    for number in range(on.effort.probes):
        rate = (low + high) / 2.0
        count = max(FEWEST, round(rate * on.effort.arrivals))
        offsets = np.cumsum(np.random.default_rng(number).exponential(1.0 / rate, count)).tolist()
        turn = _turn(on, partial(on.callers.open_loop, offsets, pixels))
        row = {"rate": rate, **summary([turn])}
        row["within"] = row[f"p{PERCENTILE}"] <= limit
        low, high = (rate, high) if row["within"] else (low, rate)
        rows.append(row)
        on.on_progress(f"{rate:.2f} arrivals a second: {PERCENTILE} % within {row[f'p{PERCENTILE}']:.0f} ms")
    rows.sort(key=lambda row: row["rate"])
    return {"size": len(pixels), "limit": limit, "percentile": PERCENTILE, "rate": low or None, "rows": rows}


@dataclass(frozen=True)
class Turn:
    """Calls, and what the server counted while they ran."""

    calls: list[Call]
    counted: Statistics

    @property
    def rate(self) -> float:
        """Pictures a second, from the first call to the last answer."""
        return len(self.calls) / (max(call.done for call in self.calls) - self.calls[0].due)


def _turn(on: _Measured, run: Callable[[], list[Call]]) -> Turn:
    with StyleClient(on.served.endpoints.grpc, shared_memory=False) as client:
        before = client.statistics(on.style)
        calls = run()
        deadline = time.monotonic() + 5.0  # Triton answers first and counts after, requests before batches
        while True:
            counted = between(before, client.statistics(on.style))
            pictures = sum(size * count for size, count in counted.batches.items())
            if min(counted.requests, pictures) >= len(calls):
                return Turn(calls, counted)
            if time.monotonic() > deadline:
                raise ServiceError(f"{len(calls)} requests were answered, and the server counted {counted}")
            time.sleep(0.01)


def between(before: Statistics, after: Statistics) -> Statistics:
    """What the server counted from one moment to a later one."""
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


def _rate(rates: Sequence[float]) -> dict[str, Any]:
    """The median of the turns' rates; `spread` is their range as a share of it."""
    median = float(np.median(rates))
    spread = (max(rates) - min(rates)) / median
    return {"rate": median, "rates": list(rates), "rate_spread": spread, "rate_unstable": spread > UNSTABLE}


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """Latency in milliseconds, where it was spent, and the real batches, of turns together.

    `batch` is the mean number of pictures in a run of the model; a request's compute time is that of its whole
    run. What is left of its latency is the network and the client.
    """
    calls = [call for turn in turns for call in turn.calls]
    counted = [turn.counted for turn in turns]
    requests = sum(one.requests for one in counted)
    batches: Counter[int] = Counter()
    for one in counted:
        batches.update(one.batches)
    queue = sum(one.queue_seconds * one.requests for one in counted) / requests
    compute = sum(one.compute_seconds * one.requests for one in counted) / requests
    mean = float(np.mean([call.seconds for call in calls]))
    return {
        **asdict(summarize([call.seconds for call in calls])),
        "batch": sum(one.images for one in counted) / sum(one.executions for one in counted),
        "batches": {str(size): count for size, count in sorted(batches.items())},
        "mean": 1000.0 * mean,
        "queue": 1000.0 * queue,
        "compute": 1000.0 * compute,
        "rest": 1000.0 * (mean - queue - compute),
    }
