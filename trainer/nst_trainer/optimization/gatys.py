"""Style transfer by optimising the picture itself (Gatys, Ecker and Bethge 2015 and 2016).

It needs no training and a forward and backward pass of the loss network an iteration; it is what
the feed-forward networks are measured against (Johnson et al. 2016, section 4.1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_core.errors import InputError, NstError
from nst_trainer.losses import PerceptualLoss
from nst_trainer.optimization import color
from nst_trainer.optimization.lbfgs import Lbfgs
from nst_trainer.optimization.settings import INITS, OptimizationSettings
from nst_trainer.signals import uninterrupted
from nst_trainer.vgg import Vgg16
from nst_trainer.weights import Weights, normalized

Precision = Literal["fp32", "tf32", "bf16"]
"""What the loss network's convolutions, and with TF32 its matrix products, round their inputs to."""

WARM_UP = 3
"""Iterations at a size that a GPU runs operation by operation before they are captured as one CUDA graph."""

FARTHEST = 0.25
"""Root mean square of the farthest move of L-BFGS. Useful ones are below 0.13; without a line search the loss of
`gatys2016` now and then asks for hundreds, from where there is hardly a way back (dev/LOG.md)."""

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
    run: ImageOptimization

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
    precision: Precision
    """TF32 on a GPU and FP32 on a CPU if not given. Losses, gradients and the optimiser are FP32 anyway."""


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
    `resume` is what `ImageOptimization.state` gave. Raises `OptimizationError` when the loss is not finite,
    `InputError` for settings that do not go together.
    """
    run = ImageOptimization(content, styles, settings, weights, **extras)
    if resume:
        run.restore(resume)
    while run.step(on_iteration):
        pass
    return run.picture()


class ImageOptimization:
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
        self.precision: Precision = extras.get("precision", "tf32" if self.device.type == "cuda" else "fp32")
        if self.precision not in get_args(Precision) or (self.precision == "tf32" and self.device.type != "cuda"):
            raise InputError(f"precision is {self.precision!r}: fp32 or bf16, or on a GPU tf32")
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
        self._begin(self._initial().to(self.device))

    def step(self, on_iteration: Callable[[Iteration], None]) -> bool:
        """One iteration; False, and nothing done, when there is none left.

        It waits for the device, for the losses. Ctrl-C comes before the picture moves or after `on_iteration`, so that
        `state` is always of whole iterations; after an `AtOnce` it may not be.
        """
        settings = self.settings
        while self.done >= settings.iterations_at(self.scale):
            if self.scale + 1 >= settings.scales:
                return False
            with uninterrupted():
                self._enlarge()
        started = time.perf_counter()
        if self.graph is None:
            self.descent.evaluate()
        with uninterrupted():
            (self.graph or self.descent.advance)()
            content, style, variation = self.descent.losses.tolist()
            if not math.isfinite(total := content + style + variation):
                message = (
                    f"iteration {self.number + 1}: the loss is {total}; the last good picture is kept. "
                    "Try a smaller --step, or --optimizer adam"
                )
                raise OptimizationError(message, self.picture())
            self.done += 1
            self.number += 1
            self.seconds += time.perf_counter() - started
            on_iteration(Iteration(self.number, self._size(), content, style, variation, self.seconds, self))
        return True

    def picture(self) -> Tensor:
        """The result so far: the picture of the lowest loss at this scale, or the average."""
        result = self.descent.result().clamp(0.0, 1.0)
        if self.settings.colors == "luminance" and self.content is not None:
            return color.with_colors_of(_scaled(self.content, *self._size()), result)
        return result

    def state(self) -> dict[str, Any]:
        """Plain data from which `restore` continues exactly."""
        counts = {"scale": self.scale, "done": self.done, "number": self.number, "seconds": self.seconds}
        return counts | self.descent.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state` of a run with the same pictures and settings, on this or on another device."""
        self.scale, self.done, self.number = state["scale"], state["done"], state["number"]
        self.seconds = state["seconds"]
        self._begin(state["best"].to(self.device))
        self.descent.restore(state)

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
        grey = settings.colors == "luminance"
        self.target = {}
        with _tf32(self.device, self.precision), _bf16(self.device, self.precision):
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
            if self.content is not None:
                content = _scaled(self.content, height, width)
                self.target = self.loss.content_target(color.luminance(content) if grey else content)
        if self.content is not None and grey:
            pixels = color.luminance(pixels)
        decay = settings.frequency_decay if settings.optimizer == "lbfgs" else 0.0
        self.parameters = _Parameters(pixels.detach(), decay)
        optimizer = _optimizer(self.parameters.values, settings, settings.iterations_at(self.scale))
        self.descent = _Descent(self.loss, self.target, self.parameters, optimizer, settings.average, self.precision)
        # Where blocks are computed again, memory is short, and a graph would hold its own beside what is there.
        captured = self.device.type == "cuda" and not settings.low_memory
        self.graph = Repeated(self.descent.iterate, self.device) if captured else None

    def _enlarge(self) -> None:
        """To the next scale: the picture is enlarged, and with it the moments of Adam."""
        before, pixels = self.descent, self.descent.result()
        self.scale, self.done = self.scale + 1, 0
        height, width = self._size()
        self._begin(_scaled(pixels, height, width))
        if self.settings.optimizer == "adam" and (moments := before.optimizer_state()):
            # As in Crowson's style-transfer-pytorch; else Adam would begin every scale anew.
            self.descent.restore_optimizer(
                {
                    "step": moments["step"],
                    "exp_avg": _bilinear(moments["exp_avg"], height, width),
                    "exp_avg_sq": _bilinear(moments["exp_avg_sq"], height, width).clamp(min=0.0),
                }
            )


class _Descent:
    """The optimisation at one size: all that an iteration changes are tensors that stay where they are.

    `evaluate` and then `advance` are an iteration. Neither asks its device for anything, so that a CUDA graph can hold
    both. `evaluate` alone changes nothing that `state` has but for the best picture, and can be done again.
    """

    TENSORS = ("lowest", "best", "mean", "weight")

    def __init__(
        self,
        loss: PerceptualLoss,
        target: Mapping[str, Tensor],
        parameters: _Parameters,
        optimizer: Lbfgs | torch.optim.Adam,
        average: float,
        precision: Precision,
    ) -> None:
        self.loss, self.target, self.parameters = loss, target, parameters
        self.optimizer, self.average, self.precision = optimizer, average, precision
        self.best = parameters.pixels().detach().clone()
        self.losses = self.best.new_zeros(3)  # content, style, total variation
        self.lowest = self.best.new_full((), math.inf)
        self.mean, self.weight = torch.zeros_like(self.best), self.best.new_zeros(())

    def iterate(self) -> None:
        """One iteration."""
        self.evaluate()
        self.advance()

    def evaluate(self) -> None:
        """The losses of the pixels as they are and their gradient; the pixels are kept if they are the best so far."""
        pixels = self.parameters.pixels()
        with _tf32(pixels.device, self.precision):
            with _bf16(pixels.device, self.precision):
                now = self.loss(pixels, self.target)
            (self.parameters.values.grad,) = torch.autograd.grad(now.total, self.parameters.values)
        with torch.no_grad():
            self.losses.copy_(torch.stack([now.content, now.style, now.total_variation]))
            total = self.losses.sum()
            better = total < self.lowest  # never true for what is not a number
            self.best.copy_(torch.where(better, pixels, self.best))
            self.lowest.copy_(torch.where(better, total, self.lowest))

    @torch.no_grad()
    def advance(self) -> None:
        """A step along the gradient, and its pixels into the average, whose weights sum to `weight` (1 in the end)."""
        self.optimizer.step()
        if self.average:
            pixels = self.parameters.pixels()
            good = self.losses.isfinite().all() & pixels.isfinite().all()
            self.mean.copy_(torch.where(good, self.mean.lerp(pixels, 1.0 - self.average), self.mean))
            self.weight.copy_(torch.where(good, self.weight * self.average + (1.0 - self.average), self.weight))

    def result(self) -> Tensor:
        """The average, or the pixels of the lowest loss, `[1, 3, H, W]`; not cut to [0, 1]."""
        return self.mean / self.weight if self.average and self.weight > 0 else self.best

    def state(self) -> dict[str, Any]:
        """Copies, as plain data."""
        own = {name: getattr(self, name).clone() for name in self.TENSORS}
        return own | {"values": self.parameters.values.detach().clone(), "optimizer": self.optimizer_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        for name in self.TENSORS:
            getattr(self, name).copy_(state[name])
        self.parameters.values.data.copy_(state["values"])
        self.restore_optimizer(state["optimizer"])

    def optimizer_state(self) -> dict[str, Tensor]:
        """Copies of the optimiser's own tensors; Adam has none before its first step."""
        if isinstance(self.optimizer, Lbfgs):
            return self.optimizer.state_dict()
        return {name: value.clone() for name, value in self.optimizer.state[self.parameters.values].items()}

    def restore_optimizer(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `optimizer_state`."""
        if isinstance(self.optimizer, Lbfgs):
            self.optimizer.load_state_dict(state)
        elif state:
            values = self.parameters.values
            self.optimizer.state[values] = {name: value.to(values.device, copy=True) for name, value in state.items()}


class Repeated:
    """The same work again and again on a GPU, from the call after `WARM_UP` on as one CUDA graph.

    The first calls are real work, too. They let PyTorch and its libraries set up what a capture cannot: plans,
    workspaces, an optimiser's state. A graph's launch then costs one call in place of some hundred.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        """`work` reads and writes tensors that stay where they are, and asks the device for nothing."""
        self.work, self.device = work, device
        self.calls = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Do the work once; it is started, not waited for."""
        if self.replay is None and self.calls == WARM_UP:
            self.replay = self.capture()
        if self.replay is not None:
            self.replay()
        else:
            self.warm_up()
        self.calls += 1

    def warm_up(self) -> None:
        """Do the work on the stream that captures, as PyTorch wants it, in order with what is before and after."""
        now = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            self.work()
        now.wait_stream(self.stream)

    def capture(self) -> Callable[[], None]:
        """What launches all kernels of the work as one graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
            self.work()
        return graph.replay

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """Where it warms up and captures."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]


@contextmanager
def _tf32(device: torch.device, precision: Precision) -> Iterator[None]:
    """On a GPU convolutions and matrix products round their inputs to TF32, or do not; afterwards it is as before."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _bf16(device: torch.device, precision: Precision) -> torch.autocast:
    """Convolutions in bfloat16 if that is the precision. Nothing is cached, since a graph could not hold it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


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


def _optimizer(values: Tensor, settings: OptimizationSettings, iterations: int) -> Lbfgs | torch.optim.Adam:
    if settings.optimizer == "adam":
        # Capturable: the count of its steps is on the device, too.
        return torch.optim.Adam([values], settings.learning_rate, betas=(0.9, 0.99), capturable=values.is_cuda)
    # The papers' clipping to 0-255 at every iteration is left out: it breaks the model of the curvature; the result is
    # clipped once, at the end.
    return Lbfgs(values, settings.step, min(settings.history, iterations), FARTHEST)


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
