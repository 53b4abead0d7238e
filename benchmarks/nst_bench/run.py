"""`nst-bench` without a suite: one after the other, what says most about this machine in the time that there is.

Each suite runs in a process of its own: its peak of memory is its own, what it leaves behind ends with it, and one
that dies is a missing cell with the reason while the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nst_bench.results import RUN, Document
from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.images import find_pictures, sample_photographs

if TYPE_CHECKING:
    from nst_bench.engines import Served

Tick = Callable[[str], None]

PATIENCE = 60.0
"""Seconds that a suite has to end its server after Ctrl-C."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a trained style, the repository with its export, Triton's place.

    `style` is the painting that it learned, without which losses are not compared; `photos` a folder of photographs
    that it never saw, None the few that ship; `vgg` VGG-16's weights.
    """

    checkpoint: Path
    repository: Path
    triton: Path
    style: Path | None = None
    photos: Path | None = None
    vgg: Path | None = None

    @property
    def model(self) -> str:
        """The name that `nst-export` gave it."""
        return self.checkpoint.stem

    def check(self) -> None:
        """Raises `InputError` if the style, its export or the photographs are not there, before minutes are spent."""
        for path, option in ((self.checkpoint, "--checkpoint"), (self.style, "--style")):
            if path and not path.is_file():
                raise InputError(f"{path}: no such file ({option})")
        if self.photos:
            find_pictures(self.photos)
        if not (self.repository / self.model / "config.pbtxt").is_file():
            raise InputError(
                f"{self.repository} has no model {self.model!r}; export it first: "
                f"nst-export {self.checkpoint} -r {self.repository}"
            )


class Work(Protocol):
    """Measures and returns a document; a function of a module, since another process calls it."""

    def __call__(self, subject: Subject, *, tick: Tick) -> Document:
        """`tick` takes notes of what is done."""


@dataclass(frozen=True)
class Step:
    """A suite of the plan, and the seconds that it takes on two cores."""

    suite: str
    seconds: float
    work: Work


def measure(
    plan: Sequence[Step],
    subject: Subject,
    *,
    keep: Callable[[Document], None],
    update: Callable[[float, str], None] = lambda behind, note: None,
) -> Document:
    """The suites of `plan`; a document of the whole run, each suite's own in it, or why it is missing.

    `keep` gets the document after every suite, also after Ctrl-C, which is passed on then. `update` is called
    every second with the seconds of the plan that are behind.
    """
    done: dict[str, Any] = {}
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")

    def document() -> Document:
        return {"schema": RUN, "date": started, "machine": _machine(done), "suites": done}

    behind = 0.0
    try:
        for step in plan:
            done[step.suite] = _alone(step, subject, partial(_pace, update, behind, step))
            behind += step.seconds
            keep(document())
    except KeyboardInterrupt:
        for step in plan:
            done.setdefault(step.suite, {"missing": "stopped before it was done"})
        keep(document())
        raise
    return document()


def file_name(document: Document) -> str:
    """`2026-11-24-1830-amd-epyc-2-cores.json`."""
    machine = document["machine"]
    words = f"{document['date'].removesuffix(' UTC').replace(':', '')} {machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", f"{words} {machine['gpu'] or ''}".lower().replace("(r)", "")).strip("-") + ".json"


def _machine(done: dict[str, Any]) -> dict[str, Any]:
    """As the first suite found it; asked here if none did."""
    for document in done.values():
        if "machine" in document:
            machine: dict[str, Any] = document["machine"]
            return machine
    from nst_bench.machine import describe

    return describe()


def _pace(update: Callable[[float, str], None], behind: float, step: Step, elapsed: float, note: str) -> None:
    """A step that takes longer than its estimate stands just before its end."""
    update(behind + min(elapsed, 0.99 * step.seconds), f"{step.suite}: {note}" if note else step.suite)


def _alone(step: Step, subject: Subject, pace: Callable[[float, str], None]) -> Document:
    """The document of a step that runs in a process of its own, or `{"missing": reason}`."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_child, args=(step.work, subject, theirs))
    process.start()
    theirs.close()
    started, note = time.monotonic(), ""
    try:
        while True:
            pace(time.monotonic() - started, note)
            if not ours.poll(1.0):
                continue
            kind, value = ours.recv()
            if kind != "note":
                return {"missing": value} if kind == "missing" else dict(value)
            note = value
    except EOFError:
        process.join()
        return {"missing": f"its process ended with status {process.exitcode}"}
    except KeyboardInterrupt:
        os.kill(process.pid or 0, signal.SIGINT)  # it ends the server that it started
        raise
    finally:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()


def _child(work: Work, subject: Subject, parent: Connection) -> None:
    """In the process of a suite. Ctrl-C reaches the parent alone, which passes it on once."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    try:
        parent.send(("done", work(subject, tick=lambda note: parent.send(("note", note)))))
    except (KeyboardInterrupt, BrokenPipeError):  # stopped, or whoever asked is gone
        sys.exit(1)
    except NstError as error:
        parent.send(("missing", " ".join(str(error).split())))
    except ModuleNotFoundError as error:
        parent.send(("missing", str(MissingExtra("bench", error.name or str(error)))))
    except Exception as error:
        traceback.print_exc()
        parent.send(("missing", " ".join(f"{type(error).__name__}: {error}".split())))


@contextmanager
def _served(subject: Subject, tick: Tick) -> Iterator[Served]:
    from nst_bench.engines import check_source, served
    from nst_server import triton

    check_source(subject.repository, subject.model, subject.checkpoint)
    with served(triton.find(subject.triton, tick), subject.repository, subject.model) as server:
        yield server


def _latency(subject: Subject, *, tick: Tick, full: bool = False) -> Document:
    from nst_bench.suites import latency
    from nst_trainer.checkpoint import load

    with _served(subject, tick) as server:
        effort = latency.FULL if full else latency.SHORT
        return latency.measure(load(subject.checkpoint), server, effort=effort, tick=tick)


def _serving(subject: Subject, *, tick: Tick, **effort: Any) -> Document:
    from nst_bench.suites import serving

    with _served(subject, tick) as server:
        return serving.measure(server, effort=replace(serving.FULL, **effort), tick=tick)


def _soak(subject: Subject, *, tick: Tick, minutes: float) -> Document:
    from nst_bench.suites import soak

    with _served(subject, tick) as server:
        return soak.measure(server, minutes=minutes, tick=tick)


def _gatys(subject: Subject, *, tick: Tick, **settings: Any) -> Document:
    from nst_bench.suites import gatys
    from nst_trainer.memory import reuse_freed_memory
    from nst_trainer.weights import vgg16_weights

    reuse_freed_memory()
    return gatys.measure(vgg16_weights(subject.vgg), style=subject.style, tick=tick, **settings)


def _speedup(subject: Subject, *, tick: Tick, sizes: tuple[int, ...], **effort: Any) -> Document:
    from nst_bench.engines import check_source
    from nst_bench.suites import speedup
    from nst_server import triton
    from nst_trainer.checkpoint import load
    from nst_trainer.memory import reuse_freed_memory

    reuse_freed_memory()
    check_source(subject.repository, subject.model, subject.checkpoint)
    return speedup.measure(
        *(load(subject.checkpoint), subject.model, subject.repository, triton.find(subject.triton, tick)),
        sizes=sizes,
        effort=replace(speedup.SHORT, **effort),
        style=subject.style,
        vgg=subject.vgg,
    )


def _cold(subject: Subject, *, tick: Tick, full: bool = False) -> Document:
    from nst_bench.suites import cold

    effort = cold.FULL if full else cold.SHORT
    return cold.measure(subject.triton, subject.repository, subject.model, effort=effort, tick=tick)


def _quality(subject: Subject, *, tick: Tick) -> Document:
    from nst_bench.suites import quality
    from nst_trainer.checkpoint import load
    from nst_trainer.parallel import best_device
    from nst_trainer.weights import vgg16_weights

    if subject.style is None:
        raise InputError("the painting that the network learned is not at hand to compare losses: --style")
    style = load(subject.checkpoint)
    photos = find_pictures(subject.photos) if subject.photos else sample_photographs()
    weights = vgg16_weights(subject.vgg)
    return quality.measure(style, subject.model, subject.style, photos, weights, device=best_device(), tick=tick)


def _methods(subject: Subject, *, tick: Tick) -> Document:
    from nst_bench.suites import methods

    others = sorted(subject.checkpoint.parent.glob("*.pth"))
    return methods.measure([subject.checkpoint, *others], vgg=subject.vgg, tick=tick)


def _peers(subject: Subject, *, tick: Tick) -> Document:
    from nst_bench.suites import peers
    from nst_trainer.checkpoint import load

    environment = Path(".peers")
    peers.check(environment)
    with _served(subject, tick) as server:
        return peers.measure(load(subject.checkpoint), server, environment, tick=tick)


def _training(subject: Subject, *, tick: Tick) -> Document:
    from nst_bench.suites import training

    return training.measure(subject.vgg, width=1.0, batch=4, tick=tick)


def _export(subject: Subject, *, tick: Tick) -> Document:
    from nst_bench.suites import export

    return export.measure(tick=tick)


SHORT = (Step("speedup", 40, partial(_speedup, sizes=(256, 512), equal_loss=())),)
"""A minute, for `make demo`."""

PLAN = (
    Step("speedup", 130, partial(_speedup, sizes=(256, 512), blocks=3, rounds=8, iterations=5, equal_loss=(256, 512))),
    Step("latency", 100, _latency),
    Step("serving", 130, partial(_serving, latency=12.0, turn=3.0, arrivals=6.0, probes=3)),
    Step("gatys", 60, partial(_gatys, sizes=(128, 256, 512), result_size=128, result_iterations=100)),
    Step("cold", 40, _cold),
    Step("soak", 75, partial(_soak, minutes=1.0)),
)
"""About ten minutes on two cores; what matters most comes first."""

FULL = (
    Step(
        "speedup",
        520,
        partial(_speedup, sizes=(256, 512, 1024), blocks=4, rounds=12, iterations=6, equal_loss=(256, 512), photos=4),
    ),
    Step("latency", 350, partial(_latency, full=True)),
    Step("serving", 290, _serving),
    Step("gatys", 180, _gatys),
    Step("cold", 70, partial(_cold, full=True)),
    Step("soak", 640, partial(_soak, minutes=10.0)),
    Step("methods", 240, _methods),
    Step("peers", 220, _peers),
    Step("quality", 270, _quality),
    Step("training", 130, _training),
    Step("export", 230, _export),
)
"""Every suite at its full length."""
