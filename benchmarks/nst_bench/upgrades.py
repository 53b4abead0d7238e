"""Documents of earlier versions as this version writes them."""

from __future__ import annotations

from typing import Any

from nst_bench.measure import Precision
from nst_bench.suite import VERSION

OLDEST = "nst-bench/1"
"""The speed-up's, before the suites had names; its rows are called figures."""

KEYS = {
    "worth": "equivalent_iterations",
    "worth_in_range": "equivalent_iterations_in_range",
    "levels": "max_difference",
    "lattice": "checkerboard",
    "picture_seconds": "image_seconds",
}
"""Keys of version 1, and what they are now."""

VALUES = {
    "a mix of ten styles": "two of ten styles, interpolated",
    "first picture of a shape": "first image of a shape",
    "in the process, load and first picture": "in the process, load and first image",
}
"""Texts in rows of version 1, and what they are now."""


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """A document of any known schema as one of this version."""
    if document["schema"] == OLDEST:
        rows = {"rows" if name == "figures" else name: value for name, value in document.items()}
        document = {**rows, "schema": "nst-bench-speedup/1", "equal_loss": []}
    return dict(_of_version_2(document)) if document["schema"].endswith("/1") else document


def _of_version_2(value: Any) -> Any:
    """What version 1 had, from the inside out."""
    if isinstance(value, list):
        return [_of_version_2(child) for child in value]
    if isinstance(value, str):
        return VALUES.get(value, value)
    if not isinstance(value, dict):
        return value
    row = {KEYS.get(name, name): _of_version_2(child) for name, child in value.items()}
    if isinstance(schema := row.get("schema"), str):
        row["schema"] = schema.replace("/1", f"/{VERSION}")
    if "median" in row and "n" in row:  # how well a median is known: there were samples instead, or nothing
        precision = Precision.of(row.get("samples", ()))
        row["median_precision"] = vars(precision) if precision else None
    if "trends" in row and "memory" in row:  # of a soak, all samples of the memory, of which four are shown
        memory = row.pop("memory")
        for name, trend in row["trends"].items():
            row["trends"][name] = memory_shown([sample[name] for sample in memory]) | trend
    return row


def memory_shown(mib: list[float]) -> dict[str, float]:
    """What a soak says of the memory of processes, of all its samples."""
    return {"start": mib[0], "half_time": mib[len(mib) // 2], "end": mib[-1], "peak": max(mib)}
