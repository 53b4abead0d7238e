"""`nst bench` without a suite: the suites one after the other, the most important first.

Each suite runs in its own process: its peak memory is its own, everything it started ends with it, and if it crashes,
the reason takes the place of its figures and the other suites still run. With a time limit, a suite that does not fit
is shortened, stopped with a partial result, or skipped.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nst_bench import suite as suites
from nst_bench.suite import Context, Cost, Document, Length, Suite, now, schema
from nst_core.devices import Device
from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.images import find_images
from nst_core.shipped import suggestion

GRACE_AFTER_INTERRUPT_SECONDS = 60.0
"""Time for a suite to stop its server after Ctrl-C."""

SMALLEST_SHARE = 0.4
"""A suite is skipped if less than this share of its estimated time is left: it would have too few samples."""

GRACE_SECONDS = 10.0
"""How late a suite may be before it is stopped, and how long it may then take to end."""

STOPPED = "stopped before it was done"
"""The reason of a missing or partial document after Ctrl-C."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a checkpoint, the model repository with its export, Triton's folder, the device.

    `style` is the style image that it was trained on; without it, losses are not compared. `photos` is a folder of
    photographs that were not part of the training, None for those that ship; `vgg` the VGG-16 weights; `also` further
    checkpoints. Each suite gets the fields that its `measure` has parameters for.
    """

    checkpoint: Path
    repository: Path
    triton: Path
    device: Device
    style: Path | None = None
    photos: Path | None = None
    vgg: Path | None = None
    also: tuple[Path, ...] = ()

    @property
    def model(self) -> str:
        """The model's name, as `nst export` chose it."""
        return self.checkpoint.stem

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoint, and those in the same folder."""
        return [self.checkpoint, *sorted(self.checkpoint.parent.glob("*.pth"))]

    def check(self) -> None:
        """Raise `InputError` before anything is measured if a file or folder is missing.

        The model must be exported from the checkpoint and for the device, and PyTorch must be able to use the device.
        """
        from nst_bench.machine.gpu import torch_device
        from nst_bench.served.exported import ExportedModel

        options = [(self.checkpoint, "--checkpoint"), (self.style, "--style")]
        for path, option in [*options, *((path, "--also") for path in self.also)]:
            if path and not path.is_file():
                raise InputError(f"{path}: no such file; {suggestion(path) or f'check {option}'}")
        if self.photos:
            find_images(self.photos)
        for path in (self.checkpoint, *self.also):
            exported = ExportedModel(self.repository / path.stem)
            exported.check_device(self.device)
            exported.check_source(path)
        torch_device(self.device)

    def options_of(self, suite: Suite[Any]) -> dict[str, Any]:
        """Return the options of a suite that are known here. Raises `InputError` if a required one is not."""
        known = {option.name: getattr(self, option.name) for option in suite.options if hasattr(self, option.name)}
        for option in suite.options:
            if option.default is option.empty and known.get(option.name) is None:
                raise InputError(f"needs --{option.name}")
        return known


@dataclass(frozen=True)
class Step:
    """A suite of a run and its name in the document; `checkpoint` replaces the subject's."""

    name: str
    suite: Suite[Any]
    cost: Cost[Any]
    checkpoint: Path | None = None


def plan(length: Length, device: Device, also: Sequence[Path] = ()) -> tuple[Step, ...]:
    """Return the steps of a run, the most important first; `also` are further checkpoints, measured briefly."""
    steps: list[tuple[tuple[int, int], Step]] = []
    for suite in map(suites.load, suites.names()):
        if cost := suite.cost(length, device):
            steps.append(((suite.rank, 0), Step(suite.name, suite, cost)))
        if cost := suite.cost("further", device):
            further = (Step(f"{suite.name}, {path.stem}", suite, cost, path) for path in also)
            steps += [((FURTHER_RANK, number), step) for number, step in enumerate(further)]
    return tuple(step for _, step in sorted(steps, key=lambda pair: pair[0]))


FURTHER_RANK = 35
"""Rank of the further checkpoints: after the serving of the first."""


Progress = Callable[[float, str], None]
"""Takes the seconds that are done, and a message."""

Runner = Callable[[Step, Subject, float, float, Progress, Callable[[Document], None]], Document]
"""Runs a step, as `in_a_process` does."""


class Run:
    """Measures the suites of a plan one after the other; `done` holds their documents."""

    def __init__(
        self,
        steps: Sequence[Step],
        subject: Subject,
        *,
        keep: Callable[[Document], None],
        on_progress: Progress = lambda done, note: None,
        minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        runner: Runner | None = None,
    ) -> None:
        """Set up a run.

        `keep` gets the run's document after every suite and whenever a suite has a partial document. `on_progress` is
        called every second with the seconds of the plan that are done. The run ends within `minutes`, plus the grace
        period of one suite.
        """
        self._steps, self._subject, self._minutes, self._clock = steps, subject, minutes, clock
        self._keep, self._on_progress, self._runner = keep, on_progress, runner or in_a_process
        self._started = now()
        self._end = math.inf if minutes is None else clock() + 60.0 * minutes
        self.done: dict[str, Document] = {}

    @property
    def document(self) -> Document:
        """The document of the whole run: each suite's own, or why it is missing."""
        about = {"date": self._started, "device": str(self._subject.device), "machine": _machine(self.done)}
        return {"schema": schema("run"), **about, "suites": self.done}

    def measure(self) -> Document:
        """Run all suites and return the document. On Ctrl-C, `keep` gets what there is."""
        planned = 0.0
        try:
            for step in self._steps:
                self.done[step.name] = self._measured(step, planned)
                planned += step.cost.seconds
                self._keep(self.document)
        except KeyboardInterrupt:
            for step in self._steps:
                self.done.setdefault(step.name, {"missing": STOPPED})
            self._keep(self.document)
            raise
        return self.document

    def _measured(self, step: Step, planned: float) -> Document:
        """Return the document of a step, shortened to the time that is left, or why it is missing.

        `planned` is the estimate of all earlier steps in seconds.
        """
        estimate, left = step.cost.seconds, self._end - self._clock()
        if not estimate:
            return {"missing": self._subject.device.reason}
        if left < SMALLEST_SHARE * estimate:
            return {"missing": f"no time left (--minutes {self._minutes:g})"}
        subject = replace(self._subject, checkpoint=step.checkpoint) if step.checkpoint else self._subject

        def on_progress(elapsed: float, note: str) -> None:
            """Report progress; a step that exceeds its estimate stays just below its end."""
            shown = f"{step.name}: {note}" if note else step.name
            self._on_progress(planned + min(elapsed, 0.99 * estimate), shown)

        def keep(part: Document) -> None:
            self.done[step.name] = part
            self._keep(self.document)

        return self._runner(step, subject, min(1.0, left / estimate), self._end, on_progress, keep)


def file_name(document: Document) -> str:
    """Return the file name of a run, such as `2026-11-24-1830-amd-epyc-2-cores.json`."""
    machine = document["machine"]
    words = f"{document['date'].removesuffix(' UTC').replace(':', '')} {machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", f"{words} {machine['gpu'] or ''}".lower().replace("(r)", "")).strip("-") + ".json"


def _machine(done: dict[str, Document]) -> dict[str, Any]:
    """Return the machine as the first suite described it; describe it now if none did."""
    for document in done.values():
        if "machine" in document:
            machine: dict[str, Any] = document["machine"]
            return machine
    from nst_bench.machine.description import describe

    return describe()


def in_a_process(
    step: Step,
    subject: Subject,
    share: float,
    end: float,
    on_progress: Progress,
    keep: Callable[[Document], None],
) -> Document:
    """Run a step in its own process, with a `share` of its effort; return its document, or `{"missing": reason}`.

    A step that is late is stopped as by Ctrl-C and keeps its partial document.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_child, args=(step, subject, share, theirs))
    process.start()
    theirs.close()
    started, note, part = time.monotonic(), "", Document()

    def without(reason: str) -> Document:
        return {**part, "stopped": reason} if part else {"missing": reason}

    grace = GRACE_AFTER_INTERRUPT_SECONDS
    try:
        while True:
            on_progress(time.monotonic() - started, note)
            if time.monotonic() > end + GRACE_SECONDS:
                os.kill(process.pid or 0, signal.SIGINT)
                grace = GRACE_SECONDS
                return without("no time left")
            if not ours.poll(1.0):
                continue
            kind, value = ours.recv()
            if kind == "note":
                note = value
            elif kind == "part":
                part = value
                keep(without(STOPPED))
            else:
                return without(value) if kind == "missing" else dict(value)
    except EOFError:
        process.join()
        return without(f"its process exited with status {process.exitcode}")
    except KeyboardInterrupt:
        os.kill(process.pid or 0, signal.SIGINT)  # so that it stops its server
        raise
    finally:
        process.join(grace)
        if process.is_alive():
            process.kill()


def _child(step: Step, subject: Subject, share: float, parent: Connection) -> None:
    """Run in the process of a suite. Ctrl-C reaches only the parent, which passes it on once."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def send(kind: str, value: Any) -> None:
        parent.send((kind, value))

    try:
        from nst_core.process import keep_freed_memory

        keep_freed_memory()
        effort = step.cost.effort if share >= 1.0 else step.cost.effort.scaled(share)
        context = Context(subject.device, effort, partial(send, "note"), partial(send, "part"))
        send("done", step.suite.run(context, **subject.options_of(step.suite)))
    except (KeyboardInterrupt, BrokenPipeError):  # stopped, or the parent is gone
        sys.exit(1)
    except NstError as error:
        send("missing", " ".join(str(error).split()))
    except ModuleNotFoundError as error:
        send("missing", str(MissingExtra("bench", error.name or str(error))))
    except Exception as error:
        traceback.print_exc()
        send("missing", " ".join(f"{type(error).__name__}: {error}".split()))
