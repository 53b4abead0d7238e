"""What a server has counted for a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Statistics:
    """Counters of the model that paints a style, all its versions together, since the server loaded them.

    Times are means of the answered requests, in seconds.
    """

    requests: int = 0
    """Answered."""
    failures: int = 0
    """Requests that ended with an error."""
    pictures: int = 0
    """Painted; a request may hold several."""
    executions: int = 0
    """Runs of the model; one run may take the pictures of several requests."""
    batches: Mapping[int, int] = field(default_factory=dict)
    """How many runs had so many pictures."""
    queue_seconds: float = 0.0
    """From a request's arrival to its run."""
    compute_seconds: float = 0.0
    """Of the run, the copying of pixels in and out of it included."""


def from_triton(models: Iterable[Mapping[str, Any]]) -> Statistics:
    """The entries of Triton's statistics extension (`model_stats`), one for each version of a model.

    Raises `LookupError`, `TypeError`, `ValueError` or `AttributeError` for entries of another shape.
    """
    requests = failures = pictures = executions = queued = computed = 0
    batches: dict[int, int] = {}
    for entry in models:
        times = entry["inference_stats"]
        requests += _number(times["success"], "count")
        failures += _number(times["fail"], "count")
        pictures += _number(entry, "inference_count")
        executions += _number(entry, "execution_count")
        queued += _number(times["queue"], "ns")
        computed += sum(_number(times[part], "ns") for part in ("compute_input", "compute_infer", "compute_output"))
        for batch in entry.get("batch_stats", ()):
            size = _number(batch, "batch_size")
            batches[size] = batches.get(size, 0) + _number(batch["compute_infer"], "count")
    answered = max(1, requests) * 1e9
    return Statistics(
        requests, failures, pictures, executions, dict(sorted(batches.items())), queued / answered, computed / answered
    )


def _number(entry: Mapping[str, Any], name: str) -> int:
    """A counter; protobuf's JSON writes one as text, and leaves it out where it is 0."""
    return int(entry.get(name, 0))
