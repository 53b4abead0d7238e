"""Training for a given time: the schedule follows the clock, so that both end together on a busy machine, too."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

import torch

from nst_trainer.training.distributed.team import Team
from nst_trainer.training.objective import Objective
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.soap import soap
from nst_trainer.training.state import TrainingState
from nst_trainer.training.step import take_step

MINIMUM_ITERATIONS = 600
"""A budget plans at least this many iterations, with smaller crops if necessary."""

SMALLER_CROPS_PIXELS = (192, 128)


@dataclass
class Budget:
    """The time of a training, in one run or several (after an interruption).

    Each phase of the settings gets the share of the time that its share of the work needs, as measured beforehand.
    When other programs slow the machine down, all phases have fewer iterations.
    """

    seconds: float
    """Total, with validations and files."""
    costs: Sequence[float]
    """Measured seconds per iteration in each phase; only their proportions count."""
    before: float = 0.0
    """Seconds used by earlier runs."""
    ending: float = 0.0
    """Expected seconds of the last validation and its files: those of the latest."""
    started: float = field(default_factory=lambda: monotonic())

    def used(self) -> float:
        """Return the seconds used so far."""
        return self.before + monotonic() - self.started

    def done(self, settings: TrainingSettings) -> float:
        """Return the elapsed share of the schedule, in iterations, from 0 to 1; at 1 the time is over."""
        available = self.seconds - self.ending
        if self.used() >= available:
            return 1.0
        work, begin = self.used() / available * self._mean_cost(settings), 0.0
        for (end, _), cost in zip(settings.phases(), self.costs, strict=True):
            phase_work = (end - begin) * cost
            if work < phase_work:
                return begin + work / cost
            work, begin = work - phase_work, end
        return 1.0

    def iterations(self, settings: TrainingSettings) -> int:
        """Return how many iterations fit into the time at the measured cost, at least 1."""
        return max(1, int(self.seconds / self._mean_cost(settings)))

    def _mean_cost(self, settings: TrainingSettings) -> float:
        """Return the mean seconds per iteration over the schedule."""
        ends = [end for end, _ in settings.phases()]
        parts = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
        return sum(part * cost for part, cost in zip(parts, self.costs, strict=True))


def plan_budget(
    seconds: float, settings: TrainingSettings, state: TrainingState, objective: Objective, team: Team
) -> tuple[TrainingSettings, Budget]:
    """Plan a budget of `seconds`; return it after the settings with the iterations and crops that fit into it.

    Crops are as large as in `settings`, or smaller where that leaves fewer than `MINIMUM_ITERATIONS`.
    """
    budget = Budget(seconds, [])
    for side in [settings.crop, *(side for side in SMALLER_CROPS_PIXELS if side < settings.crop)]:
        planned = replace(settings, crop=side)
        budget.costs = [
            measure_iteration(crop, state, objective, team, distilled=bool(objective.teacher) and number == 0)
            for number, (_, crop) in enumerate(planned.phases())
        ]
        count = budget.iterations(planned)
        if count >= MINIMUM_ITERATIONS:
            break
    return replace(planned, iterations=count), budget


def measure_iteration(side: int, state: TrainingState, objective: Objective, team: Team, *, distilled: bool) -> float:
    """Measure the seconds of an iteration on crops of `side` pixels, of the slowest process; `state` is unchanged."""
    settings = objective.settings
    generator = torch.Generator().manual_seed(settings.seed)
    content = torch.rand(len(team.part(settings.batch)), 3, side, side, generator=generator)
    network = copy.deepcopy(state.network)
    trial = TrainingState(network, soap(network, settings.learning_rate), iteration=state.iteration)
    seconds = []
    for _ in range(3):
        started = monotonic()
        take_step(trial, objective, content, team, distilled=distilled, learning_rate=settings.learning_rate)
        seconds.append(monotonic() - started)
    return team.slowest(min(seconds[1:]))
