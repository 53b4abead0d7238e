"""What all plots have in common: a PNG, and an alternative text that says the same."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nst_bench.suite import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

SIZE_INCHES, DOTS_PER_INCH = (4.8, 3.4), 170
"""Legible on a phone, where a plot is as wide as the screen."""

STYLE = {
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def figure(name: str, title: str, *, height: float = SIZE_INCHES[1]) -> Iterator[tuple[Axes, Callable[[str], Plot]]]:
    """Yield axes to draw on, and a function that makes a `Plot` of them, given the alternative text."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        canvas = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained")
        axes = canvas.add_subplot(title=title)

        def finish(alt: str) -> Plot:
            buffer = io.BytesIO()
            canvas.savefig(buffer, dpi=DOTS_PER_INCH, format="png")
            return Plot(name, alt, buffer.getvalue())

        yield axes, finish


def decades(axis: Axis, written: Callable[[float], str]) -> None:
    """Put ticks at 1, 2 and 5 of each decade of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: written(value))
    axis.set_minor_formatter(NullFormatter())


def seconds(value: float) -> str:
    """Format a duration for an axis: `38 ms`, `1.2 s`, `1,234 s`."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"
