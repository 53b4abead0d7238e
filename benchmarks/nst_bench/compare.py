"""Comparison of two results documents: what became slower, with confidence intervals.

Rows are matched by their keys. The ratio is that of the times (for rates, of the time per image), so above 1 is slower.
Its confidence interval is Student's t, from the standard errors of both medians (`measure.Precision`). The intervals
hold jointly for all rows (Bonferroni), so that a document of a hundred rows does not fail by chance. A run cannot tell
whether the machine itself was slower that day: the rate of its matrix product is shown, and a tolerance is added.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from scipy.stats import t as student

from nst_bench import results
from nst_bench.drawing.tables import columns, table, text
from nst_bench.drawing.words import shown
from nst_bench.measure import FEWEST, Precision
from nst_bench.results import Key, Row, machine_name
from nst_bench.suite import Document
from nst_core.errors import InputError

SCHEMA = "nst-bench-compare/1"
CONFIDENCE = 0.95
"""Probability that no row is called slower or faster by chance."""

SLOWER, FASTER, SAME = "slower", "faster", "same"


@dataclass(frozen=True)
class Compared:
    """A row of both: `ratio` is B's time over A's, `low` to `high` its interval; without one, the verdict says why."""

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
    """The rows of both, remarks on what only one has, and why the two are not comparable, or None."""

    rows: list[Compared]
    remarks: list[str]
    obstacle: str | None

    @property
    def slower(self) -> list[Compared]:
        """The rows that became slower, the slowest first."""
        return sorted((row for row in self.rows if row.verdict == SLOWER), key=lambda row: -row.ratio)

    @property
    def exit_code(self) -> int:
        """0 if nothing became slower, 1 if something did, 2 if not comparable."""
        return 2 if self.obstacle else 1 if self.slower else 0

    @property
    def verdict(self) -> str:
        """The result as a sentence."""
        if self.obstacle:
            return f"not comparable: {self.obstacle}"
        if slower := self.slower:
            return (
                f"{len(slower)} of {len(self.rows)} became slower; the most, {_name(slower[0].key)}, takes "
                f"{slower[0].ratio:.2f} times as long ({slower[0].low:.2f} to {slower[0].high:.2f})"
            )
        faster = sum(row.verdict == FASTER for row in self.rows)
        return f"nothing became slower; {faster} of {len(self.rows)} became faster"

    @property
    def document(self) -> Document:
        """The comparison as a JSON document."""
        return {"schema": SCHEMA, "obstacle": self.obstacle, "slower": len(self.slower), **asdict(self)}

    @property
    def markdown(self) -> str:
        """The rows as a table, slower ones first, and the remarks."""
        order = {SLOWER: 0, FASTER: 1}
        shown = [
            {
                "key": _name(row.key),
                "a": text("{a:.2f}/s" if row.rate else "{a:short} ms", vars(row)),
                "b": text("{b:.2f}/s" if row.rate else "{b:short} ms", vars(row)),
                "ratio": row.ratio,
                "interval": "" if row.low is None else f"{row.low:.3f} to {row.high:.3f}",
                "verdict": f"**{row.verdict}**" if row.verdict in order else row.verdict,
            }
            for row in sorted(self.rows, key=lambda row: order.get(row.verdict, len(order)))
        ]
        about = columns(
            f"      | A   | B   | time ratio B/A | {CONFIDENCE:.0%} confidence interval | verdict",
            "{key} | {a} | {b} | {ratio:.3f}    | {interval}                      | {verdict}",
        )
        lines = table(shown, about) if shown else []
        return "\n".join([*lines, "", *(f"- {remark}" for remark in self.remarks), ""])


def compare(a: Document, b: Document, *, tolerance: float = 0.05) -> Comparison:
    """Compare `b` with the earlier `a`.

    A row is slower, or faster, if its whole interval is beyond 1 by `tolerance`. Raises `InputError` if the documents
    have no suite in common.
    """
    common, remarks, other_models = _common(results.suites(a), results.suites(b))
    rates = [document["machine"]["matrix_product_gflops"] for document in (a, b)]
    remarks.append(f"matrix product: {rates[0]:g} GFLOP/s in A, {rates[1]:g} GFLOP/s in B")
    rows_a, rows_b = ({key: row for key, row in results.rows(d).items() if key[0] in common} for d in (a, b))
    both = {key: (row, rows_b[key]) for key, row in rows_a.items() if key in rows_b and row.rate == rows_b[key].rate}
    both = {key: pair for key, pair in both.items() if all(row.median is not None for row in pair)}
    judged = sum(_why_not(*pair) is None for pair in both.values())
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, judged)
    rows = [_compared(key, *pair, confidence, tolerance) for key, pair in both.items()]
    obstacles = []
    if machine_name(a) != machine_name(b):
        obstacles.append(f"different machines: {machine_name(a)}; {machine_name(b)}")
    if not judged:
        obstacles += other_models or ["no row has enough samples in both"]
    remarks += [*_only_in("A", rows_a, rows_b), *_only_in("B", rows_b, rows_a), *other_models]
    return Comparison(rows, remarks, "; ".join(obstacles) or None)


def _common(a: dict[str, Document], b: dict[str, Document]) -> tuple[list[str], list[str], list[str]]:
    """Return the suites that both measured with the same model, remarks on others, and those of different models."""
    if not a.keys() & b.keys():
        raise InputError(f"no suite in common: A has {', '.join(a)}; B has {', '.join(b)}")
    common, remarks, other_models = [], [], []
    for name in dict.fromkeys((*a, *b)):
        there = {who: suites[name] for who, suites in (("A", a), ("B", b)) if name in suites}
        missing = {who: own["missing"] for who, own in there.items() if "missing" in own}
        models = dict.fromkeys(map(_model, there.values()))
        if len(there) == 1:
            remarks.append(f"only in {next(iter(there))}: the suite {name}")
        elif missing:
            remarks += [f"not measured in {who}: {name}: {reason}" for who, reason in missing.items()]
        elif len(models) > 1:
            other_models.append(f"{name}: different models, {' and '.join(models)}")
        else:
            common.append(name)
    return common, remarks, other_models


def _model(document: Document) -> str:
    model = document.get("model") or {}
    return " ".join(str(model.get(part, "")) for part in ("name", "width")).strip()


def _only_in(who: str, own: dict[Key, Row], others: dict[Key, Row]) -> list[str]:
    """Return remarks on rows that only one has, or that only the other could measure."""
    remarks = []
    for key, row in own.items():
        other = others.get(key)
        if row.missing and other and not other.missing:
            remarks.append(f"not measured in {who}: {_name(key)}: {row.missing}")
        elif other is None and not row.missing:
            remarks.append(f"only in {who}: {_name(key)}")
    return remarks


def _name(key: Key) -> str:
    return " / ".join(map(shown, key))


def _why_not(a: Row, b: Row) -> str | None:
    """Return why a row of both gets no verdict, or None."""
    if min(a.n, b.n) < FEWEST:
        return f"fewer than {FEWEST} samples"
    if a.precision is None or b.precision is None:
        return "no samples"
    return "*unstable*" if a.unstable or b.unstable else None


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


def interval(before: Precision, after: Precision, confidence: float) -> float:
    """Return the factor of the interval of the ratio of two medians: from ratio / factor to ratio * factor."""
    freedom = max(2.0, before.independent + after.independent - 2.0)
    reach = float(student.ppf(0.5 + confidence / 2.0, freedom))
    return math.exp(reach * math.hypot(before.error, after.error))
