"""Callers of a served style, each a process of its own.

Processes and not threads: whoever calls a server is another program, and threads of one would wait for each
other at Python's lock while they pack and unpack pixels. Nothing of torch is imported here, so that a caller
starts fast and is small. Stamps of time are those of `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from nst_client import AsyncStyleClient, ServiceError, StyleClient
from nst_core.errors import NstError
from nst_core.images import Pixels
from nst_core.memory import keep_freed_memory

TIMEOUT = 300.0
"""Seconds that a request may take; a queue that grows is to be measured, not cut short."""

HEAD_START = 0.2
"""Seconds between giving the orders and the moment at which all begin; pictures are handed over meanwhile."""

Task = Callable[[StyleClient, str], Any]
"""What a caller does with its client and the style's name; a function of a module, so that it can be sent."""


class Call(NamedTuple):
    """One request: when it was due, and when its picture was there."""

    due: float
    done: float

    @property
    def seconds(self) -> float:
        """What its caller waited."""
        return self.done - self.due


class SizedCall(NamedTuple):
    """One of changing sizes: when it was sent and how long it took (seconds), and the error, if it met one."""

    height: int
    width: int
    sent: float
    seconds: float
    error: str | None


class CallerError(NstError):
    """A caller's process ended before its answer."""


class Callers:
    """`count` processes with a client each, which take orders."""

    def __init__(self, processes: Sequence[multiprocessing.context.SpawnProcess], pipes: Sequence[Connection]) -> None:
        self._processes, self._pipes = processes, pipes

    @property
    def pids(self) -> list[int]:
        """Their processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def assign(self, orders: Sequence[Task]) -> Callable[[], list[Any]]:
        """Give the first callers an order each; what is returned waits for their answers.

        It raises the first `NstError` that a caller met, after all have answered.
        """
        pipes = self._pipes[: len(orders)]
        for pipe, order in zip(pipes, orders, strict=True):
            pipe.send(order)

        def answers() -> list[Any]:
            try:
                answers = [pipe.recv() for pipe in pipes]
            except EOFError as error:
                raise CallerError("a caller's process ended: is there enough memory?") from error
            if failed := [answer for answer in answers if isinstance(answer, NstError)]:
                raise failed[0]
            return answers

        return answers

    def closed_loop(self, count: int, requests: int, pixels: Pixels) -> list[Call]:
        """`requests` pictures from `count` callers at once, each of which sends its next when it has its last."""
        begin = time.monotonic() + HEAD_START
        shares = [len(range(position, requests, count)) for position in range(count)]
        answers = self.assign([partial(send_in_turn, pixels, share, begin) for share in shares])()
        return sorted(call for answer in answers for call in answer)

    def mixed_sizes(self, photo: Pixels, parts: Sequence[Sequence[tuple[int, int]]]) -> list[Call]:
        """A caller for each of `parts`, all at once: parts of `photo` of its sizes (height, width), in their order."""
        begin = time.monotonic() + HEAD_START
        answers = self.assign([partial(send_sizes, photo, sizes, begin) for sizes in parts])()
        return sorted(call for answer in answers for call in answer)

    def open_loop(self, offsets: Sequence[float], pixels: Pixels) -> list[Call]:
        """A picture at each of `offsets` (seconds), whatever became of those before; from one process."""
        (calls,) = self.assign([partial(send_at, pixels, offsets)])()
        return sorted(calls)


@contextmanager
def start_callers(count: int, url: str, style: str, *, shared_memory: bool = False) -> Iterator[Callers]:
    """`count` callers of a style at `url`, warm; their processes end with the block.

    Images go over the network's protocol, or by shared memory: a caller never chooses by itself, as a client does.
    """
    spawning = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes, pipes = [], []
        for _ in range(count):
            here, there = spawning.Pipe()
            process = spawning.Process(target=_serve, args=(there, url, style, shared_memory), daemon=True)
            process.start()
            there.close()  # or the end of the process would not be seen here
            stack.callback(_end, process, here)
            processes.append(process)
            pipes.append(here)
        callers = Callers(processes, pipes)
        callers.assign([_ready] * count)()
        yield callers


def send_in_turn(pixels: Pixels, requests: int, begin: float, client: StyleClient, style: str) -> list[Call]:
    """An order: from `begin` on, each request when the one before is answered."""
    time.sleep(max(0.0, begin - time.monotonic()))
    calls = []
    for _ in range(requests):
        due = time.monotonic()
        client.stylize(pixels, style)
        calls.append(Call(due, time.monotonic()))
    return calls


def send_sizes(
    photo: Pixels, sizes: Sequence[tuple[int, int]], begin: float, client: StyleClient, style: str
) -> list[Call]:
    """An order: from `begin` on, a part of `photo` of each of `sizes` (height, width) after the other."""
    pictures = {size: np.ascontiguousarray(photo[: size[0], : size[1]]) for size in sizes}
    time.sleep(max(0.0, begin - time.monotonic()))
    calls = []
    for size in sizes:
        due = time.monotonic()
        client.stylize(pictures[size], style)
        calls.append(Call(due, time.monotonic()))
    return calls


def send_at(pixels: Pixels, offsets: Sequence[float], client: StyleClient, style: str) -> list[Call]:
    """An order: a request is due at its time, and its wait counts from there, also if it could not be sent then."""
    return asyncio.run(_arrivals(pixels, offsets, client.url, style))


async def _arrivals(pixels: Pixels, offsets: Sequence[float], url: str, style: str) -> list[Call]:
    async with AsyncStyleClient(url, timeout=TIMEOUT, retries=0, shared_memory=False) as client:
        await client.styles()
        begin = time.monotonic() + HEAD_START

        async def call(due: float) -> Call:
            await asyncio.sleep(due - time.monotonic())
            await client.stylize(pixels, style)
            return Call(due, time.monotonic())

        return await asyncio.gather(*(call(begin + offset) for offset in offsets))


def send_changing_sizes(
    photo: Pixels,
    sizes: Sequence[tuple[int, int]],
    smallest: int,
    seconds: float,
    seed: int,
    client: StyleClient,
    style: str,
) -> list[SizedCall]:
    """An order: parts of `photo`, by turns of the next of `sizes` and of a size with sides from `smallest` up."""
    drawn = random.Random(seed)
    end = time.monotonic() + seconds
    requests: list[SizedCall] = []
    while (sent := time.monotonic()) < end:
        turn, odd = divmod(len(requests), 2)
        height, width = sizes[turn % len(sizes)]
        if odd:
            height, width = (drawn.randint(smallest, side) for side in photo.shape[:2])
        error = None
        try:
            client.stylize(photo[:height, :width], style)
        except ServiceError as failure:
            error = f"{type(failure).__name__}: {failure}"
        requests.append(SizedCall(height, width, sent, time.monotonic() - sent, error))
    return requests


def _ready(client: StyleClient, style: str) -> None:
    client.styles()


def _serve(orders: Connection, url: str, style: str, shared_memory: bool) -> None:
    """A caller's process, until there are no more orders, with the allocator that the commands of nst have."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its callers
    with StyleClient(url, timeout=TIMEOUT, retries=0, shared_memory=shared_memory) as client:
        while True:
            try:
                order: Task = orders.recv()
            except EOFError:
                return
            try:
                orders.send(order(client, style))
            except NstError as error:
                orders.send(error)


def _end(process: multiprocessing.context.SpawnProcess, pipe: Connection) -> None:
    pipe.close()
    process.terminate()
    process.join()
