"""A server's counters for a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Statistics:
    """Counters for a style's model, summed over its versions, since the server loaded them.

    Times are means per answered request, in seconds.
    """

    requests: int = 0
    """Answered requests."""
    failures: int = 0
    """Failed requests."""
    images: int = 0
    """Stylized images; a request may contain several."""
    executions: int = 0
    """Executions of the model; dynamic batching may join several requests in one."""
    batches: Mapping[int, int] = field(default_factory=dict)
    """The number of executions by batch size (images)."""
    queue_seconds: float = 0.0
    """Mean time from a request's arrival to its execution."""
    compute_seconds: float = 0.0
    """Mean time of the execution, including copying pixels in and out."""


def from_triton(models: Iterable[Mapping[str, Any]]) -> Statistics:
    """Sum the entries of Triton's statistics extension (`model_stats`), one per version of a model.

    Raises `LookupError`, `TypeError`, `ValueError` or `AttributeError` for entries of another shape.
    """
    requests = failures = images = executions = queue_ns = compute_ns = 0
    batches: dict[int, int] = {}
    for entry in models:
        times = entry["inference_stats"]
        requests += _number(times["success"], "count")
        failures += _number(times["fail"], "count")
        images += _number(entry, "inference_count")
        executions += _number(entry, "execution_count")
        queue_ns += _number(times["queue"], "ns")
        compute_ns += sum(_number(times[part], "ns") for part in ("compute_input", "compute_infer", "compute_output"))
        for batch in entry.get("batch_stats", ()):
            size = _number(batch, "batch_size")
            batches[size] = batches.get(size, 0) + _number(batch["compute_infer"], "count")
    nanoseconds = max(1, requests) * 1e9
    return Statistics(
        requests,
        failures,
        images,
        executions,
        dict(sorted(batches.items())),
        queue_ns / nanoseconds,
        compute_ns / nanoseconds,
    )


def _number(entry: Mapping[str, Any], name: str) -> int:
    """Return a counter. Protobuf's JSON writes it as text, and leaves it out if it is 0."""
    return int(entry.get(name, 0))
