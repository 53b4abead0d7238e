"""`nst-bench` without a suite: one after the other, what says most about this machine in the time that there is.

Each suite runs in a process of its own: its peak of memory is its own, what it leaves behind ends with it, and one
that dies is a missing cell with the reason while the others go on. With a limit of time what matters most comes first,
and what no longer fits is shortened, stopped with what it has, or left out.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nst_bench.results import RUN, Document
from nst_core.devices import Device
from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.images import find_images, sample_photographs

if TYPE_CHECKING:
    from nst_bench.served.server import ModelServer

PATIENCE = 60.0
"""Seconds that a suite has to end its server after Ctrl-C."""

LEAST = 0.4
"""Share of its estimate below which a suite is left out: what it would measure then says little."""

GRACE = 10.0
"""Seconds by which a suite may be late before it is stopped, and those that it has to end then."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a trained style, the repository with its export, Triton's place, the device.

    `style` is the painting that it learned, without which losses are not compared; `photos` a folder of photographs
    that it never saw, None the few that ship; `vgg` VGG-16's weights; `also` further checkpoints.
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
        """The name that `nst-export` gave it."""
        return self.checkpoint.stem

    def check(self) -> None:
        """Before minutes are spent: raises `InputError` if the style, its export or the photographs are not there.

        The export must be for the device, and PyTorch able to use it.
        """
        from nst_bench.machine.cuda import torch_device
        from nst_bench.served.exported import ExportedModel

        options = [(self.checkpoint, "--checkpoint"), (self.style, "--style")]
        for path, option in [*options, *((path, "--also") for path in self.also)]:
            if path and not path.is_file():
                raise InputError(f"{path}: no such file ({option})")
        if self.photos:
            find_images(self.photos)
        for path in (self.checkpoint, *self.also):
            ExportedModel(self.repository / path.stem).check_device(self.device)
        torch_device(self.device)


@dataclass(frozen=True)
class Context:
    """A suite's run: `on_progress` takes notes of what is done, `keep` a document that is not whole yet.

    `share` is how much of its estimated time there is, at most 1.
    """

    on_progress: Callable[[str], None]
    keep: Callable[[Document], None]
    share: float = 1.0


class Work(Protocol):
    """Measures and returns a document; a function of a module, since another process calls it."""

    def __call__(self, subject: Subject, context: Context) -> Document:
        """See `Context`."""


@dataclass(frozen=True)
class Step:
    """A suite of a plan, and the seconds that it takes on two cores, and on a GPU.

    None: it is not in the plan of such a device; 0 on two cores: it needs a GPU, and is missing without. `checkpoint`
    is another than the subject's.
    """

    suite: str
    seconds: float | None
    work: Work
    card: float | None = None
    checkpoint: Path | None = None

    def estimate(self, device: Device) -> float | None:
        """Seconds on a device."""
        return self.card if device.gpu else self.seconds


class Alone(Protocol):
    """Runs a step by itself; a test has another."""

    def __call__(
        self,
        step: Step,
        subject: Subject,
        share: float,
        end: float,
        pace: Callable[[float, str], None],
        keep: Callable[[Document], None],
    ) -> Document:
        """Its document, or `{"missing": reason}`; `keep` gets what is not whole yet. `end` is of the clock."""


def measure(
    plan: Sequence[Step],
    subject: Subject,
    *,
    keep: Callable[[Document], None],
    update: Callable[[float, str], None] = lambda behind, note: None,
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    alone: Alone | None = None,
) -> Document:
    """The suites of `plan`; a document of the whole run, each suite's own in it, or why it is missing.

    `keep` gets the document after every suite and whenever a suite has a part of its own, also after Ctrl-C, which is
    passed on then. `update` is called every second with the seconds of the plan that are behind. In `minutes` all ends
    but for the `GRACE` of one suite.
    """
    done: dict[str, Any] = {}
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    end = math.inf if minutes is None else clock() + 60.0 * minutes

    def document() -> Document:
        return {
            **{"schema": RUN, "date": started, "device": str(subject.device), "machine": _machine(done)},
            "suites": done,
        }

    def keep_part(step: Step, part: Document) -> None:
        done[step.suite] = part
        keep(document())

    behind = 0.0
    try:
        for step in plan:
            estimate = step.estimate(subject.device)
            left = end - clock()
            if estimate is None:
                continue
            if not estimate:
                done[step.suite] = {"missing": subject.device.reason}
            elif left < LEAST * estimate:
                done[step.suite] = {"missing": f"no time left (--minutes {minutes:g})"}
            else:
                own = replace(subject, checkpoint=step.checkpoint) if step.checkpoint else subject
                pace, part = partial(_pace, update, behind, step.suite, estimate), partial(keep_part, step)
                done[step.suite] = (alone or _alone)(step, own, min(1.0, left / estimate), end, pace, part)
            behind += estimate
            keep(document())
    except KeyboardInterrupt:
        for step in plan:
            if step.estimate(subject.device) is not None:
                done.setdefault(step.suite, {"missing": STOPPED})
        keep(document())
        raise
    return document()


STOPPED = "stopped before it was done"
"""Why a suite is missing, or has a part of its document, after Ctrl-C."""


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
    from nst_bench.machine.description import describe

    return describe()


def _pace(
    update: Callable[[float, str], None], behind: float, suite: str, estimate: float, elapsed: float, note: str
) -> None:
    """A step that takes longer than its estimate stands just before its end."""
    update(behind + min(elapsed, 0.99 * estimate), f"{suite}: {note}" if note else suite)


def _alone(
    step: Step,
    subject: Subject,
    share: float,
    end: float,
    pace: Callable[[float, str], None],
    keep: Callable[[Document], None],
) -> Document:
    """The document of a step that runs in a process of its own, or `{"missing": reason}`.

    One that is late is stopped as by Ctrl-C, and keeps the part that it has.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_child, args=(step.work, subject, share, theirs))
    process.start()
    theirs.close()
    started, note, part = time.monotonic(), "", Document()

    def without(reason: str) -> Document:
        return {**part, "stopped": reason} if part else {"missing": reason}

    patience = PATIENCE
    try:
        while True:
            pace(time.monotonic() - started, note)
            if time.monotonic() > end + GRACE:
                os.kill(process.pid or 0, signal.SIGINT)
                patience = GRACE
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
        return without(f"its process ended with status {process.exitcode}")
    except KeyboardInterrupt:
        os.kill(process.pid or 0, signal.SIGINT)  # it ends the server that it started
        raise
    finally:
        process.join(patience)
        if process.is_alive():
            process.kill()


def _child(work: Work, subject: Subject, share: float, parent: Connection) -> None:
    """In the process of a suite. Ctrl-C reaches the parent alone, which passes it on once."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored

    def send(kind: str, value: Any) -> None:
        parent.send((kind, value))

    try:
        from nst_core.memory import keep_freed_memory

        keep_freed_memory()
        send("done", work(subject, Context(partial(send, "note"), partial(send, "part"), share)))
    except (KeyboardInterrupt, BrokenPipeError):  # stopped, or whoever asked is gone
        sys.exit(1)
    except NstError as error:
        send("missing", " ".join(str(error).split()))
    except ModuleNotFoundError as error:
        send("missing", str(MissingExtra("bench", error.name or str(error))))
    except Exception as error:
        traceback.print_exc()
        send("missing", " ".join(f"{type(error).__name__}: {error}".split()))


@contextmanager
def _served(subject: Subject, context: Context) -> Iterator[ModelServer]:
    from nst_bench.served.exported import ExportedModel
    from nst_bench.served.server import serve_model
    from nst_server.installation.triton import find_triton

    ExportedModel(subject.repository / subject.model).check_source(subject.checkpoint)
    installation = find_triton(subject.triton, context.on_progress, device=subject.device)
    with serve_model(installation, subject.repository, subject.model) as server:
        yield server


def _latency(subject: Subject, context: Context, *, full: bool = False) -> Document:
    from nst_bench.suites import latency
    from nst_trainer.checkpoint import load

    effort = latency.FULL if full else latency.SHORT
    if subject.device.gpu:
        effort = latency.CARD
    return _of_engines(subject, context, load(subject.checkpoint), effort)


def _latency_short(subject: Subject, context: Context) -> Document:
    """Of a further checkpoint."""
    from nst_bench.suites import latency
    from nst_trainer.checkpoint import load

    effort = latency.CARD_SHORT if subject.device.gpu else replace(latency.SHORT, compiled=())
    return _of_engines(subject, context, load(subject.checkpoint), effort)


def _of_engines(subject: Subject, context: Context, style: Any, effort: Any) -> Document:
    from nst_bench.suites import latency

    with _served(subject, context) as server:
        return latency.measure(
            *(style, server, subject.device),
            effort=effort.scaled(context.share),
            on_progress=context.on_progress,
            keep=context.keep,
        )


def _serving(subject: Subject, context: Context, **effort: Any) -> Document:
    from nst_bench.suites import serving

    chosen = serving.CARD if subject.device.gpu else replace(serving.FULL, **effort)
    return _of_callers(subject, context, chosen)


def _serving_short(subject: Subject, context: Context) -> Document:
    """Of a further checkpoint."""
    from nst_bench.suites import serving

    short = replace(serving.FULL, latency=6.0, turn=2.0, probes=0, callers=(1, 4), mixed=())
    return _of_callers(subject, context, serving.CARD_SHORT if subject.device.gpu else short)


def _of_callers(subject: Subject, context: Context, effort: Any) -> Document:
    from nst_bench.suites import serving

    with _served(subject, context) as server:
        return serving.measure(
            server, effort=effort.scaled(context.share), on_progress=context.on_progress, keep=context.keep
        )


def _styles(subject: Subject, context: Context, *, full: bool = False) -> Document:
    from nst_bench.suites import styles
    from nst_server.installation.triton import find_triton
    from nst_trainer.checkpoint import load

    effort = styles.CARD if subject.device.gpu else styles.FULL if full else styles.SHORT
    installation = find_triton(subject.triton, context.on_progress, device=subject.device)
    return styles.measure(
        *(load(subject.checkpoint), installation, subject.device),
        effort=effort.scaled(context.share),
        on_progress=context.on_progress,
        keep=context.keep,
    )


def _energy(subject: Subject, context: Context) -> Document:
    from nst_bench.suites import energy
    from nst_trainer.checkpoint import load

    style = load(subject.checkpoint)
    with _served(subject, context) as server:
        effort = energy.FULL.scaled(context.share)
        return energy.measure(
            style, server, subject.device, vgg=subject.vgg, effort=effort, on_progress=context.on_progress
        )


def _soak(subject: Subject, context: Context, *, minutes: float) -> Document:
    from nst_bench.suites import soak

    with _served(subject, context) as server:
        return soak.measure(server, minutes=context.share * minutes, on_progress=context.on_progress)


def _gatys(subject: Subject, context: Context, **settings: Any) -> Document:
    from nst_bench.machine.cuda import torch_device
    from nst_bench.suites import gatys
    from nst_trainer.weights import vgg16_weights

    if subject.device.gpu:
        settings = {"sizes": (256, 512, 1024), "iterations": 50, "result_size": 256}
    weights, device = vgg16_weights(subject.vgg), torch_device(subject.device)
    return gatys.measure(weights, style=subject.style, device=device, on_progress=context.on_progress, **settings)


def _speedup(subject: Subject, context: Context, *, sizes: tuple[int, ...], **effort: Any) -> Document:
    from nst_bench.served.exported import ExportedModel
    from nst_bench.suites import speedup
    from nst_server.installation.triton import find_triton
    from nst_trainer.checkpoint import load

    ExportedModel(subject.repository / subject.model).check_source(subject.checkpoint)
    chosen = replace(speedup.SHORT, **effort)
    if subject.device.gpu:
        sizes, chosen = (256, 512, 1024), speedup.CARD
    return speedup.measure(
        *(load(subject.checkpoint), subject.model, subject.repository),
        *(find_triton(subject.triton, context.on_progress, device=subject.device), subject.device),
        sizes=sizes,
        effort=chosen.scaled(context.share),
        style=subject.style,
        vgg=subject.vgg,
        keep=context.keep,
    )


def _cold(subject: Subject, context: Context, *, full: bool = False) -> Document:
    from nst_bench.suites import cold

    effort = (cold.FULL if full else cold.SHORT).scaled(context.share)
    place = subject.triton, subject.repository, subject.model
    return cold.measure(*place, subject.device, effort=effort, on_progress=context.on_progress)


def _quality(subject: Subject, context: Context) -> Document:
    from nst_bench.machine.cuda import torch_device
    from nst_bench.suites import quality
    from nst_trainer.checkpoint import load
    from nst_trainer.weights import vgg16_weights

    if subject.style is None:
        raise InputError("the painting that the network learned is not at hand to compare losses: --style")
    style = load(subject.checkpoint)
    photos = find_images(subject.photos) if subject.photos else sample_photographs()
    weights, device = vgg16_weights(subject.vgg), torch_device(subject.device)
    return quality.measure(
        style, subject.model, subject.style, photos, weights, device=device, on_progress=context.on_progress
    )


def _methods(subject: Subject, context: Context) -> Document:
    from nst_bench.suites import methods

    others = sorted(subject.checkpoint.parent.glob("*.pth"))
    return methods.measure(
        [subject.checkpoint, *others], subject.device, vgg=subject.vgg, on_progress=context.on_progress
    )


def _peers(subject: Subject, context: Context) -> Document:
    from nst_bench.suites import peers
    from nst_trainer.checkpoint import load

    environment = Path(".peers")
    peers.check(environment, subject.device)
    with _served(subject, context) as server:
        return peers.measure(load(subject.checkpoint), server, environment, on_progress=context.on_progress)


def _training(subject: Subject, context: Context) -> Document:
    from nst_bench.suites import training

    return training.measure(subject.vgg, subject.device, width=1.0, batch=4, on_progress=context.on_progress)


def _export(subject: Subject, context: Context) -> Document:
    from nst_bench.suites import export

    return export.measure(device=subject.device, on_progress=context.on_progress)


SHORT = (Step("speedup", 40, partial(_speedup, sizes=(256, 512), equal_loss=()), card=60),)
"""A minute, for `make demo`."""

PLAN = (
    Step(
        *("speedup", 130),
        partial(_speedup, sizes=(256, 512), blocks=3, rounds=8, iterations=5, equal_loss=(256, 512)),
        card=70,
    ),
    Step("latency", 100, _latency, card=90),
    Step("serving", 130, partial(_serving, latency=12.0, turn=3.0, arrivals=6.0, probes=3, mixed=()), card=90),
    Step("styles", 65, _styles),
    Step("energy", 0, _energy, card=40),
    Step("cold", 40, _cold, card=45),
    Step("gatys", 60, partial(_gatys, sizes=(128, 256, 512), result_size=128, result_iterations=100), card=30),
    Step("export", None, _export, card=120),
    Step("soak", 75, partial(_soak, minutes=1.0), card=75),
)
"""About ten minutes, on two cores and on a GPU; what matters most comes first."""

FULL = (
    Step(
        "speedup",
        520,
        partial(_speedup, sizes=(256, 512, 1024), blocks=4, rounds=12, iterations=6, equal_loss=(256, 512), photos=4),
        card=70,
    ),
    Step("latency", 350, partial(_latency, full=True), card=90),
    Step("serving", 320, _serving, card=90),
    Step("styles", 400, partial(_styles, full=True), card=90),
    Step("energy", 0, _energy, card=40),
    Step("gatys", 180, _gatys, card=30),
    Step("cold", 70, partial(_cold, full=True), card=110),
    Step("soak", 640, partial(_soak, minutes=10.0), card=640),
    Step("methods", 240, _methods, card=240),
    Step("peers", 220, _peers),
    Step("quality", 270, _quality, card=60),
    Step("training", 130, _training, card=130),
    Step("export", 350, _export, card=120),
)
"""Every suite at its full length."""


def with_others(plan: Sequence[Step], others: Sequence[Path]) -> tuple[Step, ...]:
    """The plan with the latency and serving of further checkpoints, each shortly, behind those of the first."""
    further = [
        step
        for path in others
        for step in (
            Step(f"latency, {path.stem}", 60, _latency_short, card=35, checkpoint=path),
            Step(f"serving, {path.stem}", 60, _serving_short, card=40, checkpoint=path),
        )
    ]
    place = next((number for number, step in enumerate(plan, 1) if step.suite == "serving"), len(plan))
    return (*plan[:place], *further, *plan[place:])
