"""Concurrent clients of a served style, one process each: their latencies, and the server's counters meanwhile.

They are processes since real clients are other programs, and threads would wait for each other at Python's global
interpreter lock while they pack and unpack pixels. Nothing here imports torch, so that a client starts fast and stays
small. Times are those of `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nst_bench.measure import TIMEOUT_SECONDS, UNSTABLE, summarize
from nst_bench.workers import Task, Worker, answers
from nst_client import AsyncStyleClient, ServiceError, Statistics, StyleClient
from nst_core.images import Pixels
from nst_core.process import keep_freed_memory

if TYPE_CHECKING:
    from nst_bench.served.server import ModelServer

HEAD_START_SECONDS = 0.2
"""Time between assigning tasks and the common start, in which images reach the processes."""

COUNTERS_TIMEOUT_SECONDS = 5.0
"""How long the server may take to count what it answered."""

Document = dict[str, Any]

Stylize = Callable[[Pixels], object]
"""Requests one image; passed to a client's tasks."""


class Call(NamedTuple):
    """A request: when it was due and answered, in seconds; optionally its size (height, width) and error."""

    due: float
    done: float
    size: tuple[int, int] | None = None
    error: str | None = None

    @property
    def seconds(self) -> float:
        """The latency that the client sees."""
        return self.done - self.due


@dataclass(frozen=True)
class Callers:
    """Client processes for a style at `url`."""

    workers: Sequence[Worker]
    url: str
    style: str

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return [worker.pid for worker in self.workers]

    def assign(self, tasks: Sequence[Task]) -> Callable[[], list[Any]]:
        """Give each of the first clients a task, which takes a `Stylize`; return a function that waits for the answers.

        That function raises the first `NstError` of a client after all have answered.
        """
        busy = self.workers[: len(tasks)]
        for worker, task in zip(busy, tasks, strict=True):
            worker.give(task)
        return partial(answers, busy)

    def closed_loop(self, count: int, requests: int, pixels: Pixels) -> list[Call]:
        """Send `requests` images from `count` concurrent clients, each of which sends again after each answer."""
        size = pixels.shape[:2]
        return self.mixed_sizes(pixels, [len(range(position, requests, count)) * [size] for position in range(count)])

    def mixed_sizes(self, photograph: Pixels, parts: Sequence[Sequence[tuple[int, int]]]) -> list[Call]:
        """Run a closed loop with one client per part: crops of the photograph of these sizes (height, width)."""
        begin = time.monotonic() + HEAD_START_SECONDS
        return self._calls([partial(send_in_turn, photograph, sizes, begin) for sizes in parts])

    def open_loop(self, offsets: Sequence[float], pixels: Pixels) -> list[Call]:
        """Send an image at each of `offsets` (seconds) from one process, without waiting for earlier answers.

        Latency counts from the due time, even if the request was sent later.
        """
        return self._calls([partial(_send_at, self.url, self.style, pixels, offsets)])

    def _calls(self, tasks: Sequence[Task]) -> list[Call]:
        return sorted(call for calls in self.assign(tasks)() for call in calls)


@contextmanager
def start_callers(count: int, url: str, style: str, *, shared_memory: bool = False) -> Iterator[Callers]:
    """Start `count` warm clients of a style at `url`; their processes end with the block.

    Images go over the network, or by shared memory if asked for; unlike `StyleClient`, there is no automatic choice.
    """
    with ExitStack() as stack:
        client = partial(_client, url, style, shared_memory)
        callers = Callers([stack.enter_context(Worker(client)) for _ in range(count)], url, style)
        callers.assign(count * [_ready])()
        yield callers


def _client(url: str, style: str, shared_memory: bool) -> Stylize:
    """Make the client in its process, with the allocator settings of nst's commands."""
    keep_freed_memory()
    client = StyleClient(url, timeout=TIMEOUT_SECONDS, retries=0, shared_memory=shared_memory)
    client.styles()
    return partial(client.stylize, style=style)


def _ready(stylize: Stylize) -> None:
    """Do nothing but answer."""


def send_in_turn(photograph: Pixels, sizes: Sequence[tuple[int, int]], begin: float, stylize: Stylize) -> list[Call]:
    """Task: from `begin` on, send crops of these sizes (height, width), each after the previous answer."""
    crops = {(height, width): np.ascontiguousarray(photograph[:height, :width]) for height, width in sizes}
    time.sleep(max(0.0, begin - time.monotonic()))
    calls = []
    for size in sizes:
        due = time.monotonic()
        stylize(crops[size])
        calls.append(Call(due, time.monotonic()))
    return calls


def _send_at(url: str, style: str, pixels: Pixels, offsets: Sequence[float], _: Stylize) -> list[Call]:
    async def send() -> list[Call]:
        async with AsyncStyleClient(url, timeout=TIMEOUT_SECONDS, retries=0, shared_memory=False) as client:
            await client.styles()
            begin = time.monotonic() + HEAD_START_SECONDS

            async def call(due: float) -> Call:
                await asyncio.sleep(due - time.monotonic())
                await client.stylize(pixels, style)
                return Call(due, time.monotonic())

            return await asyncio.gather(*(call(begin + offset) for offset in offsets))

    return asyncio.run(send())


def send_changing_sizes(
    photograph: Pixels,
    sizes: Sequence[tuple[int, int]],
    min_side: int,
    seconds: float,
    seed: int,
    stylize: Stylize,
) -> list[Call]:
    """Task: send crops of the photograph, alternating `sizes` and random sides of at least `min_side`."""
    generator = random.Random(seed)
    end = time.monotonic() + seconds
    calls: list[Call] = []
    while (sent := time.monotonic()) < end:
        turn, odd = divmod(len(calls), 2)
        height, width = sizes[turn % len(sizes)]
        if odd:
            height, width = (generator.randint(min_side, side) for side in photograph.shape[:2])
        error = None
        try:
            stylize(photograph[:height, :width])
        except ServiceError as failure:
            error = f"{type(failure).__name__}: {failure}"
        calls.append(Call(sent, time.monotonic(), (height, width), error))
    return calls


@dataclass(frozen=True)
class Turn:
    """Calls, and the server's counts while they ran."""

    calls: list[Call]
    counted: Statistics

    @property
    def rate(self) -> float:
        """Images/s from the first call to the last answer."""
        return len(self.calls) / (max(call.done for call in self.calls) - self.calls[0].due)


def take_turn(server: ModelServer, run: Callable[[], list[Call]]) -> Turn:
    """Run calls, and read the server's counters before and after."""
    with StyleClient(server.endpoints.grpc, shared_memory=False) as client:
        before = client.statistics(server.style)
        calls = run()
        deadline = time.monotonic() + COUNTERS_TIMEOUT_SECONDS  # Triton answers first and counts after
        while True:
            counted = counted_between(before, client.statistics(server.style))
            images = sum(size * count for size, count in counted.batches.items())
            if min(counted.requests, images) >= len(calls):
                return Turn(calls, counted)
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{len(calls)} requests were answered, but the server counted {counted}; "
                    "check that nothing else uses it"
                )
            time.sleep(0.01)


def counted_between(before: Statistics, after: Statistics) -> Statistics:
    """Return what the server counted between two readings."""
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
    """Return the median of the turns' rates; `rate_spread` is their range as a share of it."""
    median = float(np.median(rates))
    spread = (max(rates) - min(rates)) / median
    return {"rate": median, "rates": list(rates), "rate_spread": spread, "rate_unstable": spread > UNSTABLE}


def summary(turns: Sequence[Turn]) -> Document:
    """Summarize the latency of turns in milliseconds, where it was spent, and the batches.

    `batch` is the mean number of images per execution of the model; a request's compute time is that of its whole
    execution. `rest` is the network and the client.
    """
    calls = [call for turn in turns for call in turn.calls]
    counted = [turn.counted for turn in turns]
    requests = [part.requests for part in counted]
    queue = float(np.average([part.queue_seconds for part in counted], weights=requests))
    compute = float(np.average([part.compute_seconds for part in counted], weights=requests))
    batches: Counter[int] = Counter()
    for part in counted:
        batches.update(part.batches)
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
