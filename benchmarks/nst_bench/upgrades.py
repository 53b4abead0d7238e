"""Conversion of documents of earlier versions to the current one."""

from __future__ import annotations

from typing import Any

from nst_bench.measure import Precision
from nst_bench.suite import VERSION

OLDEST = "nst-bench/1"
"""Schema of the speed-up before suites had names; its rows are called figures."""

KEYS = {
    "worth": "equivalent_iterations",
    "worth_in_range": "equivalent_iterations_in_range",
    "levels": "max_difference",
    "lattice": "checkerboard",
    "picture_seconds": "image_seconds",
}
"""Keys of version 1 and their current names."""

VALUES = {
    "a mix of ten styles": "two of ten styles, interpolated",
    "first picture of a shape": "first image of a shape",
    "in the process, load and first picture": "in the process, load and first image",
}
"""Texts in rows of version 1 and their current form."""


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of any known schema in the current version."""
    if document["schema"] == OLDEST:
        rows = {"rows" if name == "figures" else name: value for name, value in document.items()}
        document = {**rows, "schema": "nst-bench-speedup/1", "equal_loss": []}
    return dict(_of_version_2(document)) if document["schema"].endswith("/1") else document


def _of_version_2(value: Any) -> Any:
    """Convert a value of version 1, the innermost parts first."""
    if isinstance(value, list):
        return [_of_version_2(child) for child in value]
    if isinstance(value, str):
        return VALUES.get(value, value)
    if not isinstance(value, dict):
        return value
    row = {KEYS.get(name, name): _of_version_2(child) for name, child in value.items()}
    if isinstance(schema := row.get("schema"), str):
        row["schema"] = schema.replace("/1", f"/{VERSION}")
    if "median" in row and "n" in row:  # version 1 had samples instead, or nothing
        precision = Precision.of(row.get("samples", ()))
        row["median_precision"] = vars(precision) if precision else None
    if "trends" in row and "memory" in row:  # a soak had all samples of the memory
        memory = row.pop("memory")
        for name, trend in row["trends"].items():
            row["trends"][name] = memory_shown([sample[name] for sample in memory]) | trend
    return row


def memory_shown(mib: list[float]) -> dict[str, float]:
    """Return what a soak reports of all samples of processes' memory."""
    return {"start": mib[0], "half_time": mib[len(mib) // 2], "end": mib[-1], "peak": max(mib)}
