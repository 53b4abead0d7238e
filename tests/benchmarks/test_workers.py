"""Processes that work for the benchmarks: their tasks, their errors, and their end."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from nst_bench.workers import Worker, WorkerError, answers
from nst_core.errors import InputError


def _fails(held: object) -> None:
    raise InputError("seven is no number")


def _cannot_open() -> None:
    _fails(None)


def _killed(sign: signal.Signals, held: object) -> None:
    os.kill(os.getpid(), sign)


def test_a_worker_keeps_what_it_holds_and_ends_with_the_block() -> None:
    with Worker(partial(list, "ab")) as worker:
        assert worker.ask(len) == 2
        assert worker.ask(sorted) == ["a", "b"]
        pid = worker.pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_the_first_error_is_raised_when_all_have_answered_and_they_go_on() -> None:
    with Worker(int) as first, Worker(int) as second:
        for worker, task in ((first, _fails), (second, str)):
            worker.give(task)
        with pytest.raises(InputError, match="seven is no number"):
            answers([first, second])
        assert first.ask(str) == second.ask(str) == "0"


def test_what_cannot_be_opened_is_the_error_of_every_task() -> None:
    with Worker(_cannot_open) as worker:
        for _ in range(2):
            with pytest.raises(InputError, match="seven is no number"):
                worker.ask(str)


def test_a_worker_that_dies_says_so_and_one_does_not_end_by_ctrl_c() -> None:
    with Worker(int) as worker:
        worker.ask(partial(_killed, signal.SIGINT))
        for _ in range(2):
            with pytest.raises(WorkerError, match="a measured process was killed; check that there is enough memory"):
                worker.ask(partial(_killed, signal.SIGKILL))
