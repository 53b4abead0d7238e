"""A training step: losses, gradients and the optimiser; interrupts wait until it is complete."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from nst_core.errors import NstError
from nst_trainer.signals import uninterrupted
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.objective import BatchLoss
from nst_trainer.training.state import TrainingState

CLIP_RATIO = 10.0
"""Maximum ratio of a gradient's norm to the mean norm of the last ones. Photographs stay below 2 (dev/LOG.md)."""

FIRST_CLIP_NORM = 1e12
"""The maximum norm before there is a mean: SOAP squares gradients, which overflows FP32 above 1e19."""


class TrainingError(NstError):
    """The training cannot continue."""


def take_step(
    state: TrainingState,
    objective: BatchLoss,
    content: Tensor,
    team: Team,
    *,
    distilled: bool,
    learning_rate: float,
) -> None:
    """Train on the batch `content` `[N, 3, H, W]` in [0, 1]; see `Objective` for `distilled`.

    Raises `TrainingError` for a loss or gradient that is not finite; the step then changes nothing. The error suggests
    half of `learning_rate`, the training's peak.
    """
    started = time.perf_counter()
    total, terms = objective(state.network, content, state.iteration, distilled=distilled)
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    team.average(state.network.parameters())
    gradients = [values.grad for values in state.network.parameters() if values.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    figures = torch.stack([norm, total.detach(), *(value.detach() for value in terms.values())])
    on_cpu = figures.device.type == "cpu"
    if on_cpu:
        _require_finite(figures, state, learning_rate)
    maximum = CLIP_RATIO * state.gradient_norm if state.gradient_norm else FIRST_CLIP_NORM
    torch._foreach_mul_(gradients, (maximum / norm).clamp(max=1.0))
    if not on_cpu:
        # Wait for the GPU only once per step, when everything is queued; until then the step must not fail.
        for gradient in gradients:
            gradient.nan_to_num_(0.0, 0.0, 0.0)
    with uninterrupted():
        state.optimizer.step()
        if not on_cpu:
            _require_finite(figures, state, learning_rate)
        norm_read, _, *values_read = figures.tolist()
        _record(state, min(norm_read, maximum), dict(zip(terms, values_read, strict=True)))
        state.seconds += time.perf_counter() - started


def _record(state: TrainingState, norm: float, losses: dict[str, float]) -> None:
    """Count the iteration, and update the means."""
    state.iteration += 1
    weight = max(0.05, 1.0 / state.iteration) if state.gradient_norm else 1.0
    state.gradient_norm = (1.0 - weight) * (state.gradient_norm or 0.0) + weight * norm
    weight = max(0.02, 1.0 / state.iteration)  # at first the mean of all, then of about the last fifty
    for term, value in losses.items():
        state.averages[term] = (1.0 - weight) * state.averages.get(term, value) + weight * value


def _require_finite(figures: Tensor, state: TrainingState, learning_rate: float) -> None:
    """Raise `TrainingError` if the gradient's norm or the loss, the first two of `figures`, is not finite."""
    norm, loss, *_ = figures.tolist()
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(
            f"iteration {state.iteration}: the loss is {loss}, the norm of its gradient {norm}; continue from the "
            f"last checkpoint with --resume --learning-rate {learning_rate / 2:g} (it was {learning_rate:g})"
        )
