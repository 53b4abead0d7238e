"""Results documents: reading, writing, and the rows in them, whatever suite they are of.

A suite's document names its schema, `nst-bench-<suite>/<version>`, and a run's (`nst-bench-run/<version>`) holds those
of its suites under `suites`. A row says what it is of, and then has the fields of `nst_bench.measure.Summary`
(milliseconds), or the reason under `missing` why there are none. A document that was cut short has the reason under
`stopped`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nst_bench import upgrades
from nst_bench.measure import Precision
from nst_bench.suite import VERSION, Document, names
from nst_core.errors import InputError
from nst_core.files import atomic_write

NUMBERS = {"size": "{}²", "crop": "{}²", "width": "width {:g}", "callers": "{} callers"}
"""Numbers that say which row it is, not what was measured, and how they are written."""

NOTES = ("version", "served", "unit", "command", "missing", "stopped", "who")
"""Texts that do not say which row it is."""

_NUMBERS_ONLY = re.compile(r"\[\n\s*(-?[\d.][^\[\]{}\"]*?)\s+\]")

Key = tuple[str, ...]
"""Which row it is: the suite's name, and what the document says on the way to it."""


@dataclass(frozen=True)
class Row:
    """One figure of a document: a duration in milliseconds, or a rate a second if `rate`.

    `n` are its samples, `precision` how well the median is known. `missing` is the reason why there is no figure.
    """

    median: float | None
    p95: float | None
    unstable: bool
    n: int = 0
    precision: Precision | None = None
    rate: bool = False
    missing: str | None = None


def suite_of(document: Document) -> str:
    """The name of the suite that a document is of, or `run`."""
    return str(document["schema"]).removeprefix("nst-bench-").partition("/")[0]


def read(path: Path) -> Document:
    """A results document, as this version writes it; `InputError` if the file is none of a known schema."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no results of nst-bench ({error})") from error
    known = [upgrades.OLDEST] + [
        f"nst-bench-{name}/{version}" for name in ("run", *names()) for version in range(1, VERSION + 1)
    ]
    if not isinstance(document, dict) or document.get("schema") not in known:
        raise InputError(f"{path}: no results of nst-bench with a schema that this version knows")
    return upgrades.upgraded(document)


def write(document: Document, path: Path) -> None:
    """The document as JSON, whole; a value a line, and a list of numbers, too."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    text = _NUMBERS_ONLY.sub(lambda found: "[" + " ".join(found.group(1).split()) + "]", text)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n")


def summary(document: Any) -> Any:
    """A document without its samples, of eight digits a number, from which all tables and plots are drawn."""
    if isinstance(document, dict):
        return {name: summary(value) for name, value in document.items() if name != "samples"}
    if isinstance(document, list | tuple):
        return [summary(value) for value in document]
    return float(f"{document:.8g}") if isinstance(document, float) else document


def suites(document: Document) -> dict[str, Document]:
    """The documents of suites in a document, by suite: a run's, or the document itself."""
    name = suite_of(document)
    found: dict[str, Document] = document["suites"] if name == "run" else {name: document}
    return found


def measured(document: Document) -> dict[str, Document]:
    """The suites of a document that were measured."""
    return {name: own for name, own in suites(document).items() if "missing" not in own}


def rows(document: Document) -> dict[Key, Row]:
    """Every figure that has a summary (`measure.Summary`) or a rate, and every missing figure.

    Rows that the document does not tell from each other, as the rates of arrival that a search tried, are left out.
    """
    found = [pair for suite, own in suites(document).items() for pair in _rows(own, (suite,))]
    times = Counter(key for key, _ in found)
    return {key: row for key, row in found if times[key] == 1}


def identity(row: Document) -> dict[str, str]:
    """What says which row it is, in words, by the name of the field."""
    words: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, str) and name not in NOTES:
            words[name] = value
        elif isinstance(value, bool) and name not in ("unstable", "rate_unstable", "within"):
            words[name] = name.replace("_", " ") if value else f"not {name.replace('_', ' ')}"
        elif name == "height" and value:
            words["shape"] = f"{value} x {row['width']}"
        elif name in NUMBERS and "height" not in row and isinstance(value, int | float):
            words[name] = NUMBERS[name].format(value)
    return words


def machine_name(document: Document) -> str:
    """`Intel(R) Xeon(R) Processor, 2 cores`, and the GPU, if any."""
    machine = document["machine"]
    name = f"{machine['processor']}, {machine['cores']} cores"
    return f"{name}, {machine['gpu']}" if machine["gpu"] else name


def _rows(value: Any, key: Key) -> Iterator[tuple[Key, Row]]:
    if isinstance(value, list):
        for row in value:
            if isinstance(row, dict):
                yield from _rows(row, (*key, *identity(row).values()))
    elif isinstance(value, dict):
        yield from _figures(value, key)
        for name, child in value.items():
            if name not in ("machine", "model"):
                yield from _rows(child, key if name == "rows" else (*key, name))


def _figures(row: Document, key: Key) -> Iterator[tuple[Key, Row]]:
    """A row's own figures, not those of what it holds."""
    if isinstance(row.get("missing"), str):
        yield key, Row(None, None, False, missing=row["missing"])
    if "median" in row and "n" in row:
        precision = Precision(**known) if (known := row.get("median_precision")) else None
        yield key, Row(row["median"], row["p95"], row["unstable"], row["n"], precision)
    if "rate" in row and "rates" in row:
        rates = row["rates"]
        drifted = row.get("rate_unstable", False)
        yield (*key, "a second"), Row(row["rate"], None, drifted, len(rates), Precision.of(rates), rate=True)
