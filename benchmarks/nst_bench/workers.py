"""Processes that work for this one: each holds what it has opened, and does one task after the other with it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self

from nst_core.errors import NstError

Task = Callable[[Any], Any]
"""Takes what its worker holds. It and its result are pickled: a function of a module, or its `partial`."""


class WorkerError(NstError):
    """A worker's process ended before its answer."""


class Worker:
    """A new process, in which `opened()` makes what tasks work with; it ends with the block.

    Ctrl-C is for the command, which ends its workers. An error of `opened` is that of every task.
    """

    def __init__(self, opened: Callable[[], Any]) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_work, args=(theirs, opened), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would not be seen here

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    def give(self, task: Task) -> None:
        """Have it begin with `task`, whose answer is the next of `answers`."""
        with suppress(BrokenPipeError):  # its answer says so
            self._pipe.send(task)

    def ask(self, task: Task) -> Any:
        """Give it a task and wait for the answer; raises as `answers` does."""
        self.give(task)
        return answers([self])[0]

    def outcome(self) -> Any:
        """The answer, or the `NstError`, of its task."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return WorkerError("a process that was measured ended: is there enough memory?")


def answers(workers: Sequence[Worker]) -> list[Any]:
    """Of workers that all have a task. Raises the first `NstError` of a task, or `WorkerError`, when all are done."""
    outcomes = [worker.outcome() for worker in workers]
    for outcome in outcomes:
        if isinstance(outcome, NstError):
            raise outcome
    return outcomes


def _work(tasks: Connection, opened: Callable[[], Any]) -> None:
    """In the process of a worker, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    held = _outcome(opened)
    with suppress(EOFError):
        while True:
            task: Task = tasks.recv()
            tasks.send(held if isinstance(held, NstError) else _outcome(partial(task, held)))


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except NstError as error:
        return error
