"""Two results documents against each other: what became slower, with confidence.

Rows are matched by what they say they are. The ratio is that of the times (for rates, of the time a piece takes), so
above 1 is slower. Its interval comes from a bootstrap of both sides' samples; since a sample is like the one before
it, they count as fewer. The intervals of all rows hold together (Bonferroni), so that a document of a hundred rows
does not fail by chance. What no bootstrap of one run sees is that the machine itself has another day: the rate of its
matrix product stands beside, and there is a tolerance on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from nst_bench import results
from nst_bench.results import Document, Key, Row, machine_name
from nst_bench.tables import milliseconds, table
from nst_core.errors import InputError

SCHEMA = "nst-bench-compare/1"
CONFIDENCE = 0.95
"""That no row is called slower, or faster, by chance."""

FEWEST = 5
"""Samples on each side that a row needs to be judged."""

RESAMPLES = 1000

SLOWER, FASTER, SAME = "slower", "faster", "same"


@dataclass(frozen=True)
class Compared:
    """A row of both: `ratio` is the times' B over A, `low` to `high` its interval; without one the verdict says why."""

    key: Key
    a: float
    b: float
    rate: bool
    ratio: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """The rows of both, remarks on what only one has, and the obstacle to a verdict, if there is one."""

    rows: list[Compared]
    remarks: list[str]
    obstacle: str | None

    @property
    def slower(self) -> list[Compared]:
        """The rows that became slower, the worst first."""
        return sorted((one for one in self.rows if one.verdict == SLOWER), key=lambda one: -one.ratio)

    @property
    def exit_code(self) -> int:
        """0 as fast or faster, 1 something became slower, 2 not comparable."""
        return 2 if self.obstacle else 1 if self.slower else 0


def compare(a: Document, b: Document, *, tolerance: float = 0.05) -> Comparison:
    """`b` against the earlier `a`. A row is slower, or faster, if the whole interval is beyond 1 by `tolerance`.

    Raises `InputError` if the documents have no suite in common.
    """
    one, other = results.suites(a), results.suites(b)
    common = [name for name in one if name in other]
    if not common:
        raise InputError(f"nothing to compare: one has {', '.join(one)}, the other {', '.join(other)}")
    remarks = [f"only in {who}: the suite {name}" for name, who in _apart(one, other)]
    obstacles = []
    if machine_name(a) != machine_name(b):
        obstacles.append(f"the machines differ: {machine_name(a)}; {machine_name(b)}")
    rates = [document["machine"]["matrix_product_gflops"] for document in (a, b)]
    remarks.append(f"the matrix product ran at {rates[0]:g} GFLOP/s in A and at {rates[1]:g} in B")
    other_models: list[str] = []
    for name in list(common):
        reasons = [
            f"not measured in {who}: {name}: {own[name]['missing']}"
            for who, own in (("A", one), ("B", other))
            if "missing" in own[name]
        ]
        if reasons:
            common.remove(name)
            remarks += reasons
            continue
        models = [suites[name].get("model") or {} for suites in (one, other)]
        names = [" ".join(str(model.get(part, "")) for part in ("name", "width")).strip() for model in models]
        if names[0] != names[1]:
            common.remove(name)
            other_models.append(f"{name}: another model, {names[0]} and {names[1]}")
    rows_a, rows_b = ({key: row for key, row in results.rows(d).items() if key[0] in common} for d in (a, b))
    both = [key for key in rows_a if key in rows_b and _measured(rows_a[key], rows_b[key])]
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, sum(_why_not(rows_a[key], rows_b[key]) is None for key in both))
    rows = [_compared(key, rows_a[key], rows_b[key], confidence, tolerance) for key in both]
    remarks += _unmatched(rows_a, rows_b)
    if not any(row.low is not None for row in rows):
        obstacles += other_models or ["no row could be judged"]
    return Comparison(rows, [*remarks, *other_models], "; ".join(obstacles) or None)


def ratio(a: Sequence[float], b: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """The medians' ratio b / a, and the ends of its interval, by a bootstrap with a fixed seed."""
    middle = float(np.median(b) / np.median(a))
    generator = np.random.default_rng(0)
    sides = [np.asarray(side) for side in (a, b)]
    worth = [_independent(side) for side in sides]
    variance = sum(_variance(side, generator) * len(side) / count for side, count in zip(sides, worth, strict=True))
    reach = _student(0.5 + confidence / 2.0, max(2.0, sum(worth) - 2.0)) * math.sqrt(variance)
    return middle, middle * math.exp(-reach), middle * math.exp(reach)


def verdict(comparison: Comparison) -> str:
    """The one sentence."""
    if comparison.obstacle:
        return f"not comparable: {comparison.obstacle}"
    if worst := comparison.slower:
        return (
            f"{len(worst)} of {len(comparison.rows)} became slower; the most {' / '.join(worst[0].key)}: "
            f"{worst[0].ratio:.2f} times the time ({worst[0].low:.2f} to {worst[0].high:.2f})"
        )
    faster = sum(one.verdict == FASTER for one in comparison.rows)
    return f"nothing became slower; {faster} of {len(comparison.rows)} became faster"


def markdown(comparison: Comparison) -> str:
    """The rows, slower ones first, and the remarks."""
    order = {SLOWER: 0, FASTER: 1}
    body = []
    for one in sorted(comparison.rows, key=lambda one: order.get(one.verdict, 2)):
        times = [f"{value:.2f} a second" if one.rate else f"{milliseconds(value)} ms" for value in (one.a, one.b)]
        interval = "" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"
        verdict = f"**{one.verdict}**" if one.verdict in order else one.verdict
        body.append([" / ".join(one.key), *times, f"{one.ratio:.3f}", interval, verdict])
    head = ["", "A", "B", "B's time over A's", f"with {CONFIDENCE:.0%} confidence for all", ""]
    lines = table(head, body) if body else []
    return "\n".join([*lines, "", *(f"- {remark}" for remark in comparison.remarks), ""])


def document(comparison: Comparison) -> Document:
    """The comparison as a JSON document."""
    rows: list[dict[str, Any]] = [{**vars(one), "key": list(one.key)} for one in comparison.rows]
    return {
        "schema": SCHEMA,
        "obstacle": comparison.obstacle,
        "slower": len(comparison.slower),
        "rows": rows,
        "remarks": comparison.remarks,
    }


def _compared(key: Key, a: Row, b: Row, confidence: float, tolerance: float) -> Compared:
    assert a.median is not None and b.median is not None
    middle = a.median / b.median if a.rate else b.median / a.median
    why = _why_not(a, b)
    if why:
        return Compared(key, a.median, b.median, a.rate, middle, None, None, why)
    first, second = (b, a) if a.rate else (a, b)
    middle, low, high = ratio(first.samples, second.samples, confidence)
    verdict = SLOWER if low > 1.0 + tolerance else FASTER if high < 1.0 / (1.0 + tolerance) else SAME
    return Compared(key, a.median, b.median, a.rate, middle, low, high, verdict)


def _why_not(a: Row, b: Row) -> str | None:
    """Why a row of both is not judged."""
    if not a.samples or not b.samples:
        return "no samples"
    if min(len(a.samples), len(b.samples)) < FEWEST:
        return f"fewer than {FEWEST} samples"
    if a.unstable or b.unstable:
        return "*unstable*"
    return None


def _measured(a: Row, b: Row) -> bool:
    return a.median is not None and b.median is not None and a.rate == b.rate


def _variance(samples: np.ndarray, generator: np.random.Generator) -> float:
    """Of the logarithm of the median, as if the samples were independent."""
    chosen = samples[generator.integers(len(samples), size=(RESAMPLES, len(samples)))]
    return float(np.log(np.median(chosen, axis=1)).var(ddof=1))


def _independent(samples: np.ndarray) -> float:
    """How many independent samples these are worth: by the correlation of each one's rank with that of the next.

    A short series' own mean hides a part of it, which Kendall's correction adds again.
    """
    count = len(samples)
    ranks = np.argsort(np.argsort(samples)) - (count - 1) / 2.0
    found = float(ranks[1:] @ ranks[:-1] / (ranks @ ranks))
    correlation = min(0.9, max(0.0, found + (1.0 + 3.0 * found) / count))
    return count * (1.0 - correlation) / (1.0 + correlation)


def _student(share: float, freedom: float) -> float:
    """The quantile of Student's t, by its expansion around the normal one (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4.0,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96.0,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384.0,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _apart(one: dict[str, Document], other: dict[str, Document]) -> list[tuple[str, str]]:
    return [(name, "A") for name in one if name not in other] + [(name, "B") for name in other if name not in one]


def _unmatched(a: dict[Key, Row], b: dict[Key, Row]) -> list[str]:
    """Rows that only one has, or that one could not measure."""
    remarks = []
    for who, own, others in (("A", a, b), ("B", b, a)):
        for key, row in own.items():
            other = others.get(key)
            if row.missing and other and not other.missing:
                remarks.append(f"not measured in {who}: {' / '.join(key)}: {row.missing}")
            elif other is None and not row.missing:
                remarks.append(f"only in {who}: {' / '.join(key)}")
    return remarks
