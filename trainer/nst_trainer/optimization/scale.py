"""An optimisation at one size: its pixels, their losses and its optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from nst_trainer.losses import PerceptualLoss
from nst_trainer.optimization.lbfgs import Lbfgs
from nst_trainer.optimization.settings import OptimizationSettings

Precision = Literal["fp32", "tf32", "bf16"]
"""Precision of the inputs of the loss network's convolutions, and with TF32 of its matrix products."""

MAXIMUM_MOVE = 0.25
"""Maximum root mean square of an L-BFGS move. Useful moves are below 0.13; without a line search the preset
`gatys2016` now and then asks for hundreds, from which it does not recover (dev/LOG.md)."""


@contextmanager
def tf32(device: torch.device, precision: Precision) -> Iterator[None]:
    """On a GPU, turn TF32 for convolutions and matrix products on or off within the block."""
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


def bf16(device: torch.device, precision: Precision) -> torch.autocast:
    """Run convolutions in bfloat16 if that is the precision; without a cache, which a CUDA graph cannot hold."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


class Parameters:
    """The optimised values: the pixels, or their spectrum, scaled by f^decay at frequency f.

    This is a decorrelated parameterisation (Olah, Mordvintsev and Schubert 2017, *Feature Visualization*), which finds
    large forms sooner; dev/LOG.md has the measurements.
    """

    def __init__(self, pixels: Tensor, decay: float) -> None:
        self.size = pixels.shape[2], pixels.shape[3]
        self.frequency_scales: Tensor | None = None
        values = pixels.clone(memory_format=torch.contiguous_format)
        if decay:
            height, width = self.size
            frequencies = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
            scales = frequencies.clamp(min=1.0 / max(height, width)) ** -decay
            self.frequency_scales = (scales / scales.square().mean().sqrt()).to(pixels.device)
            spectrum = torch.fft.rfft2(pixels, norm="ortho") / self.frequency_scales
            values = torch.view_as_real(spectrum).contiguous()
        self.values = values.requires_grad_(True)

    def pixels(self) -> Tensor:
        """Return the image `[1, 3, H, W]`; gradients flow to `values`."""
        if self.frequency_scales is None:
            return self.values
        spectrum = torch.view_as_complex(self.values) * self.frequency_scales
        pixels: Tensor = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        return pixels


class ScaleOptimization:
    """The optimisation at one size; an iteration only changes tensors at fixed addresses.

    An iteration is `evaluate`, then `advance`. Neither synchronizes with the device, so that a CUDA graph can hold
    both. `evaluate` changes only the best image of `state`, and can be repeated.
    """

    TENSORS = ("lowest", "best", "mean", "weight")

    def __init__(
        self,
        loss: PerceptualLoss,
        content_target: Mapping[str, Tensor],
        pixels: Tensor,
        settings: OptimizationSettings,
        iterations: int,
        precision: Precision,
    ) -> None:
        """Start from `pixels` `[1, 3, H, W]`, for `iterations` in all."""
        decay = settings.frequency_decay if settings.optimizer == "lbfgs" else 0.0
        self.loss, self.content_target = loss, content_target
        self.parameters = Parameters(pixels, decay)
        self.optimizer = _optimizer(self.parameters.values, settings, iterations)
        self.average, self.precision = settings.average, precision
        self.best = self.parameters.pixels().detach().clone()
        self.losses = self.best.new_zeros(3)  # content, style, total variation
        self.lowest = self.best.new_full((), math.inf)
        self.mean, self.weight = torch.zeros_like(self.best), self.best.new_zeros(())

    def iterate(self) -> None:
        """Run an iteration."""
        self.evaluate()
        self.advance()

    def evaluate(self) -> None:
        """Compute the losses of the pixels and their gradient; keep the pixels if they are the best so far."""
        pixels = self.parameters.pixels()
        with tf32(pixels.device, self.precision):
            with bf16(pixels.device, self.precision):
                losses = self.loss(pixels, self.content_target)
            (self.parameters.values.grad,) = torch.autograd.grad(losses.total, self.parameters.values)
        with torch.no_grad():
            self.losses.copy_(torch.stack([losses.content, losses.style, losses.total_variation]))
            total = self.losses.sum()
            better = total < self.lowest  # never true for NaN
            self.best.copy_(torch.where(better, pixels, self.best))
            self.lowest.copy_(torch.where(better, total, self.lowest))

    @torch.no_grad()
    def advance(self) -> None:
        """Take a step, and add the pixels to the moving average, whose weights sum to `weight` (1 in the limit)."""
        self.optimizer.step()
        if self.average:
            pixels = self.parameters.pixels()
            good = self.losses.isfinite().all() & pixels.isfinite().all()
            self.mean.copy_(torch.where(good, self.mean.lerp(pixels, 1.0 - self.average), self.mean))
            self.weight.copy_(torch.where(good, self.weight * self.average + (1.0 - self.average), self.weight))

    def result(self) -> Tensor:
        """Return the moving average, or the pixels of the lowest loss, `[1, 3, H, W]`, not clamped to [0, 1]."""
        return self.mean / self.weight if self.average and self.weight > 0 else self.best

    def state(self) -> dict[str, Any]:
        """Return copies of the state as plain data."""
        own = {name: getattr(self, name).clone() for name in self.TENSORS}
        return own | {"values": self.parameters.values.detach().clone(), "optimizer": self.optimizer_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        for name in self.TENSORS:
            getattr(self, name).copy_(state[name])
        self.parameters.values.data.copy_(state["values"])
        self.restore_optimizer(state["optimizer"])

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return copies of the optimiser's tensors; Adam has none before its first step."""
        if isinstance(self.optimizer, Lbfgs):
            return self.optimizer.state_dict()
        return {name: value.clone() for name, value in self.optimizer.state[self.parameters.values].items()}

    def restore_optimizer(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `optimizer_state`."""
        if isinstance(self.optimizer, Lbfgs):
            self.optimizer.load_state_dict(state)
        elif state:
            values = self.parameters.values
            self.optimizer.state[values] = {name: value.to(values.device, copy=True) for name, value in state.items()}


def _optimizer(values: Tensor, settings: OptimizationSettings, iterations: int) -> Lbfgs | torch.optim.Adam:
    if settings.optimizer == "adam":
        # Capturable keeps the step count on the device.
        return torch.optim.Adam([values], settings.learning_rate, betas=(0.9, 0.99), capturable=values.is_cuda)
    # Deviation: the papers clip to 0-255 at every iteration, which breaks the model of the curvature; the result is
    # clamped once, at the end.
    return Lbfgs(values, settings.step, min(settings.history, iterations), MAXIMUM_MOVE)
