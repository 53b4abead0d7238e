"""A training step: losses, gradients and the optimiser; interrupts wait until it is complete."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from nst_core.errors import NstError
from nst_trainer.cuda_graph import CudaGraphReplay
from nst_trainer.signals import uninterrupted
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.objective import BatchLoss
from nst_trainer.training.soap import Soap
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
    losses = _backward(state, objective, content, state.iteration, distilled=distilled)
    team.average(state.network.parameters())
    gradients, figures = _figures(state, losses)
    on_cpu = figures.device.type == "cpu"
    if on_cpu:
        _require_finite(figures, state, learning_rate)
    _clip(gradients, figures[0], _maximum_norm(state))
    if not on_cpu:
        _replace_nan(gradients)
    with uninterrupted():
        state.optimizer.step()
        if not on_cpu:  # wait for the GPU only once per step, when everything is queued
            _require_finite(figures, state, learning_rate)
        _record(state, figures, list(losses)[1:])
        state.seconds += time.perf_counter() - started


class CapturedSteps:
    """Steps on one GPU that take what `take_step` does and are launched as a CUDA graph.

    A step of the fast network has some thousand operations, whose launches from Python take longer than the work of a
    small batch (dev/LOG.md). There is a graph for each shape of a batch. It works for an `Objective` whose
    `draws_noise` is False.
    """

    def __init__(self) -> None:
        self.graphs: dict[tuple[torch.Size, bool], _Graph] = {}
        self.optimizer: Soap | None = None

    def __call__(
        self,
        state: TrainingState,
        objective: BatchLoss,
        content: Tensor,
        team: Team,
        *,
        distilled: bool,
        learning_rate: float,
    ) -> None:
        """See `take_step`."""
        started = time.perf_counter()
        if state.optimizer is not self.optimizer:  # a new one at the end of distillation
            self.graphs, self.optimizer = {}, state.optimizer
        key = content.shape, distilled
        if key not in self.graphs:
            self.graphs[key] = _Graph(state, objective, content, team.device, distilled=distilled)
        graph = self.graphs[key]
        with uninterrupted():
            state.optimizer.count()
            graph.replay(content)
            state.optimizer.update_bases()
            _require_finite(graph.figures, state, learning_rate)
            _record(state, graph.figures, graph.terms)
            state.seconds += time.perf_counter() - started


class _Graph:
    """The work of a step between fixed addresses: from `content`, `iteration` and `maximum` to `figures`."""

    figures: Tensor
    terms: list[str]

    def __init__(
        self, state: TrainingState, objective: BatchLoss, content: Tensor, device: torch.device, *, distilled: bool
    ) -> None:
        self.state, self.objective, self.distilled = state, objective, distilled
        self.content = torch.empty_like(content, device=device, memory_format=torch.channels_last)
        self.iteration = torch.zeros((), dtype=torch.int64, device=device)
        self.maximum = torch.zeros((), device=device)
        self.work = CudaGraphReplay(self._work, device)

    def replay(self, content: Tensor) -> None:
        self.content.copy_(content, non_blocking=True)
        self.iteration.fill_(self.state.iteration)
        self.maximum.fill_(_maximum_norm(self.state))
        self.work()

    def _work(self) -> None:
        losses = _backward(self.state, self.objective, self.content, self.iteration, distilled=self.distilled)
        gradients, self.figures = _figures(self.state, losses)
        self.terms = list(losses)[1:]
        _clip(gradients, self.figures[0], self.maximum)
        _replace_nan(gradients)
        self.state.optimizer.update()


def _backward(
    state: TrainingState, objective: BatchLoss, content: Tensor, iteration: int | Tensor, *, distilled: bool
) -> dict[str, Tensor]:
    """Compute the gradients of a batch; return the loss, named `total`, and then its terms, scalars."""
    total, terms = objective(state.network, content, iteration, distilled=distilled)
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    return {name: value.detach() for name, value in {"total": total, **terms}.items()}


def _figures(state: TrainingState, losses: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the gradients, and their norm and the `losses` as a vector."""
    gradients = [values.grad for values in state.network.parameters() if values.grad is not None]
    return gradients, torch.stack([torch.nn.utils.get_total_norm(gradients), *losses.values()])


def _maximum_norm(state: TrainingState) -> float:
    return CLIP_RATIO * state.gradient_norm if state.gradient_norm else FIRST_CLIP_NORM


def _clip(gradients: list[Tensor], norm: Tensor, maximum: float | Tensor) -> None:
    torch._foreach_mul_(gradients, (maximum / norm).clamp(max=1.0))


def _replace_nan(gradients: list[Tensor]) -> None:
    """Keep what is not finite out of the network: a GPU's losses are read after the step only."""
    for gradient in gradients:
        gradient.nan_to_num_(0.0, 0.0, 0.0)


def _record(state: TrainingState, figures: Tensor, terms: Sequence[str]) -> None:
    """Count the iteration, and update all means; `figures` are the gradient's norm, the loss and its `terms`."""
    norm, _, *losses = figures.tolist()
    norm = min(norm, _maximum_norm(state))
    state.iteration += 1
    state.average()
    weight = max(0.05, 1.0 / state.iteration) if state.gradient_norm else 1.0
    state.gradient_norm = (1.0 - weight) * (state.gradient_norm or 0.0) + weight * norm
    weight = max(0.02, 1.0 / state.iteration)  # at first the mean of all, then of about the last fifty
    for term, value in zip(terms, losses, strict=True):
        state.averages[term] = (1.0 - weight) * state.averages.get(term, value) + weight * value


def _require_finite(figures: Tensor, state: TrainingState, learning_rate: float) -> None:
    """Raise `TrainingError` if the gradient's norm or the loss, the first two of `figures`, is not finite."""
    norm, loss, *_ = figures.tolist()
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(
            f"iteration {state.iteration}: the loss is {loss}, the norm of its gradient {norm}; continue from the "
            f"last checkpoint with --resume --learning-rate {learning_rate / 2:g} (it was {learning_rate:g})"
        )
