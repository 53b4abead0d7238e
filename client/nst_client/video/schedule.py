"""Styles over the time of a video."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from nst_client.styles import parse_style_weights
from nst_core.errors import InputError

FADE = 1.0
"""Seconds in which a style becomes the next, from the moment that is given for it."""

_TIMED = re.compile(r"(\d+(?:\.\d+)?)\s*s?\s*:(.+)")


@dataclass(frozen=True)
class Moment:
    """What is painted at one time: `share` (0 to 1) of the mix `after` and the rest of `before`, by name of style."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    share: float

    @property
    def together(self) -> dict[str, float]:
        """Both as one mix, for styles of one model."""
        mix = {name: (1 - self.share) * weight for name, weight in _shares(self.before).items()}
        for name, weight in _shares(self.after).items():
            mix[name] = mix.get(name, 0.0) + self.share * weight
        return mix


@dataclass(frozen=True)
class Schedule:
    """Mixes of styles, each from its time on (seconds)."""

    times: tuple[float, ...]
    mixes: tuple[Mapping[str, float], ...]

    @classmethod
    def of(cls, text: str) -> Schedule:
        """`starry-night`, `wave:0.7,scream:0.3`, or with times: `0:starry-night, 5s:great-wave`; else `InputError`."""
        entries: list[tuple[float, list[str]]] = []
        for part in (one.strip() for one in text.split(",")):
            if timed := _TIMED.fullmatch(part):
                entries.append((float(timed[1]), [timed[2]]))
            elif entries:
                entries[-1][1].append(part)
            else:
                entries.append((0.0, [part]))
        times = tuple(time for time, _ in entries)
        if times[0] != 0 or any(later <= earlier for earlier, later in pairwise(times)):
            raise InputError(
                f"styles over time are {text!r}: the first begins at 0, and each later than the one before"
            )
        return cls(times, tuple(parse_style_weights(",".join(parts)) for _, parts in entries))

    def __str__(self) -> str:
        """What `of` reads: `0:starry-night:1, 5:wave:0.7,scream:0.3`."""
        return ", ".join(
            f"{time:g}:" + ",".join(f"{name}:{weight:g}" for name, weight in mix.items())
            for time, mix in zip(self.times, self.mixes, strict=True)
        )

    def at(self, seconds: float) -> Moment:
        """What is painted so long after the first frame."""
        last = max(position for position, time in enumerate(self.times) if time <= max(0.0, seconds))
        after = self.mixes[last]
        share = (seconds - self.times[last]) / FADE
        if last == 0 or share >= 1:
            return Moment(after, after, 1.0)
        return Moment(self.mixes[last - 1], after, share)


def _shares(mix: Mapping[str, float]) -> dict[str, float]:
    """Weights that sum to 1."""
    total = sum(mix.values())
    return {name: weight / total for name, weight in mix.items()}
