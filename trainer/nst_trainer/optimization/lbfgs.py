"""L-BFGS that never synchronizes with its device: a step is a fixed list of operations on fixed tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Lbfgs:
    """L-BFGS with a fixed step length (Nocedal and Wright 2006, algorithm 7.4), one evaluation per step.

    The steps are those of `torch.optim.LBFGS` with `max_iter=1` and tolerances of 0. PyTorch's reads several numbers
    from its device per step and the history pair by pair. This class reads none, so that a CUDA graph can hold a step,
    and uses the history as whole matrices.

    The two-loop recursion solves two triangular systems. The rows of S and Y are the moves and the changes of the
    gradient, D has their products, and R holds `s_i . y_j` for i not younger than j. The first loop is `a = R^-1 S g`
    and `q = g - Y^T a`, the second `b = R^-T (D a - gamma Y q)`, and the direction is `-(gamma q + S^T b)` (Byrd,
    Nocedal and Schnabel 1994, theorem 2.2). R^-1 is stored instead of R: a new pair adds a column, and the oldest pair
    is removed with its row and column. The order of the pairs then does not matter. They are in a ring buffer of one
    row more than the history; the free row takes the next candidate and has no effect until it is accepted.

    The first system is solved from the last step's `a`, with 1 for the new pair: `g - Y^T a` is then the last step's
    `q`, often much shorter than `g`, and `R^-1 (S q + L a)` corrects `a`, where L holds the other products, `s_i . y_j`
    for i younger than j. From `S g` itself FP32 would lose the significant digits.

    Deviations from PyTorch: a move is at most `longest`; and if rounding makes the direction point uphill, PyTorch
    stops moving for good, while here the history is cleared and the next step follows the gradient.
    """

    KEPT = ("s", "y", "inverse", "below", "diagonal", "a", "gamma", "row", "taken", "gradient", "moved")
    """Names of the tensors of the optimiser's state."""

    def __init__(self, values: Tensor, step: float, history: int, longest: float = math.inf) -> None:
        """Optimise `values` in place by `step` times the direction, with a history of `history` pairs.

        `longest` is the maximum root mean square of a move.
        """
        n, rows, device, exact = values.numel(), history + 1, values.device, torch.float64
        self.values, self.length, self.longest = values, step, longest * n**0.5
        self.numbers = torch.arange(rows, device=device)
        self.s = torch.zeros(rows, n, dtype=values.dtype, device=device)
        self.y = torch.zeros_like(self.s)
        self.inverse = torch.zeros(rows, rows, dtype=exact, device=device)
        self.below = torch.zeros_like(self.inverse)
        self.diagonal, self.a = (torch.zeros(rows, dtype=exact, device=device) for _ in range(2))
        self.gamma = torch.ones(1, dtype=exact, device=device)
        self.row, self.taken = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.gradient, self.moved = (torch.zeros(n, dtype=values.dtype, device=device) for _ in range(2))

    @torch.no_grad()
    def step(self) -> None:
        """Move `values` once, by their gradient in `values.grad`."""
        assert self.values.grad is not None
        gradient = self.values.grad.flatten()
        used = self._used()
        self._remember(gradient - self.gradient, used)
        direction = self._direction(gradient, used)
        norm = direction.norm()
        lost = (gradient.dot(direction) > 0) | norm.isinf()  # NaN passes, and shows in the next loss
        for history in (self.inverse, self.below, self.a):
            history.mul_(~lost)
        first = (1.0 / gradient.abs().sum()).clamp(max=1.0)
        length = self.length * torch.where(self.taken == 0, first, torch.ones_like(first))
        length = torch.minimum(length, self.longest / norm)
        torch.mul(torch.where(lost, torch.zeros_like(direction), direction), length, out=self.moved)
        self.values.add_(self.moved.view_as(self.values))
        self.gradient.copy_(gradient)
        self.taken.add_(1)

    def _used(self) -> int:
        """Return the number of rows in use; on a GPU all, since reading the number would synchronize."""
        rows = len(self.numbers)
        return rows if self.values.is_cuda else min(int(self.taken) + 1, rows)

    def _remember(self, change: Tensor, used: int) -> None:
        """Store the last move and the gradient's `change` `[n]` as a pair, if the curvature along it is positive."""
        s, y, numbers = self.s[:used], self.y[:used], self.numbers[:used]
        inverse, below, diagonal = self.inverse[:used, :used], self.below[:used, :used], self.diagonal[:used]
        s.index_copy_(0, self.row, self.moved[None])
        y.index_copy_(0, self.row, change[None])
        curvature = change.dot(self.moved)
        accepted = curvature > 1e-10
        here = numbers == self.row
        products = s.mv(change).double()
        column = (here.double() - inverse.mv(products)) / curvature
        column = torch.where(accepted, column, torch.zeros_like(column))
        inverse.add_(torch.outer(column, here.double()))
        below.add_(torch.outer(here & accepted, torch.where(here, torch.zeros_like(column), y.mv(self.moved))))
        diagonal.copy_(torch.where(here & accepted, curvature.double(), diagonal))
        self.gamma.copy_(torch.where(accepted, curvature.double() / change.dot(change), self.gamma))
        self.a[:used].copy_(torch.where(here & accepted, torch.ones_like(column), self.a[:used]))
        self.row.add_(accepted).remainder_(len(self.numbers))
        others = (numbers != self.row).double()  # the oldest pair's row is free for the next candidate
        for kept in (below, inverse):
            kept.mul_(torch.outer(others, others))
        self.a[:used].mul_(others)

    def _direction(self, gradient: Tensor, used: int) -> Tensor:
        """Return minus the approximate inverse Hessian times `gradient` `[n]`, as the class describes."""
        s, y = self.s[:used], self.y[:used]
        inverse, below, diagonal = self.inverse[:used, :used], self.below[:used, :used], self.diagonal[:used]
        a = self.a[:used]
        q = torch.addmv(gradient, y.t(), a.to(y.dtype), alpha=-1.0)
        correction = inverse.mv(s.mv(q).double() + below.mv(a))
        a.add_(correction)
        q.addmv_(y.t(), correction.to(y.dtype), alpha=-1.0)
        b = inverse.t().mv(diagonal * a - self.gamma * y.mv(q))
        return torch.addmv(q * -self.gamma.to(q.dtype), s.t(), b.to(s.dtype), alpha=-1.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state from which `load_state_dict` continues exactly; of the history, the rows in use."""
        used = min(int(self.taken) + 1, len(self.numbers))
        state = {name: getattr(self, name) for name in self.KEPT}
        return {name: (value[:used] if name in ("s", "y") else value).clone() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the `state_dict` of an optimiser with values and a history of the same size, on any device."""
        for name in self.KEPT:
            getattr(self, name)[: len(state[name])] = state[name]  # missing rows are empty
