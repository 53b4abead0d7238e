"""Results documents of any suite: reading, writing, and finding their rows.

A suite's document names its schema, `nst-bench-<suite>/<version>`; a run's (`nst-bench-run/<version>`) holds those of
its suites under `suites`. A row has fields that identify it, and those of `nst_bench.measure.Summary` (milliseconds)
or, under `missing`, the reason why there are none. A document that is incomplete has the reason under `stopped`.
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
"""Numbers that identify a row rather than being measured, and their format."""

NOTES = ("version", "served", "unit", "command", "missing", "stopped", "who")
"""Texts that do not identify a row."""

_NUMBERS_ONLY = re.compile(r"\[\n\s*(-?[\d.][^\[\]{}\"]*?)\s+\]")

Key = tuple[str, ...]
"""Identifies a row: the suite's name, and the keys and texts on the path to it."""


@dataclass(frozen=True)
class Row:
    """One figure of a document: a duration in milliseconds, or a rate per second if `rate`.

    `n` is the number of samples, `precision` that of the median. `missing` is the reason why there is no figure.
    """

    median: float | None
    p95: float | None
    unstable: bool
    n: int = 0
    precision: Precision | None = None
    rate: bool = False
    missing: str | None = None


def suite_of(document: Document) -> str:
    """Return the name of a document's suite, or `run`."""
    return str(document["schema"]).removeprefix("nst-bench-").partition("/")[0]


def read(path: Path) -> Document:
    """Read a results document as this version writes it. Raises `InputError` for any other file."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a results file of nst bench") from error
    except ValueError as error:
        raise InputError(f"{path}: not a results file of nst bench ({error})") from error
    known = [upgrades.OLDEST] + [
        f"nst-bench-{name}/{version}" for name in ("run", *names()) for version in range(1, VERSION + 1)
    ]
    if not isinstance(document, dict) or document.get("schema") not in known:
        raise InputError(f'{path}: not a results file of nst bench, or of a newer version; check its "schema"')
    return upgrades.upgraded(document)


def write(document: Document, path: Path) -> None:
    """Write a document atomically as JSON, one value or list of numbers per line."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    text = _NUMBERS_ONLY.sub(lambda found: "[" + " ".join(found.group(1).split()) + "]", text)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n")


def summary(document: Any) -> Any:
    """Return a document without its samples, with eight digits per number; tables and plots need no more."""
    if isinstance(document, dict):
        return {name: summary(value) for name, value in document.items() if name != "samples"}
    if isinstance(document, list | tuple):
        return [summary(value) for value in document]
    return float(f"{document:.8g}") if isinstance(document, float) else document


def suites(document: Document) -> dict[str, Document]:
    """Return the suites' documents in a document, by suite: those of a run, or the document itself."""
    name = suite_of(document)
    found: dict[str, Document] = document["suites"] if name == "run" else {name: document}
    return found


def measured(document: Document) -> dict[str, Document]:
    """Return the documents of the suites that were measured."""
    return {name: own for name, own in suites(document).items() if "missing" not in own}


def rows(document: Document) -> dict[Key, Row]:
    """Return every figure that has a summary (`measure.Summary`) or a rate, and every missing figure.

    Rows with the same key, such as the arrival rates that a search tried, are left out.
    """
    found = [pair for suite, own in suites(document).items() for pair in _rows(own, (suite,))]
    times = Counter(key for key, _ in found)
    return {key: row for key, row in found if times[key] == 1}


def identity(row: Document) -> dict[str, str]:
    """Return the texts that identify a row, by the name of the field."""
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
    """Return the machine's name, such as `Intel(R) Xeon(R) Processor, 2 cores`, and its GPU, if any."""
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
    """Yield a row's own figures, not those of rows within it."""
    if isinstance(row.get("missing"), str):
        yield key, Row(None, None, False, missing=row["missing"])
    if "median" in row and "n" in row:
        precision = Precision(**known) if (known := row.get("median_precision")) else None
        yield key, Row(row["median"], row["p95"], row["unstable"], row["n"], precision)
    if "rate" in row and "rates" in row:
        rates = row["rates"]
        drifted = row.get("rate_unstable", False)
        yield (*key, "a second"), Row(row["rate"], None, drifted, len(rates), Precision.of(rates), rate=True)
