"""The time that a training may take. Its schedule follows the clock, so that both end together on a busy machine."""

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
"""A budget buys at least so many iterations, on smaller crops if necessary."""

SMALLER_CROPS_PIXELS = (192, 128)


@dataclass
class Budget:
    """So many seconds for a training, also for a training that is interrupted and resumed.

    Each of the settings' phases takes its part of the work, measured beforehand, as its part of the time. Where other
    programs slow the machine down, all phases have fewer iterations.
    """

    seconds: float
    """In all, checks and files included."""
    costs: Sequence[float]
    """Seconds of an iteration in each phase, when it was planned; only their proportions count."""
    before: float = 0.0
    """Seconds that earlier runs used."""
    ending: float = 0.0
    """Seconds that the last check and its files will take: what the newest took."""
    started: float = field(default_factory=lambda: monotonic())

    def used(self) -> float:
        """Seconds so far."""
        return self.before + monotonic() - self.started

    def done(self, settings: TrainingSettings) -> float:
        """Where in the schedule the clock is, as a share of the iterations from 0 to 1; at 1 the time is over."""
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
        """How many fit into the time at the planned cost, at least 1."""
        return max(1, int(self.seconds / self._mean_cost(settings)))

    def _mean_cost(self, settings: TrainingSettings) -> float:
        """Seconds of an iteration, over the schedule."""
        ends = [end for end, _ in settings.phases()]
        parts = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
        return sum(part * cost for part, cost in zip(parts, self.costs, strict=True))


def plan_budget(
    seconds: float, settings: TrainingSettings, state: TrainingState, objective: Objective, team: Team
) -> tuple[TrainingSettings, Budget]:
    """A budget of `seconds`, and the settings with the number of iterations and the crops that fit into it.

    Crops are as large as `settings` has them, or smaller where that leaves less than `MINIMUM_ITERATIONS`.
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
    """Seconds of an iteration on crops of `side` pixels, of the slowest process. What is learned stays as it is."""
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
