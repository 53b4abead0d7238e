"""Worker processes: each opens something once and then runs tasks with it, one after the other."""

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
"""Takes what its worker opened. It and its result are pickled: use a function of a module, or its `partial`."""


class WorkerError(NstError):
    """A worker process ended before it answered."""


class Worker:
    """A new process that calls `opened()` and runs tasks with the result; it ends with the block.

    It ignores Ctrl-C, as the command ends its workers. An error of `opened` becomes the error of every task.
    """

    def __init__(self, opened: Callable[[], Any]) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_work, args=(theirs, opened), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would go unnoticed here

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid or 0

    def give(self, task: Task) -> None:
        """Start `task`; its answer is the next of `answers`."""
        with suppress(BrokenPipeError):  # the answer reports it
            self._pipe.send(task)

    def ask(self, task: Task) -> Any:
        """Run a task and return its answer. Raises as `answers` does."""
        self.give(task)
        return answers([self])[0]

    def outcome(self) -> Any:
        """Return the task's answer or its `NstError`."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return WorkerError("a measured process was killed; check that there is enough memory")


def answers(workers: Sequence[Worker]) -> list[Any]:
    """Wait for workers that all have a task and return their answers.

    When all are done, raises the first `NstError` of a task, or `WorkerError`.
    """
    outcomes = [worker.outcome() for worker in workers]
    for outcome in outcomes:
        if isinstance(outcome, NstError):
            raise outcome
    return outcomes


def _work(tasks: Connection, opened: Callable[[], Any]) -> None:
    """Run tasks in the process of a worker until the pipe is closed."""
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
