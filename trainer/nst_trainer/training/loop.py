"""Training a feed-forward network (Johnson, Alahi and Fei-Fei 2016, section 3) for one style or many.

Each iteration stylizes a batch of photographs, computes the content, style and total variation losses with the loss
network, and takes a step of SOAP.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nst_core.errors import InputError, NstError
from nst_core.images import find_images, sample_photographs
from nst_trainer import checkpoint
from nst_trainer.images import open_style, to_tensor
from nst_trainer.losses import PerceptualLoss
from nst_trainer.signals import SecondInterrupt
from nst_trainer.training.budget import Budget, plan_budget
from nst_trainer.training.data import Batches, Photos
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.initialization import initial_state, load_teacher, style_names
from nst_trainer.training.objective import BatchLoss, Objective
from nst_trainer.training.settings import PHASES, TrainingSettings
from nst_trainer.training.soap import soap
from nst_trainer.training.state import read_state
from nst_trainer.training.step import CapturedSteps, TrainingError, take_step
from nst_trainer.training.validation import (
    Curves,
    Validation,
    preview_photograph,
    write_preview,
    write_texture_preview,
)
from nst_trainer.vgg import Vgg16

logger = logging.getLogger(__name__)

OPTIMIZER = "SOAP in stacks"
"""The optimiser of a saved training; the state of another optimiser cannot be resumed."""

LOGGED_EVERY_ITERATIONS = 10


@dataclass
class Progress:
    """What a training reports after every iteration. Losses are weighted, and means of about the last fifty."""

    iteration: int
    iterations: int  # the plan, where --minutes decides
    done: float  # the completed share of the schedule
    images_per_second: float
    content: float
    style: float
    total_variation: float
    temporal: float
    distillation: float  # during distillation, the difference from the teacher; the other losses are 0
    skipped: int  # photographs that cannot be read


class Training:
    """A training that reads and writes files; `run` trains to the end."""

    def __init__(
        self,
        styles: Sequence[Path],
        photos: Path | None,
        output: Path,
        vgg: Vgg16,
        settings: TrainingSettings,
        *,
        minutes: float | None = None,
        start: Path | None = None,
        add_to: Path | None = None,
        teacher: Path | None = None,
        resume: bool = False,
        workers: int = 2,
        preview: Path | None = None,
        every: int = 100,
        log: Path | None = None,
        team: Team | None = None,
        captured: bool = False,
    ) -> None:
        """Read all inputs, so that unusable input is an error before the first step.

        `styles` are the images that one network learns. `photos` is a folder; None means the photographs that ship
        with nst.

        `minutes` is the total time, including that of earlier runs if the training is resumed: the schedule follows
        the clock, `settings.iterations` becomes an estimate, and a short time makes `settings.crop` smaller.

        `start` is a checkpoint whose weights the network starts from. `add_to` is a checkpoint that learns `styles` in
        addition to its own, which stay bit-identical: only the new normalisations are trained. `teacher` is a
        checkpoint of the same styles in the same order: the network first learns to reproduce its images, on the small
        crops, without the loss network (Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*).

        `log` is a folder for TensorBoard. `captured` launches each step on a GPU as a CUDA graph; it works for one
        process, without noise and temporal loss. Raises `InputError`.
        """
        self.output, self.every, self.team = output, every, team or Team()
        self.precision, self.why_precision = self.team.precision()
        self.state_file = output.with_name(output.name + ".resume")
        self.minutes = minutes
        if self.team.from_leader(self.state_file.exists) and not resume:
            raise InputError(f"{self.state_file} is an unfinished training; continue it with --resume, or remove it")
        extended = checkpoint.load(add_to) if add_to else None
        if extended:
            arguments = {"arch": extended.network.name, "width": extended.network.arguments["width"]}
            settings = replace(settings, **arguments, texture=extended.network.arguments.get("texture", False))
        self.settings = settings
        self.names = style_names(styles, output, extended)
        self.new_styles = range(extended.network.styles if extended else 0, len(self.names))
        self.teacher_name = teacher.name if teacher else None
        device = self.team.device
        teaching = load_teacher(teacher, settings, len(self.names), device) if teacher else None
        self.extends = extended is not None
        self.found = sample_photographs() if photos is None or settings.texture else find_images(photos)
        self.part = self.team.part(settings.batch)
        if self.team.size > 1:
            self.team.check_same(self._facts(styles, vgg, minutes, resume, teacher))
        images = [to_tensor(open_style(style, max_side=settings.style_size)).to(device) for style in styles]
        loss = PerceptualLoss(vgg.to(device), images, settings.loss_weights, apart=True)
        identity = self._identity()
        document = self.team.from_leader(lambda: read_state(self.state_file, settings, identity)) if resume else None
        if document:  # the learning rate may differ: after a loss that is not finite a lower value is needed
            self.settings = replace(settings, **document["settings"] | {"learning_rate": settings.learning_rate})
        rounded = loss.with_rounded_network(self.precision)
        objective = Objective(rounded, self.settings, self.new_styles, teaching, self.team, self.precision)
        self.objective: BatchLoss = objective
        self.take_step = CapturedSteps() if captured else take_step
        self.distils = teaching is not None
        self.state = initial_state(self.settings, len(self.names), device, extended, start)
        self.budget: Budget | None = None
        self.done = 0.0
        if document:
            self.state.restore(document)
            logger.info("resuming %s after iteration %d", self.state_file, self.state.iteration)
            if minutes is not None:
                self.budget = Budget(60.0 * minutes, document["costs"], document["used"])
        elif minutes is not None:
            self.settings, self.budget = plan_budget(60.0 * minutes, settings, self.state, objective, self.team)
        for network in (self.state.network, self.state.averaged):  # PyTorch versions may draw different initial weights
            self.team.copy(network.state_dict().values())
        self.validation = Validation(loss, self.new_styles, self.settings, device)
        candidates = [preview] if preview else self.found
        multiple = self.state.network.multiple
        self.photograph = None if settings.texture else preview_photograph(candidates, multiple)
        self.reader: Batches = Photos(
            self.found,
            batch=settings.batch,
            crop_of=self._crop_of,
            seed=settings.seed,
            workers=workers,
            part=self.part,
        )
        self.history = self._history(styles, start, extended)
        self.curves = Curves(log) if log and self.team.leads else None
        self.written_at = -1

    def run(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> checkpoint.Checkpoint:
        """Train to the end; write the network with the lowest loss on held-out photographs, and return it.

        Every `every` iterations, at the end and on Ctrl-C this writes three files atomically: the checkpoint, which can
        be used at once (when styles are added to a checkpoint: at the end only); `<output>.resume`, from which `resume`
        continues exactly; and `<output stem>-preview.png`. `<output>.resume` is removed at the end. A second Ctrl-C
        writes nothing. Raises `TrainingError` for a loss that is not finite; the files then are those of the last
        validation.
        """
        if self.team.leads:
            self.save_state()  # a folder that cannot be written is an error before an hour of work
        state = self.state
        try:
            for progress in self.steps():
                on_progress(progress)
                if state.iteration % self.every == 0:
                    self.check_and_write()
            if state.iteration != self.written_at:
                self.check_and_write()
        except (SecondInterrupt, TrainingError):
            raise  # half a step, or a network that is not worth keeping
        except (KeyboardInterrupt, NstError):
            if state.iteration != self.written_at:
                self.check_and_write()
            raise
        finally:
            if self.curves:
                self.curves.close()
        result = self._result()
        if self.team.leads:
            checkpoint.save(result, self.output)
            self.state_file.unlink()
        return result

    def steps(self) -> Iterator[Progress]:
        """Run the remaining iterations, yielding after each; nothing is written."""
        self.done = self._share_done()
        for content in self._batches():
            if self.done >= 1.0:
                return
            yield self._step(content)

    def _share_done(self) -> float:
        """Return the completed share of the schedule, the same on every process."""
        if not self.budget:
            return self.state.iteration / self.settings.iterations
        budget = self.budget
        return max(self.done, self.team.from_leader(lambda: budget.done(self.settings)))

    def _facts(
        self, styles: Sequence[Path], vgg: Vgg16, minutes: float | None, resume: bool, teacher: Path | None
    ) -> dict[str, object]:
        """Return what must be the same on every process of this training."""
        loss_network = (values.cpu().numpy().tobytes() for values in vgg.state_dict().values())
        return {
            **{f"--{name.replace('_', '-')}": value for name, value in asdict(self.settings).items()},
            "the style images": _digest(style.read_bytes() for style in styles),
            "the photographs": f"{len(self.found)} files, {_digest(path.name.encode() for path in self.found)}",
            "the loss network": _digest(loss_network),
            "--minutes": minutes,
            "--resume": resume,
            "the teacher": teacher and _digest([teacher.read_bytes()]),
        }

    def _batches(self) -> Iterator[Tensor]:
        first = self.state.iteration
        iterations = itertools.count(first) if self.budget else range(first, self.settings.iterations)
        if not self.settings.texture:
            yield from self.reader.batches(iterations)
            return
        for iteration in iterations:  # a texture has no content; only the shape counts
            side = self._crop_of(iteration)
            yield torch.zeros(len(self.part), 3, side, side)

    def _crop_of(self, iteration: int) -> int:
        return self.settings.crop_after(self.done) if self.budget else self.settings.crop_at(iteration)

    def _step(self, content: Tensor) -> Progress:
        """Run an iteration; see `take_step` for its errors."""
        started = time.perf_counter()
        state, settings = self.state, self.settings
        distilled = self.distils and self.done < PHASES[0][0]
        if self.distils and not distilled and state.distilled_until is None:
            # Distillation's gradients are a hundredth of the next ones: without a new optimiser the first steps after
            # it would be far too long.
            state.distilled_until, state.gradient_norm = state.iteration, None
            state.optimizer = soap(state.network, settings.learning_rate)
        state.done = self.done
        for group in state.optimizer.param_groups:
            rate = settings.learning_rate_at(state.iteration, state.distilled_until or 0, self.done)
            group["lr"] = group["factor"] * rate
        self.take_step(
            state, self.objective, content, self.team, distilled=distilled, learning_rate=settings.learning_rate
        )
        if self.curves and state.iteration % LOGGED_EVERY_ITERATIONS == 0:
            self.curves.scalars("training", state.averages, state.iteration)
        self.done = self._share_done()
        averages = state.averages
        return Progress(
            state.iteration,
            settings.iterations,
            self.done,
            settings.batch / (time.perf_counter() - started),
            content=averages.get("content", 0.0),
            style=averages.get("style", 0.0),
            total_variation=averages.get("total_variation", 0.0),
            temporal=averages.get("temporal", 0.0),
            distillation=averages.get("distillation", 0.0) if "content" not in averages else 0.0,
            skipped=len(self.reader.broken),
        )

    def check_and_write(self) -> None:
        """Validate, keep the best network, and write the checkpoint, the preview and the state for `resume`."""
        if not self.team.leads:
            return
        state = self.state
        started = time.perf_counter()
        losses, stylized = self.validation(state.averaged)
        lowest = state.best["losses"].get("objective", math.inf) if state.best else math.inf
        if math.isfinite(losses["objective"]) and losses["objective"] <= lowest:
            weights = {key: value.detach().cpu().clone() for key, value in state.averaged.state_dict().items()}
            state.best = {"losses": losses, "iteration": state.iteration, "weights": weights}
            logger.info("iteration %d: lowest validation loss so far, %.4g", state.iteration, losses["objective"])
        if not self.extends:
            checkpoint.save(self._result(), self.output)
        self.save_state()
        preview = self.output.with_name(f"{self.output.stem}-preview.png")
        if self.photograph is None:
            write_texture_preview(stylized, preview)
        else:
            write_preview(state.averaged, self.new_styles, self.photograph, preview)
        self.written_at = state.iteration
        if self.curves:
            self.curves.scalars("held out", losses, state.iteration)
            self.curves.images(stylized, state.iteration)
        if self.budget:
            self.budget.ending = time.perf_counter() - started

    def _result(self) -> checkpoint.Checkpoint:
        """Return the best network so far with its history and metrics."""
        best, state = self.state.best, self.state
        network = type(state.network)(**state.network.arguments)
        network.load_state_dict(best["weights"] if best else state.averaged.state_dict())
        metrics = dict(state.averages)
        if best:
            metrics |= {f"held out {term}": value for term, value in best["losses"].items()}
        history = self.history | {
            "iterations_done": state.iteration,
            "seconds": round(state.seconds, 1),
            "best_iteration": best.get("iteration", state.iteration),
            "skipped": len(self.reader.broken),
            "blank": len(self.reader.blank),
        }
        return checkpoint.Checkpoint(checkpoint.frozen(network), self.names, history, metrics)

    def _identity(self) -> dict[str, Any]:
        """Return what a saved training must have in common with this training, besides the settings."""
        return {
            "styles": list(self.names),
            "teacher": self.teacher_name,
            "stepped by": OPTIMIZER,
            "minutes": self.minutes,
        }

    def save_state(self) -> None:
        """Write the state from which `resume` continues."""
        plan = {
            "used": self.budget.used() if self.budget else None,
            "costs": list(self.budget.costs) if self.budget else None,
        }
        document = {"settings": asdict(self.settings)} | self._identity() | plan | self.state.as_document()
        checkpoint.save_plain_data(document, self.state_file)

    def _history(
        self, styles: Sequence[Path], start: Path | None, extended: checkpoint.Checkpoint | None
    ) -> dict[str, Any]:
        """Return the history of the training for the checkpoint; it has names of files, not paths."""
        history: dict[str, Any] = {
            "style_images": [style.name for style in styles],
            "photos": 0 if self.settings.texture else len(self.found),
            "commit": _commit(),
            "device": self.team.device_name(),
            **asdict(self.settings),
        }
        if start:
            history["from"] = start.name
        if self.teacher_name:
            history["teacher"] = self.teacher_name
        if extended:
            history["before"] = extended.training
        if self.minutes is not None:
            history["minutes"] = self.minutes
        return history


def _digest(parts: Iterable[bytes]) -> str:
    """Return a digest of the parts and their order."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:12]


def _commit() -> str:
    """Return the commit of the code if it runs from a checkout, else `unknown`."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"
