"""Style transfer by optimising the picture itself (Gatys, Ecker and Bethge 2016).

It needs no training and a forward and backward pass of the loss network an iteration; it is what
the feed-forward networks are measured against (Johnson et al. 2016, section 4.1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nst_trainer.losses import Losses, PerceptualLoss
from nst_trainer.training import TrainingError

HISTORY = 20
"""Steps that L-BFGS remembers."""


@dataclass(frozen=True)
class Iteration:
    """One forward and backward pass of the loss network, and the seconds since the start."""

    number: int
    losses: Losses
    seconds: float


def optimize(
    content: Tensor,
    loss: PerceptualLoss,
    iterations: int,
    *,
    seed: int = 0,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> Tensor:
    """Paint `content` `[1, 3, H, W]` in [0, 1] by L-BFGS from white noise; the same shape and range.

    This is the baseline of Johnson et al. 2016, section 4.1: the loss, layers and weights of the
    feed-forward network's training. Deviation: the paper clips to 0-255 in every iteration, which
    breaks L-BFGS's model of the curvature; here the result is clipped once, at the end.
    An iteration is one evaluation of the loss and its gradient, whatever L-BFGS does with it.
    Raises `TrainingError` when the loss is not finite.
    """
    target = loss.content_target(content)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(content.shape, generator=generator)
    picture = noise.to(content.device).requires_grad_(True)
    # Tolerances of zero: it ends after `iterations`, not when it thinks that it has arrived.
    optimizer = torch.optim.LBFGS(
        [picture],
        max_iter=iterations,
        max_eval=iterations,
        history_size=HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )
    started = time.perf_counter()
    done = 0

    def evaluate() -> float:
        nonlocal done
        optimizer.zero_grad(set_to_none=True)
        losses = loss(picture, target)
        losses.total.backward()  # type: ignore[no-untyped-call]
        done += 1
        total = losses.total.item()
        if not math.isfinite(total):
            raise TrainingError(f"iteration {done} of the optimisation: the loss is {total}")
        on_iteration(Iteration(done, losses, time.perf_counter() - started))
        return total

    optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    return picture.detach().clamp(0.0, 1.0)
