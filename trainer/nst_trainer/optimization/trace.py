"""The losses of an optimisation over iterations and seconds, as JSON and as a plot."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from nst_core.files import atomic_write
from nst_core.process import without_warnings
from nst_trainer.optimization.gatys import Iteration

SCHEMA = "nst-trace/1"


def trace_point(iteration: Iteration) -> dict[str, Any]:
    """Return an iteration's entry in a trace."""
    return {
        "iteration": iteration.number,
        "seconds": round(iteration.seconds, 4),
        "height": iteration.size[0],
        "width": iteration.size[1],
        "total": iteration.total,
        "content": iteration.content,
        "style": iteration.style,
        "total_variation": iteration.total_variation,
    }


def write_trace(points: list[dict[str, Any]], path: Path) -> None:
    """Write the JSON file, and a PNG of the same name with the losses over seconds."""
    with without_warnings("matplotlib"):  # it warns at length if it has no cache folder
        from matplotlib.figure import Figure

    with atomic_write(path) as beside:
        beside.write_text(json.dumps({"schema": SCHEMA, "iterations": points}, indent=1) + "\n")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in ("total", "style", "content", "total_variation"):
        axes.plot(
            [point["seconds"] for point in points], [point[name] for point in points], label=name.replace("_", " ")
        )
    for before, after in pairwise(points):
        if before["width"] != after["width"]:
            axes.axvline(after["seconds"], color="0.85", zorder=0)
    axes.set_yscale("log")
    axes.set_xlabel("seconds (grey line: next larger size)")
    axes.set_ylabel("weighted loss")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path.with_suffix(".png")) as beside:
        figure.savefig(beside, dpi=120)
