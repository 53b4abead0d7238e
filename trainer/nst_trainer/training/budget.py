"""The time that a training may take. Its schedule follows the clock, so that both end together on a busy machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

from nst_trainer.training.settings import TrainingSettings


@dataclass
class Budget:
    """So many seconds for a training, also for one that is interrupted and resumed.

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
        left, begin = self.used() / available * self._mean(settings), 0.0
        for (end, _), cost in zip(settings.phases(), self.costs, strict=True):
            work = (end - begin) * cost
            if left < work:
                return begin + left / cost
            left, begin = left - work, end
        return 1.0

    def iterations(self, settings: TrainingSettings) -> int:
        """How many fit into the time at the planned cost, at least 1."""
        return max(1, int(self.seconds / self._mean(settings)))

    def _mean(self, settings: TrainingSettings) -> float:
        """Seconds of an iteration, over the schedule."""
        ends = [end for end, _ in settings.phases()]
        parts = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
        return sum(part * cost for part, cost in zip(parts, self.costs, strict=True))
