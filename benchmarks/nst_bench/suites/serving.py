"""What serving costs: a request against the bare session, many callers, and arrivals at their own times.

The bare session is the served file in this process with the config's provider, threads and instances, and
pictures in memory. It and Triton share the cores, so they never run at the same moment: both stay loaded and take
turns, in one run, so that a drift of the machine hits both alike.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from nst_bench.callers import Call, Callers, started
from nst_bench.engines import Bare, Served, photograph
from nst_bench.machine import header
from nst_bench.measure import REST, UNSTABLE, interleaved, summarize, timed
from nst_client import ServiceError, Statistics, StyleClient
from nst_core.images import Pixels

SCHEMA = "nst-bench-serving/1"
SIZES = (256, 512)
CALLERS = (1, 2, 4, 8)

BARE = "bare session"
WAYS = ("gRPC", "HTTP", "shared memory")

PERCENTILE = 95
"""Of the latency that the limit is for."""


@dataclass(frozen=True)
class Effort:
    """How long to measure, in seconds: a size's latency, a turn of `blocks` of the throughput, a rate of arrivals."""

    latency: float = 30.0
    blocks: int = 3
    turn: float = 6.0
    arrivals: float = 9.0
    probes: int = 5


FULL = Effort()
FEWEST, MOST = 20, 200
"""Requests of one way and size, and the fewest of a rate of arrivals."""


@dataclass(frozen=True)
class _Measured:
    """What is measured, and with what."""

    served: Served
    style: str
    bare: Bare
    callers: Callers
    effort: Effort
    tick: Callable[[str], None]


def measure(
    served: Served,
    *,
    sizes: tuple[int, ...] = SIZES,
    callers: tuple[int, ...] = CALLERS,
    limit: float | None = None,
    effort: Effort = FULL,
    tick: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Latency of single requests at `sizes`^2 pixels, then at the last of them throughput and arrivals; a document.

    `limit` is for the arrivals, in milliseconds: the rate is searched at which the 95th percentile stays below;
    if not given, twice the median of a single request over gRPC.
    """
    document = header(SCHEMA)
    bare = Bare(served.folder)
    style = served.style
    with started(max(callers), served.endpoints.grpc, style) as ready:
        on = _Measured(served, style, bare, ready, effort, tick)
        latency = [row for size in sizes for row in _latency(on, size)]
        size = sizes[-1]
        pixels = photograph(size, size)
        _warm_batches(on, pixels, max(callers))
        alone = {row["way"]: row for row in latency if row["size"] == size}
        throughput = _throughput(on, pixels, callers, alone[BARE]["minimum"] / 1000.0)
        arrivals = _arrivals(on, pixels, throughput["bare"]["rate"], limit or 2.0 * alone[WAYS[0]]["median"])
    return {
        **document,
        "model": _model(served, bare),
        "latency": latency,
        "throughput": throughput,
        "arrivals": arrivals,
    }


def _model(served: Served, bare: Bare) -> dict[str, Any]:
    """What is served and how, as its own folder says."""
    version = max((path for path in served.folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    verification = version / "verification.json"
    network = json.loads(verification.read_text())["network"] if verification.is_file() else {}
    return {
        "name": served.model,
        "network": network.get("name"),
        "width": network.get("width"),
        "provider": bare.provider,
        "instances": len(bare.sessions),
        "threads": bare.threads,
        "seconds_to_ready": served.seconds,
    }


def _latency(on: _Measured, size: int) -> list[dict[str, Any]]:
    """Single requests, every way in turn; each with its ratio to the bare session's median."""
    pixels = photograph(size, size)
    endpoints = on.served.endpoints
    with ExitStack() as stack:
        clients = {
            "gRPC": StyleClient(endpoints.grpc),
            "HTTP": StyleClient(endpoints.http),
            "shared memory": StyleClient(endpoints.grpc, shared_memory=True),
        }
        works: dict[str, Callable[[], object]] = {BARE: partial(on.bare.paint, pixels)}
        for way, client in clients.items():
            works[way] = partial(stack.enter_context(client).stylize, pixels, on.style)
        for work in works.values():
            work()  # the first picture of a shape is another figure
            work()
        round_seconds = timed(lambda: [work() for work in works.values()])
        rounds = min(MOST, max(FEWEST, round(on.effort.latency / round_seconds)))
        samples = interleaved(works, rounds, rest=REST)
    rows = [{"size": size, "way": way, **asdict(summarize(seconds))} for way, seconds in samples.items()]
    for row in rows:
        row["ratio"] = row["median"] / rows[0]["median"]
    served = ", ".join(f"{row['way']} {row['ratio']:.3f}" for row in rows[1:])
    on.tick(f"{size} x {size}: {rows[0]['median']:.1f} ms bare; times as long: {served}")
    return rows


def _warm_batches(on: _Measured, pixels: Pixels, largest: int) -> None:
    """Every size of batch that callers at once can make is a shape of its own, and its first run is slower."""
    with StyleClient(on.served.endpoints.grpc, timeout=300.0) as client:
        for size in range(1, largest + 1):
            client.stylize(np.repeat(pixels[None], size, axis=0), on.style)


def _throughput(on: _Measured, pixels: Pixels, callers: Sequence[int], alone: float) -> dict[str, Any]:
    """Pictures a second with so many callers, and of the bare sessions together, in `blocks` of a turn each.

    A turn is a fixed number of pictures, two a caller or more, of `alone` seconds each, and its time ends with
    the last: with more than one instance some are idle then, which is held against either side alike.
    """
    most = max(callers)
    wanted = on.effort.turn * len(on.bare.sessions) / alone
    requests = most * max(2, math.ceil(wanted / most))
    rates: list[float] = []
    turns: dict[int, list[Turn]] = {count: [] for count in callers}
    for _ in range(on.effort.blocks):
        rates.append(requests / on.bare.together(pixels, requests))
        for count in callers:
            turns[count].append(_turn(on, partial(on.callers.together, count, requests, pixels)))
    rows = []
    for count, own in turns.items():
        ratios = [turn.rate / rate for turn, rate in zip(own, rates, strict=True)]
        row = {"callers": count, **_rate([turn.rate for turn in own]), "ratio": float(np.median(ratios))}
        rows.append(row | summary(own))
        on.tick(f"{count} callers: {row['rate']:.2f} pictures a second, {row['ratio']:.3f} of the bare sessions'")
    return {"size": len(pixels), "requests": requests, "bare": _rate(rates), "rows": rows}


def _arrivals(on: _Measured, pixels: Pixels, capacity: float, limit: float) -> dict[str, Any]:
    """Latency at rates of arrival, and by bisection the highest rate at which its percentile is within `limit` (ms).

    Requests come as a Poisson process, whatever became of those before. The rates lie below `capacity`, pictures a
    second, which the bare sessions reach.
    """
    low, high, rows = 0.0, capacity, []
    for number in range(on.effort.probes):
        rate = (low + high) / 2.0
        count = max(FEWEST, round(rate * on.effort.arrivals))
        offsets = np.cumsum(np.random.default_rng(number).exponential(1.0 / rate, count)).tolist()
        turn = _turn(on, partial(on.callers.arriving, offsets, pixels))
        row = {"rate": rate, **summary([turn])}
        row["within"] = row[f"p{PERCENTILE}"] <= limit
        low, high = (rate, high) if row["within"] else (low, rate)
        rows.append(row)
        on.tick(f"{rate:.2f} arrivals a second: {PERCENTILE} % within {row[f'p{PERCENTILE}']:.0f} ms")
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
    with StyleClient(on.served.endpoints.grpc) as client:
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
        after.pictures - before.pictures,
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
        "batch": sum(one.pictures for one in counted) / sum(one.executions for one in counted),
        "batches": {str(size): count for size, count in sorted(batches.items())},
        "mean": 1000.0 * mean,
        "queue": 1000.0 * queue,
        "compute": 1000.0 * compute,
        "rest": 1000.0 * (mean - queue - compute),
    }
