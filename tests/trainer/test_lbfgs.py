from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nst_trainer.optimization.lbfgs import Lbfgs


def valley(values: Tensor) -> Tensor:
    """Rosenbrock's function: curved, and badly scaled."""
    return (100.0 * (values[1:] - values[:-1] ** 2) ** 2 + (1.0 - values[:-1]) ** 2).sum()


def start() -> Tensor:
    return torch.linspace(-0.3, 0.3, 50, dtype=torch.float64).requires_grad_()


def follow(optimizer: Lbfgs, steps: int) -> list[Tensor]:
    """The values after each step."""
    values, seen = optimizer.values, []
    for _ in range(steps):
        (values.grad,) = torch.autograd.grad(valley(values), values)
        optimizer.step()
        seen.append(values.detach().clone())
    return seen


@pytest.mark.parametrize("history", [1, 3, 20])
def test_the_steps_are_pytorchs(history: int) -> None:
    """Also after the ring buffer was filled many times."""
    values = start()
    theirs = torch.optim.LBFGS(
        [values],
        0.5,
        max_iter=1,
        max_eval=2,
        history_size=history,
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )

    def evaluate() -> float:
        values.grad = None
        loss = valley(values)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    for own in follow(Lbfgs(start(), 0.5, history), 40):
        theirs.step(evaluate)
        assert torch.allclose(own, values.detach(), rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("stop", [0, 2, 30])
def test_it_goes_on_from_its_state(stop: int, tmp_path: Path) -> None:
    """Before its first step, with a history that is not full yet, and with a full history."""
    whole = follow(Lbfgs(start(), 0.5, 5), 40)
    stopped = Lbfgs(start(), 0.5, 5)
    follow(stopped, stop)
    torch.save(stopped.state_dict(), tmp_path / "state")
    values = stopped.values.detach().clone().requires_grad_()
    other = Lbfgs(values, 0.5, 5)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(follow(other, 40 - stop)[-1], whole[-1])


def test_a_step_uphill_is_not_taken_and_the_history_forgotten() -> None:
    optimizer = Lbfgs(start(), 0.5, 5)
    before = follow(optimizer, 10)[-1]
    optimizer.diagonal.fill_(-1e6)
    (stays,) = follow(optimizer, 1)
    assert torch.equal(stays, before)
    assert not optimizer.inverse.any()
    (moved,) = follow(optimizer, 1)
    assert valley(moved) < valley(before)


def test_no_move_is_longer_than_the_longest() -> None:
    free, bounded = (follow(Lbfgs(start(), 0.5, 5, longest), 40) for longest in (float("inf"), 0.01))

    def longest(values: list[Tensor]) -> float:
        return max(float((b - a).square().mean().sqrt()) for a, b in pairwise(values))

    assert longest(free) > 0.02
    assert longest(bounded) == pytest.approx(0.01)
    assert valley(bounded[-1]) < valley(bounded[0])
