"""Documents of earlier versions as this version writes them, one small function for each change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        document = _of_oldest(document)
    if document["schema"].endswith("/1"):
        for change in (_renamed, _with_precision, _with_trends_alone, _of_version_2):
            document = change(document)
    return document


def _of_oldest(document: dict[str, Any]) -> dict[str, Any]:
    """A speed-up of before the suites had names; it has no losses."""
    rows = {"rows" if name == "figures" else name: value for name, value in document.items()}
    return {**rows, "schema": "nst-bench-speedup/1", "equal_loss": []}


def _renamed(value: Any) -> Any:
    """The terms of version 2."""
    if isinstance(value, dict):
        return {KEYS.get(name, name): _renamed(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_renamed(child) for child in value]
    return VALUES.get(value, value) if isinstance(value, str) else value


def _with_precision(document: dict[str, Any]) -> dict[str, Any]:
    """How well a median is known: version 1 had samples instead, or nothing."""
    return _everywhere(
        document, lambda row: row | {"median_precision": _precision(row)} if "median" in row and "n" in row else row
    )


def _precision(row: Mapping[str, Any]) -> dict[str, float] | None:
    found = Precision.of(row.get("samples", ()))
    return vars(found) if found else None


def _with_trends_alone(document: dict[str, Any]) -> dict[str, Any]:
    """Of a soak: version 1 had all samples of the memory, of which four are shown."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        if "trends" not in row or "memory" not in row:
            return row
        memory = row["memory"]
        trends = {
            name: memory_shown([sample[name] for sample in memory]) | trend for name, trend in row["trends"].items()
        }
        return {name: value for name, value in row.items() if name != "memory"} | {"trends": trends}

    return _everywhere(document, change)


def memory_shown(mib: list[float]) -> dict[str, float]:
    """What a soak says of the memory of processes, of all its samples."""
    return {"start": mib[0], "half_time": mib[len(mib) // 2], "end": mib[-1], "peak": max(mib)}


def _of_version_2(document: dict[str, Any]) -> dict[str, Any]:
    """The schemas of a document and of what it holds."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        schema = row.get("schema")
        return row | {"schema": schema.replace("/1", f"/{VERSION}")} if isinstance(schema, str) else row

    return _everywhere(document, change)


def _everywhere(document: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A document with every object in it changed, from the inside out."""

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(child) for child in value]
        return _everywhere(value, change) if isinstance(value, dict) else value

    return change({name: changed(child) for name, child in document.items()})
