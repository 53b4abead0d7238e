"""Terminal output: one-line messages and errors, progress with the time left, and the log.

Messages go to stderr and results to stdout, so that commands work in pipes.
"""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.events import EventLog, current_events, recording
from nst_core.files import STORAGE_FAULTS

console = Console(stderr=True, highlight=False, soft_wrap=True)

SYSTEM_FAULTS = STORAGE_FAULTS | {errno.ENAMETOOLONG, errno.ELOOP}
"""`errno` values of system errors that are not defects of nst."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells (128 + SIGINT)."""


PACKAGES = ("nst_core", "nst_trainer", "nst_export", "nst_server", "nst_client", "nst_apps", "nst_bench")
"""The roots of the logger hierarchies that `-v` and `-q` set."""

_quiet = False


def say(message: str) -> None:
    """Show a message on stderr, unless the command runs with `--quiet`."""
    if not _quiet:
        show(message)


def show(line: str) -> None:
    """Show a line on stderr, even with `--quiet`."""
    console.print(line, markup=False)


def fail(error: NstError) -> None:
    """Show an error on a single line."""
    console.print("[bold red]error:[/] ", end="")
    show(" ".join(str(error).split()))


class _Log(logging.Handler):
    """Show log records as one-line messages on stderr, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record such as `warning: the model is left out`, followed by its traceback, if any."""
        try:
            style = {logging.WARNING: "bold yellow", logging.ERROR: "bold red"}.get(record.levelno, "dim")
            source = f"{record.name}: " if record.levelno <= logging.DEBUG else ""
            console.print(Text.assemble((f"{record.levelname.lower()}:", style), f" {source}{self.format(record)}"))
        except Exception:  # as in every handler of the standard library
            self.handleError(record)


_log = _Log()


@contextmanager
def verbosity(verbose: int = 0, quiet: bool = False) -> Iterator[None]:
    """Show the log of nst's packages while a command runs; restore all settings afterwards.

    The log shows warnings; with `verbose` 1 also information, with 2 also debugging details. With `quiet` it shows only
    errors, and there are no messages and no progress.
    """
    global _quiet
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = _quiet, [(logger.level, _log in logger.handlers) for logger in loggers]
    _quiet = quiet
    for logger in loggers:
        logger.setLevel(level)
        logger.addHandler(_log)  # changes nothing where it is added already
    try:
        yield
    finally:
        _quiet = before[0]
        for logger, (old_level, shown) in zip(loggers, before[1], strict=True):
            logger.setLevel(old_level)
            if not shown:
                logger.removeHandler(_log)


LINE_SECONDS = 30.0
"""Minimum time between two progress lines where stderr is not a terminal."""


class Update(Protocol):
    """Callable that shows a task's progress; `figures`, such as losses, go to `--progress-json`."""

    def __call__(self, done: int, note: str, **figures: float) -> None:
        """Show that `done` steps are complete."""


@contextmanager
def one_line_errors(extra: str, *, command: str = "", progress_json: Path | None = None) -> Iterator[EventLog]:
    """Report nst's exceptions on one line with exit status 1, and Ctrl-C with 130.

    A missing third-party module is reported with the command that installs `extra`. System errors such as a full disk
    or an impossible file name are single lines, too. Anything else is a defect of nst and keeps its traceback. The
    events of the `command` are appended to `progress_json`.
    """
    try:
        with recording(command, progress_json) as events, _as_nst_errors(extra):
            yield events
    except NstError as error:
        fail(error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        say("stopped")
        raise typer.Exit(INTERRUPTED) from interrupt
    except BrokenPipeError as error:
        sys.stderr.close()  # the reader of our output has gone
        raise typer.Exit(1) from error


@contextmanager
def _as_nst_errors(extra: str) -> Iterator[None]:
    """Raise `MissingExtra` and `InputError` for errors of other libraries that are not our defects."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("nst_"):
            raise
        raise MissingExtra(extra, error.name) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in SYSTEM_FAULTS:
            raise
        raise InputError(f"{error.filename or 'cannot write the output'}: {error.strerror}") from error


@contextmanager
def progress(
    title: str,
    total: int,
    *,
    unit: str = "",
    share: Callable[[int], float] | None = None,
    every: float | None = None,
) -> Iterator[Update]:
    """Show a bar with the time left for a task of `total` steps or another `unit`; yield `update(done, note)`.

    `share(done)` is the fraction of the work that is complete after `done` steps, for steps of unequal cost. Where
    stderr is not a terminal (a log, CI), a line is written at most every `every` seconds instead, by default
    `LINE_SECONDS`. Nothing is shown with `--quiet`. Each call is also a `progress` event of the command's log.
    """
    fraction_of = share or (lambda done: done / total)
    left = _seconds_left(fraction_of)
    events = current_events()
    with _shown(f"{title}, {unit}" if unit else title, total, fraction_of, every) as show:

        def update(done: int, note: str, **figures: float) -> None:
            remaining = left(done)
            show(done, f"{'?' if remaining is None else duration(remaining)} left  {note}")
            events.progress(
                title,
                done,
                total,
                unit=unit or "steps",
                fraction=round(fraction_of(done), 4),
                seconds_left=None if remaining is None else round(remaining, 1),
                **figures,
            )

        yield update


@contextmanager
def plan_progress(model: str) -> Iterator[Callable[[float, str], None]]:
    """Show the progress of building a model's TensorRT plan; yield a function of the fraction done and a note."""
    with progress(f"building the TensorRT plan of {model}", 100) as update:
        yield lambda done, note: update(round(100 * done), note)


@contextmanager
def _shown(
    title: str, total: int, fraction_of: Callable[[int], float], every: float | None
) -> Iterator[Callable[[int, str], None]]:
    """Show a bar, or lines where stderr is not a terminal."""
    if _quiet:
        yield lambda done, note: None
        return
    if not console.is_terminal:
        yield _lines(title, total, LINE_SECONDS if every is None else every)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with RichProgress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0, note="")

        def show(done: int, note: str) -> None:
            bar.update(task, completed=fraction_of(done), note=f"{done}/{total}  {note}")

        yield show


def _seconds_left(fraction_of: Callable[[int], float]) -> Callable[[int], float | None]:
    """Estimate the time left from the pace since the first call, so that a resumed task does not look fast."""
    started = time.monotonic()
    first: float | None = None

    def left(done: int) -> float | None:
        nonlocal first
        share = fraction_of(done)
        if first is None:
            first = share
        if share <= first:
            return None
        return (time.monotonic() - started) * (1.0 - share) / (share - first)

    return left


def _lines(title: str, total: int, every: float) -> Callable[[int, str], None]:
    written = time.monotonic()

    def show(done: int, note: str) -> None:
        nonlocal written
        if time.monotonic() - written >= every or done >= total:
            written = time.monotonic()
            say(f"{title} {done}/{total}  {note}".rstrip())

    return show


def duration(seconds: float) -> str:
    """Format seconds: `75.2` as `1:15`, `3700` as `1:01:40`."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
