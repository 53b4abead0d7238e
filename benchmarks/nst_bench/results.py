"""Results documents: reading, writing, and the rows in them, whatever suite they are of.

A suite's document names its schema, `nst-bench-<suite>/<version>`, and a run's (`nst-bench-run/1`) holds those of its
suites; what could not be measured, a suite or a row, has the reason under `missing`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nst_core.errors import InputError
from nst_core.files import atomic_write

Document = dict[str, Any]

RUN = "nst-bench-run/1"
OLDEST = "nst-bench/1"
"""The speed-up's, before the suites had names; its rows are called figures."""

SUITES = {
    OLDEST: "speedup",
    **{
        f"nst-bench-{suite}/1": suite
        for suite in (
            *("latency", "serving", "gatys", "quality", "speedup", "methods", "training", "export", "soak", "cold"),
            *("peers", "perf-analyzer", "video", "frontier", "energy", "styles"),
        )
    },
}
"""The schemas that are read, and the suites that they are of."""

NUMBERS = {"size": "{}²", "crop": "{}²", "width": "width {:g}", "callers": "{} callers"}
"""Numbers that say which row it is, not what was measured, and how they are written."""

NOTES = ("version", "served", "unit", "command", "missing", "stopped", "who")
"""Texts that do not say which row it is."""

_NUMBERS_ONLY = re.compile(r"\[\n\s*(-?[\d.][^\[\]{}\"]*?)\s+\]")


@dataclass(frozen=True)
class Row:
    """One figure of a document: a duration in milliseconds, or a rate a second if `rate`.

    `samples` is empty for documents that were written without. `missing` is the reason why there is no figure.
    """

    median: float | None
    p95: float | None
    samples: tuple[float, ...]
    unstable: bool
    rate: bool = False
    missing: str | None = None


Key = tuple[str, ...]
"""Which row it is: the suite's name, and what is said in the document on the way to it."""


def read(path: Path) -> Document:
    """A results document; `InputError` if the file is none of a known schema."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no results of nst-bench ({error})") from error
    if not isinstance(document, dict) or document.get("schema") not in (RUN, *SUITES):
        raise InputError(f"{path}: no results of nst-bench with a schema of {', '.join((RUN, *SUITES))}")
    return _named(document)


def _named(document: Document) -> Document:
    """A document of `OLDEST` as one of today; it has no losses."""
    if document["schema"] == OLDEST:
        rows = {"rows" if name == "figures" else name: value for name, value in document.items()}
        return {**rows, "schema": "nst-bench-speedup/1", "equal_loss": []}
    return document


def write(document: Document, path: Path) -> None:
    """The document as JSON, whole; a line a value, and lists of numbers in one."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    text = _NUMBERS_ONLY.sub(lambda found: "[" + " ".join(found.group(1).split()) + "]", text)
    with atomic_write(path) as beside:
        beside.write_text(text + "\n")


def suites(document: Document) -> dict[str, Document]:
    """The documents of suites in a document, by suite: a run's, or the one itself."""
    if document["schema"] == RUN:
        found: dict[str, Document] = document["suites"]
        return found
    return {SUITES[document["schema"]]: document}


def rows(document: Document) -> dict[Key, Row]:
    """Every figure that has a summary (`measure.Summary`) or a rate, and every missing one.

    Rows that the document does not tell from each other, as the rates of arrival that a search tried, are left out.
    """
    found = [pair for suite, own in suites(document).items() for pair in _rows(own, (suite,))]
    times = Counter(key for key, _ in found)
    return {key: row for key, row in found if times[key] == 1}


def identity(one: Document) -> dict[str, str]:
    """What says which row it is, in words, by the name of the field."""
    words: dict[str, str] = {}
    for name, value in one.items():
        if isinstance(value, str) and name not in NOTES:
            words[name] = value
        elif isinstance(value, bool) and name not in ("unstable", "rate_unstable", "within"):
            words[name] = name.replace("_", " ") if value else f"not {name.replace('_', ' ')}"
        elif name == "height" and value:
            words["shape"] = f"{value} x {one['width']}"
        elif name in NUMBERS and "height" not in one and isinstance(value, int | float):
            words[name] = NUMBERS[name].format(value)
    return words


def machine_name(document: Document) -> str:
    """`Intel(R) Xeon(R) Processor, 2 cores`, and the GPU if there is one."""
    machine = document["machine"]
    name = f"{machine['processor']}, {machine['cores']} cores"
    return f"{name}, {machine['gpu']}" if machine["gpu"] else name


def _rows(value: Any, key: Key) -> Iterator[tuple[Key, Row]]:
    if isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                yield from _rows(one, (*key, *identity(one).values()))
    elif isinstance(value, dict):
        yield from _figures(value, key)
        for name, child in value.items():
            if name not in ("machine", "model"):
                yield from _rows(child, key if name == "rows" else (*key, name))


def _figures(one: Document, key: Key) -> Iterator[tuple[Key, Row]]:
    """A row's own figures, not those of what it holds."""
    if isinstance(one.get("missing"), str):
        yield key, Row(None, None, (), False, missing=one["missing"])
    if "median" in one and "n" in one:
        yield key, Row(one["median"], one["p95"], tuple(one.get("samples", ())), one["unstable"])
    if "rate" in one and "rates" in one:
        rates = tuple(one["rates"])
        yield (*key, "a second"), Row(one["rate"], None, rates, one.get("rate_unstable", False), rate=True)
