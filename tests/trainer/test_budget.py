"""`--minutes` with a fake clock: nothing is timed here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nst_core.errors import InputError
from nst_trainer.training import budget as budgets
from nst_trainer.training import data as reading
from nst_trainer.training import loop
from nst_trainer.training.budget import Budget
from nst_trainer.training.loop import Progress, Training
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.state import TrainingState
from nst_trainer.vgg import Vgg16

GROWING = TrainingSettings(width=0.25, iterations=1, batch=1, crop=128, style_size=96)
STEP = {64: 1.0, 96: 2.25, 128: 4.0}
"""Seconds per step by the side of its crops, on an idle machine."""


class Clock:
    """A clock that advances with each step; `load` is the factor by which steps take longer than planned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.load = 1000.0, 1.0
        self.sides: list[int] = []
        self.rates: list[float] = []
        dots = np.arange(128 * 128 * 3, dtype=np.uint8).reshape(128, 128, 3)
        monkeypatch.setattr(reading, "read_crop", lambda path, size, choice: dots[:size, :size])
        monkeypatch.setattr(budgets, "monotonic", lambda: self.now)
        for module in (budgets, loop):
            monkeypatch.setattr(module, "take_step", self.step)
        monkeypatch.setattr(Training, "check_and_write", lambda training: self.check(training))

    def step(self, state: TrainingState, objective: object, content: torch.Tensor, team: object, **how: Any) -> None:
        side = content.shape[-1]
        self.sides.append(side)
        self.rates.append(state.optimizer.param_groups[0]["lr"])
        self.now += self.load * STEP[side]
        state.iteration += 1

    def check(self, training: Training) -> None:
        training.written_at = training.state.iteration

    def forget_planning(self, load: float = 1.0) -> None:
        """Start counting on a machine with `load`; planning counts towards the budget."""
        self.load = load
        self.sides.clear()
        self.rates.clear()


def test_every_phase_has_its_part_of_the_time() -> None:
    settings = replace(GROWING, iterations=100)
    budget = Budget(100.0, [1.0, 2.0, 4.0])
    whole = 0.6 * 1 + 0.25 * 2 + 0.15 * 4
    for seconds, done in (
        (0.0, 0.0),
        (100 * 0.3 / whole, 0.3),
        (100 * 0.6 / whole, 0.6),
        (100 * 1.1 / whole, 0.85),
        (100.0, 1.0),
        (1e9, 1.0),
    ):
        budget.before = seconds
        budget.started = budgets.monotonic()  # type: ignore[attr-defined]
        assert budget.done(settings) == pytest.approx(done, abs=1e-3)
    assert budget.iterations(settings) == int(100 / whole)
    budget.before, budget.ending = 90.0, 10.0
    assert budget.done(settings) == 1.0  # the last check wants the rest


@pytest.mark.parametrize("load", [0.5, 1.0, 3.0])
def test_the_schedule_ends_with_the_time(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, load: float
) -> None:
    """Three times as slow as planned, it takes the same time, grows its crops and reaches a learning rate of zero."""
    clock = Clock(monkeypatch)
    begun = clock.now
    training = Training([photographs["coffee"]], None, tmp_path / "a.pth", vgg, GROWING, minutes=5.0)
    clock.forget_planning(load)
    steps = list(training.steps())
    assert 300 <= clock.now - begun < 300 + load * STEP[128]
    assert clock.sides == sorted(clock.sides)
    assert set(clock.sides) == {64, 96, 128}
    shares = [clock.sides.count(side) / len(clock.sides) for side in STEP]
    assert shares == pytest.approx([0.6, 0.25, 0.15], abs=0.1)  # batches that were read ahead have the side before
    assert max(clock.rates) > 20 * clock.rates[-1]
    assert len(steps) == pytest.approx(training.settings.iterations / load, rel=0.15)
    assert steps[-1].done == 1.0


def test_a_machine_that_becomes_busy_in_the_middle(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    begun = clock.now
    training = Training([photographs["coffee"]], None, tmp_path / "a.pth", vgg, GROWING, minutes=5.0)
    clock.forget_planning()
    done = [0.0]
    for progress in training.steps():
        clock.load = 4.0 if clock.now > begun + 100 else 1.0
        assert progress.done >= done[-1]
        done.append(progress.done)
    assert 300 <= clock.now - begun < 300 + 4 * STEP[128]
    assert clock.sides == sorted(clock.sides)
    assert max(clock.rates) > 10 * clock.rates[-1]


def test_a_resumed_training_has_the_time_that_is_left(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    how: dict[str, Any] = {"vgg": vgg, "settings": GROWING, "photos": None, "output": tmp_path / "a.pth"}
    begun = clock.now
    first = Training([photographs["coffee"]], minutes=5.0, **how)
    clock.forget_planning()

    def interrupt(progress: Progress) -> None:
        if clock.now >= begun + 100:
            first.save_state()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(interrupt)
    used, reached = clock.now - begun, first.done
    clock.now += 86_400  # the next day
    for minutes in (4.0, None):
        with pytest.raises(InputError, match=f"minutes was 5.0, is {minutes}"):
            Training([photographs["coffee"]], minutes=minutes, resume=True, **how)
    begun = clock.now
    again = Training([photographs["coffee"]], minutes=5.0, resume=True, **how)
    assert again.settings == first.settings
    steps = list(again.steps())
    assert steps[0].done >= reached
    assert 300 <= used + clock.now - begun < 300 + STEP[128]


def test_little_time_means_small_crops(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "measure_iteration", lambda side, *more, **how: 1e-5 * side**2)
    how: dict[str, Any] = {"vgg": vgg, "settings": replace(GROWING, crop=256), "photos": None}
    sides = [
        Training([photographs["coffee"]], output=tmp_path / "a.pth", minutes=minutes, **how).settings.crop
        for minutes in (0.5, 20.0)
    ]
    assert sides == [128, 256]


def test_planning_leaves_what_is_learned_alone(tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path]) -> None:
    """It takes real steps, with the optimiser, on a copy."""
    settings = replace(GROWING, crop=64)
    planned, plain = (
        Training([photographs["coffee"]], None, tmp_path / "a.pth", vgg, settings, minutes=minutes)
        for minutes in (1.0, None)
    )
    for name, values in planned.state.network.state_dict().items():
        assert torch.equal(values, plain.state.network.state_dict()[name]), name
    assert planned.state.iteration == 0 and not planned.state.optimizer.state
