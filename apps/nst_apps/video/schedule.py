"""Schedules of styles over the time of a video."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from nst_client.styles import parse_style_weights
from nst_core.errors import InputError

FADE_SECONDS = 1.0
"""Duration of the fade to the next style, from that style's time on."""

_TIMED = re.compile(r"(\d+(?:\.\d+)?)\s*s?\s*:(.+)")


@dataclass(frozen=True)
class Moment:
    """The style weights at one time: a blend from `before` (`fraction` 0) to `after` (`fraction` 1)."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    fraction: float

    @property
    def combined(self) -> dict[str, float]:
        """The interpolated weights, for styles of one model."""
        combined = {name: (1 - self.fraction) * weight for name, weight in _normalized(self.before).items()}
        for name, weight in _normalized(self.after).items():
            combined[name] = combined.get(name, 0.0) + self.fraction * weight
        return combined


@dataclass(frozen=True)
class Schedule:
    """Style weights, each from its time on, in seconds."""

    times: tuple[float, ...]
    style_weights: tuple[Mapping[str, float], ...]

    @classmethod
    def of(cls, text: str) -> Schedule:
        """Parse `starry-night`, `wave:0.7,scream:0.3`, or with times `0:starry-night, 5s:great-wave`.

        Raises `InputError`.
        """
        entries: list[tuple[float, list[str]]] = []
        for part in map(str.strip, text.split(",")):
            if timed := _TIMED.fullmatch(part):
                entries.append((float(timed[1]), [timed[2]]))
            elif entries:
                entries[-1][1].append(part)
            else:
                entries.append((0.0, [part]))
        times = tuple(time for time, _ in entries)
        if times[0] != 0 or any(later <= earlier for earlier, later in pairwise(times)):
            raise InputError(f"the times in {text!r} are not in order; start with 0: and give each style a later time")
        return cls(times, tuple(parse_style_weights(",".join(parts)) for _, parts in entries))

    def __str__(self) -> str:
        """Return text that `of` parses: `0:starry-night:1, 5:wave:0.7,scream:0.3`."""
        return ", ".join(
            f"{time:g}:" + ",".join(f"{name}:{weight:g}" for name, weight in weights.items())
            for time, weights in zip(self.times, self.style_weights, strict=True)
        )

    def at(self, seconds: float) -> Moment:
        """Return the style weights this many seconds after the first frame."""
        last = max(position for position, time in enumerate(self.times) if time <= max(0.0, seconds))
        after = self.style_weights[last]
        fraction = (seconds - self.times[last]) / FADE_SECONDS
        if last == 0 or fraction >= 1:
            return Moment(after, after, 1.0)
        return Moment(self.style_weights[last - 1], after, fraction)


def _normalized(weights: Mapping[str, float]) -> dict[str, float]:
    """Scale weights so that they sum to 1."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
