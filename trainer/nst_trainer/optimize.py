"""Style transfer by optimising the picture itself (Gatys, Ecker and Bethge 2015 and 2016).

It needs no training and a forward and backward pass of the loss network an iteration; it is what
the feed-forward networks are measured against (Johnson et al. 2016, section 4.1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_core.errors import InputError, NstError
from nst_trainer import color
from nst_trainer.losses import PerceptualLoss
from nst_trainer.settings import INITS, OptimizationSettings
from nst_trainer.vgg import Vgg16
from nst_trainer.weights import Weights, normalized

FAINT = 4.0 / 255.0
"""Range of faint noise: a standard deviation of about one level of 255."""


class OptimizationError(NstError):
    """The loss is not finite; `picture` is the last good one, `[1, 3, H, W]` in [0, 1]."""

    def __init__(self, message: str, picture: Tensor) -> None:
        super().__init__(message)
        self.picture = picture


@dataclass(frozen=True)
class Iteration:
    """One forward and backward pass of the loss network, whatever the optimiser did with it.

    Losses are weighted, of the picture before the pass's step; `seconds` are since the start.
    """

    number: int
    size: tuple[int, int]
    content: float
    style: float
    total_variation: float
    seconds: float
    run: Run

    @property
    def total(self) -> float:
        """What is minimised."""
        return self.content + self.style + self.total_variation


class Extras(TypedDict, total=False):
    """What a run may have besides its pictures and settings."""

    shares: Sequence[float] | None
    """Weights of the styles; equal if not given."""
    guides: tuple[Tensor, Sequence[Tensor]] | None
    """Regions `[K, 1, h, w]` of the content and of each style."""
    start: Tensor | None
    """The picture `[1, 3, h, w]` that it starts from, if `init` names one."""
    shape: tuple[int, int] | None
    """Height and width of a texture, for the proportions; a content picture has its own."""
    tileable: bool
    """Opposite edges are joined."""
    device: torch.device
    """Where it is computed, and where the result is; the CPU if not given."""


def optimize(
    content: Tensor | None,
    styles: Sequence[Tensor],
    settings: OptimizationSettings,
    *,
    weights: Weights,
    resume: dict[str, Any] | None = None,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
    **extras: Unpack[Extras],
) -> Tensor:
    """Paint `content` in the `styles`, or a texture where there is no content; `[1, 3, H, W]` in [0, 1].

    `content` and `styles` are `[1, 3, H, W]` in [0, 1] of any size; the result has the content's
    proportions and `settings.size` pixels on the longer side. `weights` are the loss network's.
    `resume` is what `Run.state` gave. Raises `OptimizationError` when the loss is not finite,
    `InputError` for settings that do not go together.
    """
    run = Run(content, styles, settings, weights, **extras)
    if resume:
        run.restore(resume)
    while run.step(on_iteration):
        pass
    return run.picture()


class Run:
    """An optimisation that can be looked at, stopped and continued."""

    def __init__(
        self,
        content: Tensor | None,
        styles: Sequence[Tensor],
        settings: OptimizationSettings,
        weights: Weights,
        **extras: Unpack[Extras],
    ) -> None:
        """See `optimize`."""
        shape, self.start = extras.get("shape"), extras.get("start")
        self.shares, guides = extras.get("shares"), extras.get("guides")
        self.device = extras.get("device", torch.device("cpu"))
        content = None if content is None else content.to(self.device)
        proportions = shape if content is None else (content.shape[2], content.shape[3])
        of_content = settings.init in ("content", "recolored") or settings.colors != "style"
        if proportions is None or (content is None and of_content):
            raise InputError("without a content picture there must be a shape, the style's colours, and noise or grey")
        self.content, self.settings = content, settings
        self.styles = [_colored(style.to(self.device), content, settings) for style in styles]
        self.guides = guides and (guides[0].to(self.device), [guide.to(self.device) for guide in guides[1]])
        self.shape = proportions
        self.vgg = Vgg16(
            normalized(weights) if settings.normalize else weights,
            pooling=settings.pooling,
            tileable=extras.get("tileable", False),
            recompute=settings.low_memory,
        ).to(self.device)
        self.scale, self.done, self.number, self.seconds = 0, 0, 0, 0.0
        self.lowest: float
        self.best: Tensor
        self.mean: Tensor
        self._begin(self._initial().to(self.device))

    def step(self, on_iteration: Callable[[Iteration], None]) -> bool:
        """One iteration; False, and nothing done, when there is none left."""
        settings = self.settings
        while self.done >= settings.iterations_at(self.scale):
            if self.scale + 1 >= settings.scales:
                return False
            self._enlarge()
        started = time.perf_counter()
        losses: list[float] = []

        def evaluate() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            pixels = self.parameters.pixels()
            now = self.loss(pixels, self.target)
            now.total.backward()  # type: ignore[no-untyped-call]
            losses[:] = [now.content.item(), now.style.item(), now.total_variation.item()]
            if not math.isfinite(sum(losses)):
                message = f"iteration {self.number + 1}: the loss is {sum(losses)}; the last good picture is kept"
                raise OptimizationError(message, self.picture())
            if sum(losses) < self.lowest:
                self.lowest, self.best = sum(losses), pixels.detach().clone()
            return sum(losses)

        self.optimizer.step(evaluate)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the step's own arithmetic belongs to its seconds
        if settings.average:
            with torch.no_grad():
                self.mean.lerp_(self.parameters.pixels(), 1.0 - settings.average)
        self.done += 1
        self.number += 1
        self.seconds += time.perf_counter() - started
        content, style, variation = losses
        on_iteration(Iteration(self.number, self._size(), content, style, variation, self.seconds, self))
        return True

    def picture(self) -> Tensor:
        """The result so far: the picture of the lowest loss at this scale, or the average."""
        result = self.mean / self._mean_weight() if self.settings.average and self.done else self.best
        result = result.clamp(0.0, 1.0)
        if self.settings.colors == "luminance" and self.content is not None:
            return color.with_colors_of(_scaled(self.content, *self._size()), result)
        return result

    def state(self) -> dict[str, Any]:
        """Plain data from which `restore` continues exactly."""
        return {
            "scale": self.scale,
            "done": self.done,
            "number": self.number,
            "seconds": self.seconds,
            "lowest": self.lowest,
            "values": self.parameters.values.detach().clone(),
            "best": self.best,
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state` of a run with the same pictures and settings."""
        self.scale, self.done, self.number = state["scale"], state["done"], state["number"]
        self.seconds = state["seconds"]
        self._begin(state["best"].to(self.device))
        self.lowest = state["lowest"]
        self.best, self.mean = state["best"].to(self.device), state["mean"].to(self.device)
        self.parameters.values.data.copy_(state["values"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _size(self) -> tuple[int, int]:
        """(height, width) at this scale."""
        longer = self.settings.sizes()[self.scale]
        height, width = self.shape
        factor = longer / max(height, width)
        return max(16, round(height * factor)), max(16, round(width * factor))

    def _initial(self) -> Tensor:
        height, width = self._size()
        if self.settings.init == "content" and self.content is not None:
            return _scaled(self.content, height, width)
        if self.settings.init == "recolored" and self.content is not None:
            return _scaled(color.match_colors(self.content, self.styles[0]), height, width)
        if self.settings.init in ("noise", "faint-noise"):
            generator = torch.Generator().manual_seed(self.settings.seed)
            noise = torch.rand(1, 3, height, width, generator=generator)
            return noise if self.settings.init == "noise" else 0.5 + FAINT * (noise - 0.5)
        if self.settings.init == "grey":
            return torch.full((1, 3, height, width), 0.5)
        if self.start is None:
            raise InputError(f"init is {self.settings.init!r}: {', '.join(INITS)}, or a picture's path")
        return _scaled(self.start, height, width)

    def _begin(self, pixels: Tensor) -> None:
        """The loss, targets and optimiser of this scale, starting from `pixels`."""
        height, width = self._size()
        settings = self.settings
        styles = [_to_longer(style, settings.style_scale * max(height, width)) for style in self.styles]
        self.loss = PerceptualLoss(
            self.vgg,
            styles,
            settings.loss_weights,
            shares=self.shares,
            content_layers=settings.layers("content") if self.content is not None else {},
            style_layers=settings.layers("style"),
            relative=settings.relative,
            guides=self.guides,
        )
        grey = settings.colors == "luminance"
        self.target = {}
        if self.content is not None:
            content = _scaled(self.content, height, width)
            self.target = self.loss.content_target(color.luminance(content) if grey else content)
            pixels = color.luminance(pixels) if grey else pixels
        decay = settings.frequency_decay if settings.optimizer == "lbfgs" else 0.0
        self.parameters = _Parameters(pixels.detach(), decay)
        self.best, self.lowest = pixels.detach().clone(), math.inf
        self.mean = torch.zeros_like(self.best)
        self.optimizer: torch.optim.Optimizer = _optimizer(self.parameters.values, settings)

    def _enlarge(self) -> None:
        """To the next scale: the picture is enlarged, and with it the moments of Adam."""
        before = self.optimizer.state.get(self.parameters.values, {})
        pixels = self.mean / self._mean_weight() if self.settings.average else self.best
        self.scale, self.done = self.scale + 1, 0
        height, width = self._size()
        self._begin(_scaled(pixels, height, width))
        if self.settings.optimizer == "adam" and before:
            # As in Crowson's style-transfer-pytorch; else Adam would begin every scale anew.
            self.optimizer.state[self.parameters.values] = {
                "step": before["step"],
                "exp_avg": _bilinear(before["exp_avg"], height, width),
                "exp_avg_sq": _bilinear(before["exp_avg_sq"], height, width).clamp(min=0.0),
            }

    def _mean_weight(self) -> float:
        """The weights of the average sum to less than one at first; this is their sum."""
        return 1.0 - self.settings.average**self.done


class _Parameters:
    """What the optimiser moves: the pixels, or their spectrum, where it sees a frequency f as f^decay larger.

    A decorrelated parameterisation (Olah, Mordvintsev and Schubert 2017, *Feature Visualization*): large
    forms, which many pixels share, are found sooner. dev/LOG.md has what it brings.
    """

    def __init__(self, pixels: Tensor, decay: float) -> None:
        self.size = pixels.shape[2], pixels.shape[3]
        self.scales: Tensor | None = None
        values = pixels.clone(memory_format=torch.contiguous_format)
        if decay:
            height, width = self.size
            frequencies = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
            scales = frequencies.clamp(min=1.0 / max(height, width)) ** -decay
            self.scales = (scales / scales.square().mean().sqrt()).to(pixels.device)
            values = torch.view_as_real(torch.fft.rfft2(pixels, norm="ortho") / self.scales).contiguous()
        self.values = values.requires_grad_(True)

    def pixels(self) -> Tensor:
        """The picture `[1, 3, H, W]`; its gradient reaches `values`."""
        if self.scales is None:
            return self.values
        spectrum = torch.view_as_complex(self.values) * self.scales
        pixels: Tensor = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        return pixels


def _optimizer(values: Tensor, settings: OptimizationSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam([values], settings.learning_rate, betas=(0.9, 0.99))
    # One evaluation a step, so that an iteration is one pass. Tolerances of zero: it does not
    # end when it thinks that it has arrived. The papers' clipping to 0-255 at every iteration
    # is left out: it breaks the model of the curvature; the result is clipped once, at the end.
    return torch.optim.LBFGS(
        [values],
        settings.step,
        max_iter=1,
        max_eval=2,
        history_size=settings.history,
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )


def _colored(style: Tensor, content: Tensor | None, settings: OptimizationSettings) -> Tensor:
    """The style as the colour setting wants it."""
    if content is None or settings.colors == "style":
        return style
    matched = color.match_colors if settings.colors == "histogram" else color.match_luminance
    return matched(style, content)


def _scaled(pictures: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, in [0, 1]."""
    if pictures.shape[2:] == (height, width):
        return pictures.contiguous()
    return F.interpolate(pictures, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 1.0)


def _bilinear(values: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(values, (height, width), mode="bilinear", align_corners=False)


def _to_longer(picture: Tensor, longer: float) -> Tensor:
    """A style at `longer` pixels on its longer side; never below 32 on the shorter."""
    height, width = picture.shape[2:]
    factor = max(longer / max(height, width), 32.0 / min(height, width))
    return _scaled(picture, round(height * factor), round(width * factor))
