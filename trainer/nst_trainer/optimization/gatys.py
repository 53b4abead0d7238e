"""Style transfer by optimising the image itself (Gatys, Ecker and Bethge 2015 and 2016).

It needs no training; an iteration is a forward and backward pass of the loss network. Feed-forward networks are
measured against it (Johnson et al. 2016, section 4.1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_core.errors import InputError, NstError
from nst_trainer.cuda_graph import CudaGraphReplay
from nst_trainer.losses import PerceptualLoss
from nst_trainer.optimization import color
from nst_trainer.optimization.scale import Precision, ScaleOptimization, bf16, tf32
from nst_trainer.optimization.settings import INITS, MINIMUM_SIDE_PIXELS, OptimizationSettings
from nst_trainer.signals import uninterrupted
from nst_trainer.vgg import MINIMUM_SIDE_PIXELS as VGG_MINIMUM_SIDE_PIXELS
from nst_trainer.vgg import Vgg16, Weights
from nst_trainer.weights import normalized

FAINT_NOISE_RANGE = 4.0 / 255.0
"""A standard deviation of about 1 of 255."""


class OptimizationError(NstError):
    """The loss is not finite; `image` is the last good image, `[1, 3, H, W]` in [0, 1]."""

    def __init__(self, message: str, image: Tensor) -> None:
        super().__init__(message)
        self.image = image


@dataclass(frozen=True)
class Iteration:
    """A forward and backward pass of the loss network and the step after it.

    Losses are weighted, and those of the image before the step. `size` is (height, width); `seconds` count from the
    start.
    """

    number: int
    size: tuple[int, int]
    content: float
    style: float
    total_variation: float
    seconds: float
    optimization: ImageOptimization

    @property
    def total(self) -> float:
        """The weighted sum of the losses, which is minimised."""
        return self.content + self.style + self.total_variation


class OptimizationOptions(TypedDict, total=False):
    """Options of an optimisation besides its images and settings."""

    style_weights: Sequence[float] | None
    """Weights of the styles; equal if not given."""
    guides: tuple[Tensor, Sequence[Tensor]] | None
    """Masks `[K, 1, h, w]` of K regions, of the content and of each style."""
    start: Tensor | None
    """Initial image `[1, 3, h, w]` in [0, 1], if `init` names a file."""
    shape: tuple[int, int] | None
    """Proportions (height, width) of a texture; a content image has its own."""
    tileable: bool
    """Make opposite edges match."""
    device: torch.device
    """Device of the computation and the result; the CPU if not given."""
    precision: Precision
    """TF32 on a GPU and FP32 on a CPU if not given. Losses, gradients and the optimiser are always FP32."""


def optimize(
    content: Tensor | None,
    styles: Sequence[Tensor],
    settings: OptimizationSettings,
    *,
    weights: Weights,
    resume: dict[str, Any] | None = None,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
    **options: Unpack[OptimizationOptions],
) -> Tensor:
    """Stylize `content`, or make a texture if it is None; return `[1, 3, H, W]` in [0, 1].

    `content` and `styles` are `[1, 3, H, W]` in [0, 1] of any size; the result has the content's proportions and
    `settings.size` pixels on the longer side. `weights` are the loss network's. `resume` is a former
    `ImageOptimization.state`. Raises `OptimizationError` if the loss is not finite, and `InputError` for settings that
    contradict each other.
    """
    optimization = ImageOptimization(content, styles, settings, weights, **options)
    if resume:
        optimization.restore(resume)
    while optimization.step(on_iteration):
        pass
    return optimization.image()


class ImageOptimization:
    """An optimisation that can be inspected, stopped and resumed."""

    def __init__(
        self,
        content: Tensor | None,
        styles: Sequence[Tensor],
        settings: OptimizationSettings,
        weights: Weights,
        **options: Unpack[OptimizationOptions],
    ) -> None:
        """See `optimize`."""
        shape, self.start = options.get("shape"), options.get("start")
        self.style_weights, guides = options.get("style_weights"), options.get("guides")
        self.device = options.get("device", torch.device("cpu"))
        self.precision: Precision = options.get("precision", "tf32" if self.device.type == "cuda" else "fp32")
        if self.precision not in get_args(Precision) or (self.precision == "tf32" and self.device.type != "cuda"):
            raise InputError(f"precision is {self.precision!r}; choose fp32 or bf16, or tf32 on a GPU")
        content = None if content is None else content.to(self.device)
        proportions = shape if content is None else (content.shape[2], content.shape[3])
        of_content = settings.init in ("content", "recolored") or settings.colors != "style"
        if proportions is None or (content is None and of_content):
            raise InputError(
                "without a content image, give a shape, --colors style, and --init noise, faint-noise or grey"
            )
        self.content, self.settings = content, settings
        self.styles = [_colored(style.to(self.device), content, settings) for style in styles]
        self.guides = guides and (guides[0].to(self.device), [guide.to(self.device) for guide in guides[1]])
        self.shape = proportions
        self.vgg = Vgg16(
            normalized(weights) if settings.normalize else weights,
            pooling=settings.pooling,
            tileable=options.get("tileable", False),
            recompute=settings.low_memory,
        ).to(self.device)
        self.scale, self.done, self.number, self.seconds = 0, 0, 0, 0.0
        self._begin(self._initial().to(self.device))

    def step(self, on_iteration: Callable[[Iteration], None]) -> bool:
        """Run an iteration and return True; return False if none is left.

        It waits for the losses from the device. Ctrl-C takes effect before the image changes or after `on_iteration`,
        so that `state` always has whole iterations, except after a `SecondInterrupt`.
        """
        settings = self.settings
        while self.done >= settings.iterations_at(self.scale):
            if self.scale + 1 >= settings.scales:
                return False
            with uninterrupted():
                self._enlarge()
        started = time.perf_counter()
        if self.graph is None:
            self.current.evaluate()
        with uninterrupted():
            (self.graph or self.current.advance)()
            content, style, variation = self.current.losses.tolist()
            if not math.isfinite(total := content + style + variation):
                message = (
                    f"iteration {self.number + 1}: the loss is {total}; the image before it is kept. "
                    "Repeat with a smaller --step, or with --optimizer adam"
                )
                raise OptimizationError(message, self.image())
            self.done += 1
            self.number += 1
            self.seconds += time.perf_counter() - started
            on_iteration(Iteration(self.number, self._size(), content, style, variation, self.seconds, self))
        return True

    def image(self) -> Tensor:
        """Return the result so far: the moving average, or the image of the lowest loss at this scale."""
        result = self.current.result().clamp(0.0, 1.0)
        if self.settings.colors == "luminance" and self.content is not None:
            return color.with_colors_of(_scaled(self.content, *self._size()), result)
        return result

    def state(self) -> dict[str, Any]:
        """Return plain data from which `restore` continues exactly."""
        counts = {"scale": self.scale, "done": self.done, "number": self.number, "seconds": self.seconds}
        return counts | self.current.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of an optimisation of the same images and settings, on any device."""
        self.scale, self.done, self.number = state["scale"], state["done"], state["number"]
        self.seconds = state["seconds"]
        self._begin(state["best"].to(self.device))
        self.current.restore(state)

    def _size(self) -> tuple[int, int]:
        """Return (height, width) at this scale."""
        longer = self.settings.sizes()[self.scale]
        height, width = self.shape
        factor = longer / max(height, width)
        minimum = VGG_MINIMUM_SIDE_PIXELS
        return max(minimum, round(height * factor)), max(minimum, round(width * factor))

    def _initial(self) -> Tensor:
        height, width = self._size()
        if self.settings.init == "content" and self.content is not None:
            return _scaled(self.content, height, width)
        if self.settings.init == "recolored" and self.content is not None:
            return _scaled(color.match_colors(self.content, self.styles[0]), height, width)
        if self.settings.init in ("noise", "faint-noise"):
            generator = torch.Generator().manual_seed(self.settings.seed)
            noise = torch.rand(1, 3, height, width, generator=generator)
            return noise if self.settings.init == "noise" else 0.5 + FAINT_NOISE_RANGE * (noise - 0.5)
        if self.settings.init == "grey":
            return torch.full((1, 3, height, width), 0.5)
        if self.start is None:
            raise InputError(f"--init is {self.settings.init!r}; choose from {', '.join(INITS)}, or give an image file")
        return _scaled(self.start, height, width)

    def _begin(self, pixels: Tensor) -> None:
        """Set up the loss, targets and optimiser of this scale, starting from `pixels`."""
        height, width = self._size()
        settings = self.settings
        styles = [_to_longer(style, settings.style_scale * max(height, width)) for style in self.styles]
        grey = settings.colors == "luminance"
        self.target: dict[str, Tensor] = {}
        with tf32(self.device, self.precision), bf16(self.device, self.precision):
            self.loss = PerceptualLoss(
                self.vgg,
                styles,
                settings.loss_weights,
                style_weights=self.style_weights,
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
        iterations = settings.iterations_at(self.scale)
        self.current = ScaleOptimization(self.loss, self.target, pixels.detach(), settings, iterations, self.precision)
        # A CUDA graph needs memory of its own, which --low-memory saves.
        captured = self.device.type == "cuda" and not settings.low_memory
        self.graph = CudaGraphReplay(self.current.iterate, self.device) if captured else None

    def _enlarge(self) -> None:
        """Go to the next scale: enlarge the image and Adam's moments."""
        before, pixels = self.current, self.current.result()
        self.scale, self.done = self.scale + 1, 0
        height, width = self._size()
        self._begin(_scaled(pixels, height, width))
        if self.settings.optimizer == "adam" and (moments := before.optimizer_state()):
            # As in Crowson's style-transfer-pytorch; otherwise Adam would start over at every scale.
            self.current.restore_optimizer(
                {
                    "step": moments["step"],
                    "exp_avg": _bilinear(moments["exp_avg"], height, width),
                    "exp_avg_sq": _bilinear(moments["exp_avg_sq"], height, width).clamp(min=0.0),
                }
            )


def _colored(style: Tensor, content: Tensor | None, settings: OptimizationSettings) -> Tensor:
    """Return the style image with the colours of `settings.colors`."""
    if content is None or settings.colors == "style":
        return style
    matched = color.match_colors if settings.colors == "histogram" else color.match_luminance
    return matched(style, content)


def _scaled(images: Tensor, height: int, width: int) -> Tensor:
    """Resize with antialiased bicubic interpolation; values stay in [0, 1]."""
    if images.shape[2:] == (height, width):
        return images.contiguous()
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 1.0)


def _bilinear(values: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(values, (height, width), mode="bilinear", align_corners=False)


def _to_longer(image: Tensor, longer: float) -> Tensor:
    """Resize a style image to `longer` pixels on its longer side, at least `MINIMUM_SIDE_PIXELS` on the shorter."""
    height, width = image.shape[2:]
    factor = max(longer / max(height, width), MINIMUM_SIDE_PIXELS / min(height, width))
    return _scaled(image, round(height * factor), round(width * factor))
