"""Training a feed-forward network (Johnson, Alahi and Fei-Fei 2016, section 3) for one style or many.

Each iteration stylises a batch of photographs, measures content, style and total variation with
the loss network, and takes one step of SOAP.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_core.errors import ImageError, InputError, NstError
from nst_core.images import (
    ImageData,
    find_images,
    fit,
    open_image,
    sample_photographs,
    save_image,
    side_by_side,
)
from nst_trainer import checkpoint
from nst_trainer.images import open_style, to_image, to_tensor
from nst_trainer.losses import PerceptualLoss, border_loss, checkerboard_loss
from nst_trainer.networks import ARCHITECTURES, Johnson, StyledNetwork
from nst_trainer.signals import AtOnce, uninterrupted
from nst_trainer.training.budget import Budget
from nst_trainer.training.data import Photos
from nst_trainer.training.distributed import Team
from nst_trainer.training.settings import PHASES, TrainingSettings
from nst_trainer.training.soap import Soap, soap
from nst_trainer.training.validation import Curves, Validation, noise, one_hot
from nst_trainer.vgg import Vgg16

CHECKERBOARD_WEIGHT = 1000.0
"""At this weight a checkerboard of 3.6 levels of 255, as training without this term gave, counts 0.2 (dev/LOG.md)."""

BORDER_WEIGHT = 30.0
"""At this weight a line of 70 levels of 255 along one side, as a style image with a pale margin gave, counts 0.14."""

DISTILLATION_WEIGHT = 100.0
"""Of the mean squared difference from a teacher's picture: about the size of the losses that come after."""

CLIP = 10.0
"""Longest gradient over the mean length of the last ones. Photographs stay below 2 (dev/LOG.md)."""

FIRST = 1e12
"""The same bound as long as there is no mean: SOAP squares a gradient, and beyond 1e19 FP32 has no square."""

FEWEST = 600
"""A budget of minutes buys at least so many iterations, on smaller crops if need be."""


class TrainingError(NstError):
    """The training cannot go on."""


@dataclass
class Progress:
    """What a run tells after every iteration. Losses are weighted; a loss that is printed is a mean."""

    iteration: int
    iterations: int  # of a training by time: as planned
    done: float  # the share of the schedule that is behind
    images_per_second: float
    content: float
    style: float
    total_variation: float
    steady: float
    taught: float  # the difference from the teacher, while there is no other loss
    skipped: int


@dataclass
class _State:
    """What a resumed training continues from."""

    network: StyledNetwork
    optimizer: Soap
    iteration: int = 0
    begun: int | None = None  # the iteration that was the first without the teacher
    length: float | None = None  # of the gradient, the mean of about the last twenty
    averages: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)  # validation losses, iteration and weights
    seconds: float = 0.0  # of all iterations, also of the runs that were interrupted


class Training:
    """A training from files to a file; `run` does it."""

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
    ) -> None:
        """Read everything, so that unusable input is found out before the first step.

        `styles` are pictures, one network for all. `photos` is a folder, None the few photographs that ship.
        `minutes` is the time it takes from here to the end, together with that of earlier runs if it is resumed: the
        schedule follows the clock, `settings.iterations` becomes an estimate, and for little time `settings.crop` is
        smaller. `start` is a
        checkpoint whose weights it begins with; `add_to` one that learns `styles` besides its own, which stay
        as they are to the bit: nothing but the new normalisations is trained. `teacher` is a checkpoint
        of the same styles in the same order: what it paints is learned first, on the small crops, without the
        loss network (Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*). `log` is a folder
        for TensorBoard. Raises `InputError`.
        """
        self.output, self.every, self.team = output, every, team or Team()
        self.precision, self.why_precision = self.team.precision()
        self.state_file = output.with_name(output.name + ".resume")
        self.minutes = minutes
        if self.team.from_leader(self.state_file.exists) and not resume:
            raise InputError(f"{self.state_file} is an unfinished training: go on with --resume, or remove it")
        before = checkpoint.load(add_to) if add_to else None
        if before:
            arguments = {"arch": before.network.name, "width": before.network.arguments["width"]}
            settings = replace(settings, **arguments, texture=before.network.arguments.get("texture", False))
        self.settings = settings
        self.names = _names(styles, output, before)
        self.first_new = before.network.styles if before else 0
        self.teacher_name = teacher.name if teacher else None
        self.teacher = _teacher(teacher, settings, len(self.names), self.team.device) if teacher else None
        self.partly = before is not None
        self.found = sample_photographs() if photos is None or settings.texture else find_images(photos)
        candidates = [preview] if preview else self.found
        self.part = self.team.part(settings.batch)
        if self.team.size > 1:
            told = {
                "--minutes": minutes,
                "--resume": resume,
                "the teacher": teacher and _digest([teacher.read_bytes()]),
            }
            self.team.check_same(self._facts(styles, vgg) | told)
        pictures = [to_tensor(open_style(style, max_side=settings.style_size)) for style in styles]
        device = self.team.device
        self.loss = PerceptualLoss(
            vgg.to(device), [picture.to(device) for picture in pictures], settings.loss_weights, apart=True
        )
        document = self.team.from_leader(self._read_state) if resume else None
        if document:  # a training that came to no good end goes on with another learning rate
            self.settings = settings = replace(
                settings, **document["settings"] | {"learning_rate": settings.learning_rate}
            )
        self.state = self._fresh(before, start)
        self.budget: Budget | None = None
        self.done = 0.0
        if document:
            self._restore(document)
        elif minutes is not None:
            self.settings, self.budget = settings, _ = self._planned(60.0 * minutes)
        self.team.copy(self.state.network.state_dict().values())  # another version of PyTorch may draw other ones
        self.validation = Validation(self.loss, self._new_styles(), settings.crop, device)
        self.shown = None if settings.texture else _preview_photo(candidates, self.state.network.multiple)
        self.reader = Photos(
            self.found,
            batch=settings.batch,
            crop_of=self._crop_of,
            seed=settings.seed,
            workers=workers,
            part=self.part,
        )
        self.history = self._history(styles, start, before)
        self.curves = Curves(log) if log and self.team.leads else None
        self.written = -1

    def run(self, on_iteration: Callable[[Progress], None] = lambda progress: None) -> checkpoint.Checkpoint:
        """Train to the end; write the network that was best on held-out photographs, and return it.

        Every `every` iterations, at the end and on Ctrl-C three files are written whole: the
        checkpoint, usable at once (when styles are added to one: at the end only);
        `<output>.resume`, from which `resume` continues exactly; and `<output stem>-preview.png`.
        `<output>.resume` is removed at the end. A second Ctrl-C writes nothing. Raises `TrainingError` for a loss that
        is not finite: nothing is written then, and the files are those of the last check.
        """
        if self.team.leads:
            self._save_state()  # now, so that a folder that cannot be written is not found out after an hour
        state = self.state
        try:
            for progress in self.steps():
                on_iteration(progress)
                if state.iteration % self.every == 0:
                    self._write()
            if state.iteration != self.written:
                self._write()
        except (AtOnce, TrainingError):
            raise  # half a step, or a network that leads nowhere
        except (KeyboardInterrupt, NstError):
            if state.iteration != self.written:
                self._write()
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
        """The iterations that are left, one at a time; nothing is written."""
        self.done = self._share_done()
        for pictures in self._batches():
            if self.done >= 1.0:
                return
            yield self._step(pictures)

    def _share_done(self) -> float:
        """The share of the schedule that is behind, the same on every process."""
        if not self.budget:
            return self.state.iteration / self.settings.iterations
        budget = self.budget
        return max(self.done, self.team.from_leader(lambda: budget.done(self.settings)))

    def _facts(self, styles: Sequence[Path], vgg: Vgg16) -> dict[str, object]:
        """What has to be the same wherever a part of this training runs."""
        loss_network = (one.cpu().numpy().tobytes() for one in vgg.state_dict().values())
        return {
            **{f"--{name.replace('_', '-')}": value for name, value in asdict(self.settings).items()},
            "the styles' pictures": _digest(style.read_bytes() for style in styles),
            "the photographs": f"{len(self.found)} files, {_digest(path.name.encode() for path in self.found)}",
            "the loss network": _digest(loss_network),
        }

    def _new_styles(self) -> range:
        return range(self.first_new, self.state.network.styles)

    def _batches(self) -> Iterator[Tensor]:
        first = self.state.iteration
        iterations = itertools.count(first) if self.budget else range(first, self.settings.iterations)
        if not self.settings.texture:
            yield from self.reader.batches(iterations)
            return
        for iteration in iterations:  # of a texture's pictures only the shape counts
            side = self._crop_of(iteration)
            yield torch.zeros(len(self.part), 3, side, side)

    def _crop_of(self, iteration: int) -> int:
        return self.settings.crop_after(self.done) if self.budget else self.settings.crop_at(iteration)

    def _fresh(self, before: checkpoint.Checkpoint | None, start: Path | None) -> _State:
        settings, count = self.settings, len(self.names)
        torch.manual_seed(settings.seed)
        if before:
            network = before.network.with_styles(count - before.network.styles)
        else:
            extra = {"texture": True} if settings.texture else {}
            network = ARCHITECTURES[settings.arch](width=settings.width, styles=count, **extra)
            if start:
                _begin_with(network, start)
        network = network.to(self.team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if before:
            network.requires_grad_(False)
            for norm in network.norms():
                norm.requires_grad_(True)
        return _State(network, soap(network, settings.learning_rate))

    def _planned(self, seconds: float) -> tuple[TrainingSettings, Budget]:
        """A plan for `seconds`: crops as large as leaves `FEWEST` iterations."""
        budget = Budget(seconds, [])
        for side in [side for side in (self.settings.crop, 192, 128) if side <= self.settings.crop]:
            planned = replace(self.settings, crop=side)
            budget.costs = [
                self._cost(crop, taught=bool(self.teacher) and number == 0)
                for number, (_, crop) in enumerate(planned.phases())
            ]
            count = budget.iterations(planned)
            if count >= FEWEST:
                break
        return replace(planned, iterations=count), budget

    def _cost(self, side: int, *, taught: bool) -> float:
        """Seconds of an iteration on crops of `side` pixels, without touching what is learned."""
        pictures = torch.rand(len(self.part), 3, side, side)
        kept, taken = self.state, []
        network = copy.deepcopy(kept.network)
        self.state = _State(network, soap(network, self.settings.learning_rate))
        try:
            for _ in range(3):
                started = time.perf_counter()
                self._learn(pictures, taught)
                taken.append(time.perf_counter() - started)
        finally:
            self.state = kept
        return self.team.slowest(min(taken[1:]))

    def _losses(self, pictures: Tensor, taught: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and its weighted parts by name; style also by layer. `taught`: by the teacher alone."""
        settings, network = self.settings, self.state.network
        pictures = pictures.to(self.team.device, memory_format=torch.channels_last)
        numbers = self._styles_of_batch()
        mix = one_hot(numbers + self.first_new, network.styles)
        generator = noise(settings.seed * 1_000_003 + self.state.iteration * self.team.size + self.team.rank)
        network.train()
        with torch.autocast(self.team.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            painted = network(pictures, mix, network.draw_noise(pictures, generator)).float()
            if taught and self.teacher:
                with torch.no_grad():
                    shown = self.teacher(pictures, mix).float()
                difference = DISTILLATION_WEIGHT * F.mse_loss(painted, shown)
                return difference, {"taught": difference}
            target = {} if settings.texture else self.loss.content_target(pictures)
            losses = self.loss(painted, target, numbers)
        terms = {"content": losses.content, "style": losses.style, "total_variation": losses.total_variation}
        terms["lattice"] = CHECKERBOARD_WEIGHT * checkerboard_loss(painted)
        if not settings.texture:  # its rows may differ anywhere, and a few grains in a row would count
            terms["frame"] = BORDER_WEIGHT * border_loss(painted)
        if settings.steady:
            terms["steady"] = settings.steady * unsteadiness(network, pictures, painted, mix, generator)
        total = sum(terms.values(), painted.new_zeros(()))
        return total, terms | {f"style {layer}": value for layer, value in losses.style_by_layer.items()}

    def _styles_of_batch(self) -> Tensor:
        """`[N]`: the new styles in turn, whichever process paints the picture."""
        first = self.state.iteration * self.settings.batch
        count = len(self.names) - self.first_new
        return torch.tensor([(first + position) % count for position in self.part], device=self.team.device)

    def _step(self, pictures: Tensor) -> Progress:
        """One iteration; raises `TrainingError` for a loss or gradient that is not finite: nothing of it is learned."""
        started = time.perf_counter()
        state, settings = self.state, self.settings
        taught = bool(self.teacher) and self.done < PHASES[0][0]
        if self.teacher and not taught and state.begun is None:
            # The teacher's gradients were a hundredth of those to come: by their memory the first steps would be giant.
            state.begun, state.length = state.iteration, None
            state.optimizer = soap(state.network, settings.learning_rate)
        for group in state.optimizer.param_groups:
            rate = settings.learning_rate_at(state.iteration, state.begun or 0, self.done)
            group["lr"] = group["factor"] * rate
        self._learn(pictures, taught)
        if self.curves and state.iteration % 10 == 0:
            self.curves.scalars("training", state.averages, state.iteration)
        self.done = self._share_done()
        return Progress(
            state.iteration,
            settings.iterations,
            self.done,
            settings.batch / (time.perf_counter() - started),
            content=state.averages.get("content", 0.0),
            style=state.averages.get("style", 0.0),
            total_variation=state.averages.get("total_variation", 0.0),
            taught=state.averages.get("taught", 0.0) if "content" not in state.averages else 0.0,
            steady=state.averages.get("steady", 0.0),
            skipped=len(self.reader.broken),
        )

    def _learn(self, pictures: Tensor, taught: bool) -> None:
        """Losses, gradients and a step of the optimiser, which Ctrl-C does not cut in two."""
        started = time.perf_counter()
        state = self.state
        total, terms = self._losses(pictures, taught)
        state.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.team.average(state.network.parameters())
        gradients = [one.grad for one in state.network.parameters() if one.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients)
        read = torch.stack([length, total.detach(), *(value.detach() for value in terms.values())])
        on_cpu = read.device.type == "cpu"
        if on_cpu:
            self._refuse_what_is_not_finite(read)
        bound = CLIP * state.length if state.length else FIRST
        torch._foreach_mul_(gradients, (bound / length).clamp(max=1.0))
        if not on_cpu:
            # A GPU is waited for once a step, when all of it is on its list already; till then the step must not fail.
            for gradient in gradients:
                gradient.nan_to_num_(0.0, 0.0, 0.0)
        with uninterrupted():
            state.optimizer.step()
            if not on_cpu:
                self._refuse_what_is_not_finite(read)
            norm, _, *values = read.tolist()
            state.iteration += 1
            newest = max(0.05, 1.0 / state.iteration) if state.length else 1.0
            state.length = (1.0 - newest) * (state.length or 0.0) + newest * min(norm, bound)
            newest = max(0.02, 1.0 / state.iteration)  # a mean of all at first, then of about the last fifty
            for key, value in zip(terms, values, strict=True):
                state.averages[key] = (1.0 - newest) * state.averages.get(key, value) + newest * value
            state.seconds += time.perf_counter() - started

    def _refuse_what_is_not_finite(self, read: Tensor) -> None:
        """Raise `TrainingError` if the length of the gradient or the loss, the first two of `read`, is not finite."""
        length, loss, *_ = read.tolist()
        if not math.isfinite(loss) or not math.isfinite(length):
            rate = self.settings.learning_rate
            raise TrainingError(
                f"iteration {self.state.iteration}: the loss is {loss}, the length of its gradient {length}; nothing "
                f"of it is learned, and the files are those of the last check. Go on from there with --resume "
                f"--learning-rate {rate / 2:g} (it was {rate:g})"
            )

    def _write(self) -> None:
        """Validate, keep the best, and write what a person and a resumed run need."""
        if not self.team.leads:
            return
        state = self.state
        started = time.perf_counter()
        losses, painted = self.validation(state.network)
        if math.isfinite(losses["total"]) and (not state.best or losses["total"] <= state.best["losses"]["total"]):
            weights = {key: value.detach().cpu().clone() for key, value in state.network.state_dict().items()}
            state.best = {"losses": losses, "iteration": state.iteration, "weights": weights}
        if not self.partly:
            checkpoint.save(self._result(), self.output)
        self._save_state()
        self._write_preview(painted)
        self.written = state.iteration
        if self.curves:
            self.curves.scalars("held out", losses, state.iteration)
            self.curves.pictures(painted, state.iteration)
        if self.budget:
            self.budget.ending = time.perf_counter() - started

    def _result(self) -> checkpoint.Checkpoint:
        """The best network so far with its papers."""
        best, state = self.state.best, self.state
        network = type(state.network)(**state.network.arguments)
        network.load_state_dict(best["weights"] if best else state.network.state_dict())
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

    def _save_state(self) -> None:
        state = self.state
        document = {
            "settings": asdict(self.settings),
            "styles": list(self.names),
            "teacher": self.teacher_name,
            "stepped by": "SOAP",
            "minutes": self.minutes,
            "used": self.budget.used() if self.budget else None,
            "costs": list(self.budget.costs) if self.budget else None,
            "begun": state.begun,
            "length": state.length,
            "network": state.network.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "iteration": state.iteration,
            "averages": state.averages,
            "best": state.best,
            "seconds": state.seconds,
        }
        checkpoint.save_plain_data(document, self.state_file)

    def _read_state(self) -> dict[str, Any]:
        """The state on disk, if it was begun with these settings and styles; a plan keeps its own.

        The learning rate may be another, since a training that ended in a loss that is not finite needs one.
        """
        if not self.state_file.is_file():
            raise InputError(f"{self.state_file}: nothing to resume")
        document: dict[str, Any] = checkpoint.read_plain_data(self.state_file)
        own = {"styles": list(self.names), "teacher": self.teacher_name, "stepped by": "SOAP", "minutes": self.minutes}
        now = asdict(self.settings) | own
        before = document["settings"] | {key: document.get(key) for key in own}
        free = ("learning_rate", "iterations", "crop") if self.minutes else ("learning_rate",)
        if changed := [key for key in now if now[key] != before.get(key) and key not in free]:
            differences = ", ".join(f"{key} was {before.get(key)}, is {now[key]}" for key in changed)
            raise InputError(f"{self.state_file} was begun with other settings: {differences}")
        return document

    def _restore(self, document: Mapping[str, Any]) -> None:
        state = self.state
        state.network.load_state_dict(document["network"])
        state.optimizer.load_state_dict(document["optimizer"])
        state.iteration, state.averages, state.best = document["iteration"], document["averages"], document["best"]
        state.seconds = document.get("seconds", 0.0)  # a state of an earlier version has none, nor these
        state.begun, state.length = document.get("begun"), document.get("length")
        if self.minutes is not None:
            self.budget = Budget(60.0 * self.minutes, document["costs"], document["used"])

    def _history(
        self, styles: Sequence[Path], start: Path | None, before: checkpoint.Checkpoint | None
    ) -> dict[str, Any]:
        """What contract 2 keeps of a training; names of files, no paths."""
        more: dict[str, Any] = {"from": start.name} if start else {}
        if self.teacher_name:
            more["teacher"] = self.teacher_name
        if before:
            more["before"] = before.training
        pictures = [style.name for style in styles]
        photos = 0 if self.settings.texture else len(self.found)
        if self.minutes is not None:
            more["minutes"] = self.minutes
        own = {"style_pictures": pictures, "photos": photos, "commit": _commit(), "device": self.team.device_name()}
        return own | asdict(self.settings) | more

    @torch.no_grad()
    def _write_preview(self, painted: Tensor) -> None:
        """The photograph and its paintings in the first of the new styles; of a texture, samples."""
        if self.shown is None:
            shown = [to_image(one[None]).pixels for one in painted]
        else:
            network = self.state.network.eval()
            shown = [self.shown.pixels]
            photo = to_tensor(self.shown).to(self.team.device)
            for style in self._new_styles()[:4]:
                mix = one_hot(torch.tensor([style], device=photo.device), network.styles)
                shown.append(to_image(network(photo, mix)).pixels)
        save_image(ImageData(side_by_side(shown)), self.output.with_name(f"{self.output.stem}-preview.png"))


def unsteadiness(
    network: StyledNetwork, pictures: Tensor, painted: Tensor, mix: Tensor | None, generator: torch.Generator
) -> Tensor:
    """How much `painted` `[N, 3, H, W]` changes when `pictures` move by some pixels and get noise; a scalar.

    Stability training (Zheng et al. 2016, equation 3) with the perturbation of a steady hand's
    video, a shift of up to four pixels and noise of two levels, as Rainy and de Berker 2018 (*Stabilizing
    Neural Style-Transfer for Video*) have it. The mean squared difference in [0, 1] after undoing the shift.
    """
    down, right = (int(torch.randint(-4, 5, (), generator=generator)) for _ in range(2))
    grain = torch.randn(pictures.shape, generator=generator).to(pictures) * (2.0 / 255.0)
    moved = torch.roll(pictures, (down, right), (2, 3)) + grain
    again = torch.roll(network(moved, mix).float(), (-down, -right), (2, 3))
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # what came round the border does not count
    return (again[inside] - painted[inside]).square().mean()


def _digest(parts: Iterable[bytes]) -> str:
    """Differs wherever one of the parts does."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:12]


def _names(styles: Sequence[Path], output: Path, before: checkpoint.Checkpoint | None) -> tuple[str, ...]:
    """What the styles will be called: the checkpoint's name for one alone, else the pictures'."""
    new = [output.stem] if len(styles) == 1 and not before else [style.stem for style in styles]
    names = (*(before.styles if before else ()), *new)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two styles would be called {', '.join(twice)}: rename the picture")
    return names


def _teacher(path: Path, settings: TrainingSettings, styles: int, device: torch.device) -> StyledNetwork:
    network: StyledNetwork = checkpoint.load(path).network
    if network.styles != styles or network.arguments.get("texture"):
        raise InputError(
            f"{path} paints {network.styles} styles, and {styles} are to be learned: it is no teacher of them"
        )
    if settings.texture or settings.crop_at(0) == settings.crop:
        raise InputError("a teacher teaches on small crops of photographs: without --texture and --no-grow")
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return,call-overload]


def _begin_with(network: StyledNetwork, start: Path) -> None:
    """Take the weights of a checkpoint; for another number of styles each begins as the mean of its styles.

    Johnson's network may be wider than the checkpoint's.
    """
    other: StyledNetwork = checkpoint.load(start).network
    width = network.arguments["width"]
    if isinstance(other, Johnson) and isinstance(network, Johnson) and width > other.arguments["width"]:
        other = other.widened(width, noise(0))
    if other.arguments | {"styles": network.styles} != network.arguments:
        raise InputError(
            f"{start} has {other.arguments}, this training {network.arguments}: give the same --width, or a larger one"
        )
    if other.styles != network.styles:
        for norm in other.norms():
            norm.weight.data = norm.weight.mean(dim=0).expand(network.styles, -1)
            norm.bias.data = norm.bias.mean(dim=0).expand(network.styles, -1)
    network.load_state_dict(other.state_dict())


def _commit() -> str:
    """The commit of the code, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def _preview_photo(candidates: list[Path], multiple: int) -> ImageData:
    """The first that can be read, at most 512 pixels a side, cut to multiples of `multiple`."""
    for path in candidates:
        try:
            picture = open_image(path, max_side=512)
        except ImageError:
            if path is candidates[-1]:
                raise
            continue
        width, height = (max(2, side // multiple) * multiple for side in (picture.width, picture.height))
        return fit(picture, width, height)
    raise InputError("no photograph for the preview")
