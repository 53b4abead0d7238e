"""Two results documents against each other: what became slower, with confidence.

Rows are matched by what they say they are. The ratio is that of the times (for rates, of the time an image takes), so
above 1 is slower. Its interval is Student's t, by how well both sides know their medians (`measure.Precision`). The
intervals of all rows hold together (Bonferroni), so that a document of a hundred rows does not fail by chance. No
run sees that the machine itself has another day: the rate of its matrix product stands beside, and there is a tolerance
on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student

from nst_bench import results
from nst_bench.measure import FEWEST, Precision
from nst_bench.results import Key, Row, machine_name
from nst_bench.suite import Document
from nst_bench.tables import milliseconds, table
from nst_core.errors import InputError

SCHEMA = "nst-bench-compare/1"
CONFIDENCE = 0.95
"""That no row is called slower, or faster, by chance."""

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
    """The rows of both, remarks on what only one has, and the obstacle to a verdict, or None."""

    rows: list[Compared]
    remarks: list[str]
    obstacle: str | None

    @property
    def slower(self) -> list[Compared]:
        """The rows that became slower, the worst first."""
        return sorted((row for row in self.rows if row.verdict == SLOWER), key=lambda row: -row.ratio)

    @property
    def exit_code(self) -> int:
        """0 as fast or faster, 1 something became slower, 2 not comparable."""
        return 2 if self.obstacle else 1 if self.slower else 0


def compare(a: Document, b: Document, *, tolerance: float = 0.05) -> Comparison:
    """`b` against the earlier `a`. A row is slower, or faster, if the whole interval is beyond 1 by `tolerance`.

    Raises `InputError` if the documents have no suite in common.
    """
    suites_a, suites_b = results.suites(a), results.suites(b)
    common, remarks, other_models = _common(suites_a, suites_b)
    rates = [document["machine"]["matrix_product_gflops"] for document in (a, b)]
    remarks.append(f"the matrix product ran at {rates[0]:g} GFLOP/s in A and at {rates[1]:g} in B")
    rows_a, rows_b = ({key: row for key, row in results.rows(d).items() if key[0] in common} for d in (a, b))
    both = [key for key in rows_a if key in rows_b and _measured(rows_a[key], rows_b[key])]
    judged = sum(_why_not(rows_a[key], rows_b[key]) is None for key in both)
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, judged)
    rows = [_compared(key, rows_a[key], rows_b[key], confidence, tolerance) for key in both]
    obstacles = []
    if machine_name(a) != machine_name(b):
        obstacles.append(f"the machines differ: {machine_name(a)}; {machine_name(b)}")
    if not judged:
        obstacles += other_models or ["no row could be judged"]
    remarks += [*_unmatched(rows_a, rows_b), *other_models]
    return Comparison(rows, remarks, "; ".join(obstacles) or None)


def _common(a: dict[str, Document], b: dict[str, Document]) -> tuple[list[str], list[str], list[str]]:
    """The suites that both measured of one model, remarks on the others, and those of another model."""
    if not a.keys() & b.keys():
        raise InputError(f"nothing to compare: one has {', '.join(a)}, the other {', '.join(b)}")
    remarks = [f"only in A: the suite {name}" for name in a if name not in b]
    remarks += [f"only in B: the suite {name}" for name in b if name not in a]
    common, other_models = [], []
    for name in (name for name in a if name in b):
        failed = [(side, own[name]) for side, own in (("A", a), ("B", b)) if "missing" in own[name]]
        models = [_model(own[name]) for own in (a, b)]
        if failed:
            remarks += [f"not measured in {side}: {name}: {document['missing']}" for side, document in failed]
        elif models[0] != models[1]:
            other_models.append(f"{name}: another model, {models[0]} and {models[1]}")
        else:
            common.append(name)
    return common, remarks, other_models


def _model(document: Document) -> str:
    model = document.get("model") or {}
    return " ".join(str(model.get(part, "")) for part in ("name", "width")).strip()


def interval(before: Precision, after: Precision, confidence: float) -> float:
    """The factor by which the ratio of two medians is known: it lies between the ratio over this, and times this."""
    freedom = max(2.0, before.independent + after.independent - 2.0)
    reach = float(student.ppf(0.5 + confidence / 2.0, freedom))
    return math.exp(reach * math.hypot(before.error, after.error))


def verdict(comparison: Comparison) -> str:
    """The comparison in a sentence."""
    if comparison.obstacle:
        return f"not comparable: {comparison.obstacle}"
    if worst := comparison.slower:
        return (
            f"{len(worst)} of {len(comparison.rows)} became slower; the slowest {' / '.join(worst[0].key)}: "
            f"{worst[0].ratio:.2f} times the time ({worst[0].low:.2f} to {worst[0].high:.2f})"
        )
    faster = sum(row.verdict == FASTER for row in comparison.rows)
    return f"nothing became slower; {faster} of {len(comparison.rows)} became faster"


def markdown(comparison: Comparison) -> str:
    """The rows, slower ones first, and the remarks."""
    order = {SLOWER: 0, FASTER: 1}
    body = []
    for row in sorted(comparison.rows, key=lambda row: order.get(row.verdict, 2)):
        times = [f"{value:.2f} a second" if row.rate else f"{milliseconds(value)} ms" for value in (row.a, row.b)]
        interval = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
        verdict = f"**{row.verdict}**" if row.verdict in order else row.verdict
        body.append([" / ".join(row.key), *times, f"{row.ratio:.3f}", interval, verdict])
    head = ["", "A", "B", "B's time over A's", f"with {CONFIDENCE:.0%} confidence for all", ""]
    lines = table(head, body) if body else []
    return "\n".join([*lines, "", *(f"- {remark}" for remark in comparison.remarks), ""])


def document(comparison: Comparison) -> Document:
    """The comparison as a JSON document."""
    rows: list[dict[str, Any]] = [{**vars(row), "key": list(row.key)} for row in comparison.rows]
    return {
        "schema": SCHEMA,
        "obstacle": comparison.obstacle,
        "slower": len(comparison.slower),
        "rows": rows,
        "remarks": comparison.remarks,
    }


def _compared(key: Key, a: Row, b: Row, confidence: float, tolerance: float) -> Compared:
    assert a.median is not None and b.median is not None
    ratio = a.median / b.median if a.rate else b.median / a.median
    if why := _why_not(a, b):
        return Compared(key, a.median, b.median, a.rate, ratio, None, None, why)
    assert a.precision and b.precision
    factor = interval(a.precision, b.precision, confidence)
    low, high = ratio / factor, ratio * factor
    verdict = SLOWER if low > 1.0 + tolerance else FASTER if high < 1.0 / (1.0 + tolerance) else SAME
    return Compared(key, a.median, b.median, a.rate, ratio, low, high, verdict)


def _why_not(a: Row, b: Row) -> str | None:
    """Why a row of both is not judged."""
    if min(a.n, b.n) < FEWEST:
        return f"fewer than {FEWEST} samples"
    if a.precision is None or b.precision is None:
        return "no samples"
    if a.unstable or b.unstable:
        return "*unstable*"
    return None


def _measured(a: Row, b: Row) -> bool:
    return a.median is not None and b.median is not None and a.rate == b.rate


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
