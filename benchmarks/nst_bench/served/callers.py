"""Callers of a served style, each a process of its own.

Processes and not threads: whoever calls a server is another program, and threads of one process would wait for each
other at Python's lock while they pack and unpack pixels. Nothing of torch is imported here, so a caller starts fast
and is small. Times are those of `time.monotonic`, which all processes of a machine share.
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
from nst_core.process import keep_freed_memory

TIMEOUT_SECONDS = 300.0
"""How long a request may take: a queue that grows is measured, not cut short."""

HEAD_START_SECONDS = 0.2
"""From giving the tasks to the moment at which all callers begin; meanwhile images reach their processes."""

Task = Callable[[StyleClient, str], Any]
"""What a caller does with its client and the style's name; a function of a module, so that it can be pickled."""


class Call(NamedTuple):
    """A request: when it was due, and when its answer was there."""

    due: float
    done: float

    @property
    def seconds(self) -> float:
        """The latency that its caller sees."""
        return self.done - self.due


class SizedCall(NamedTuple):
    """A request among changing sizes: when it was sent and how long it took (seconds), and its error, if any."""

    height: int
    width: int
    sent: float
    seconds: float
    error: str | None


class CallerError(NstError):
    """A caller's process ended before its answer."""


class Callers:
    """Processes with a client each, which take tasks."""

    def __init__(self, processes: Sequence[multiprocessing.context.SpawnProcess], pipes: Sequence[Connection]) -> None:
        self._processes, self._pipes = processes, pipes

    @property
    def pids(self) -> list[int]:
        """The callers' process ids."""
        return [process.pid for process in self._processes if process.pid is not None]

    def assign(self, tasks: Sequence[Task]) -> Callable[[], list[Any]]:
        """Give the first callers a task each; the function that is returned waits for their answers.

        It raises the first `NstError` that a caller met, after all have answered.
        """
        pipes = self._pipes[: len(tasks)]
        for pipe, task in zip(pipes, tasks, strict=True):
            pipe.send(task)
        return partial(_answers, pipes)

    def closed_loop(self, count: int, requests: int, pixels: Pixels) -> list[Call]:
        """`requests` images from `count` callers at once, each of which sends again after each answer."""
        begin = time.monotonic() + HEAD_START_SECONDS
        shares = [len(range(position, requests, count)) for position in range(count)]
        return self._calls([partial(send_in_turn, share * [pixels], begin) for share in shares])

    def mixed_sizes(self, photograph: Pixels, parts: Sequence[Sequence[tuple[int, int]]]) -> list[Call]:
        """A closed loop of a caller for each of `parts`: crops of the photograph of these sizes (height, width)."""
        begin = time.monotonic() + HEAD_START_SECONDS
        return self._calls([partial(send_crops, photograph, sizes, begin) for sizes in parts])

    def open_loop(self, offsets: Sequence[float], pixels: Pixels) -> list[Call]:
        """An image at each of `offsets` (seconds), whether or not those before are answered; from one process."""
        return self._calls([partial(send_at, pixels, offsets)])

    def _calls(self, tasks: Sequence[Task]) -> list[Call]:
        return sorted(call for calls in self.assign(tasks)() for call in calls)


def _answers(pipes: Sequence[Connection]) -> list[Any]:
    try:
        answers = [pipe.recv() for pipe in pipes]
    except EOFError as error:
        raise CallerError("a caller's process ended: is there enough memory?") from error
    if errors := [answer for answer in answers if isinstance(answer, NstError)]:
        raise errors[0]
    return answers


@contextmanager
def start_callers(count: int, url: str, style: str, *, shared_memory: bool = False) -> Iterator[Callers]:
    """`count` callers of a style at `url`, warm; their processes end with the block.

    Images go over the network's protocol, or by shared memory: unlike a plain client, a caller never chooses by itself.
    """
    spawning = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes, pipes = [], []
        for _ in range(count):
            here, there = spawning.Pipe()
            process = spawning.Process(target=_run, args=(there, url, style, shared_memory), daemon=True)
            process.start()
            there.close()  # or the end of the process would not be seen here
            stack.callback(_end, process, here)
            processes.append(process)
            pipes.append(here)
        callers = Callers(processes, pipes)
        callers.assign([_ready] * count)()
        yield callers


def send_in_turn(images: Sequence[Pixels], begin: float, client: StyleClient, style: str) -> list[Call]:
    """A task: from `begin` on, each request after the answer to the last."""
    time.sleep(max(0.0, begin - time.monotonic()))
    calls = []
    for pixels in images:
        due = time.monotonic()
        client.stylize(pixels, style)
        calls.append(Call(due, time.monotonic()))
    return calls


def send_crops(
    photograph: Pixels, sizes: Sequence[tuple[int, int]], begin: float, client: StyleClient, style: str
) -> list[Call]:
    """A task: from `begin` on, crops of the photograph of these sizes (height, width), in turn."""
    crops = {size: np.ascontiguousarray(photograph[: size[0], : size[1]]) for size in sizes}
    return send_in_turn([crops[size] for size in sizes], begin, client, style)


def send_at(pixels: Pixels, offsets: Sequence[float], client: StyleClient, style: str) -> list[Call]:
    """A task: requests at their times; latency counts from there, also if a request could not be sent then."""
    return asyncio.run(_send_at(pixels, offsets, client.url, style))


async def _send_at(pixels: Pixels, offsets: Sequence[float], url: str, style: str) -> list[Call]:
    async with AsyncStyleClient(url, timeout=TIMEOUT_SECONDS, retries=0, shared_memory=False) as client:
        await client.styles()
        begin = time.monotonic() + HEAD_START_SECONDS

        async def call(due: float) -> Call:
            await asyncio.sleep(due - time.monotonic())
            await client.stylize(pixels, style)
            return Call(due, time.monotonic())

        return await asyncio.gather(*(call(begin + offset) for offset in offsets))


def send_changing_sizes(
    photograph: Pixels,
    sizes: Sequence[tuple[int, int]],
    min_side: int,
    seconds: float,
    seed: int,
    client: StyleClient,
    style: str,
) -> list[SizedCall]:
    """A task: crops of the photograph, by turns of the next of `sizes` and of random sides from `min_side` up."""
    generator = random.Random(seed)
    end = time.monotonic() + seconds
    calls: list[SizedCall] = []
    while (sent := time.monotonic()) < end:
        turn, odd = divmod(len(calls), 2)
        height, width = sizes[turn % len(sizes)]
        if odd:
            height, width = (generator.randint(min_side, side) for side in photograph.shape[:2])
        error = None
        try:
            client.stylize(photograph[:height, :width], style)
        except ServiceError as failure:
            error = f"{type(failure).__name__}: {failure}"
        calls.append(SizedCall(height, width, sent, time.monotonic() - sent, error))
    return calls


def _ready(client: StyleClient, style: str) -> None:
    client.styles()


def _run(tasks: Connection, url: str, style: str, shared_memory: bool) -> None:
    """A caller's process, until there are no more tasks; with the allocator that nst's commands use."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its callers
    with StyleClient(url, timeout=TIMEOUT_SECONDS, retries=0, shared_memory=shared_memory) as client:
        while True:
            try:
                task: Task = tasks.recv()
            except EOFError:
                return
            try:
                tasks.send(task(client, style))
            except NstError as error:
                tasks.send(error)


def _end(process: multiprocessing.context.SpawnProcess, pipe: Connection) -> None:
    pipe.close()
    process.terminate()
    process.join()
