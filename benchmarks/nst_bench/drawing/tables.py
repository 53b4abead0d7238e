"""What the tables of all suites have in common: columns of rows, summaries, the lines of a machine."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from operator import itemgetter
from typing import Any

from nst_bench.results import identity
from nst_bench.suite import Document

Cell = str | Callable[[Any], str]
"""What stands in a column: a format of a row's fields (`text`), or a function of the row."""


def columns(titles: str, cells: str) -> dict[str, Cell]:
    """Columns as two lines of a table: their titles, and below them the formats of their cells."""
    return dict(zip(*([part.strip() for part in line.split("|")] for line in (titles, cells)), strict=True))


SUMMARY = columns(
    "p50                           | p95         | p99         | spread       | n  ",
    "{median:short}{unstable:mark} | {p95:short} | {p99:short} | {spread:.0%} | {n}",
)
"""Of a summary (`measure.Summary`), milliseconds; documents of version 1 may lack the p99 and the spread."""

NARROW = "{median:short} ({p95:short}){unstable:mark}"
"""A summary for tables without room for more."""


PHASES = {"steady": "Warm runs", "first of a shape": "First images of new shapes", "cold": "Cold starts"}

TITLES = {
    "gflop": "GFLOP",
    "share_of_matrix_rate": "of the matrix rate",
    "share_of_bandwidth": "of the bandwidth",
    "peak_mib": "peak MiB",
    "image_seconds": "an image, s",
    "ratio": "times",
}

NO_COLUMNS = ("n", "median", "p95", "p99", "minimum", "maximum", "spread", "unstable", "height", "width")
"""Numbers of a row that have no column of their own name."""


def table(rows: Iterable[Document], by_title: Mapping[str, Cell], *, left: int = 1) -> list[str]:
    """A line for each row; a column by its title, of which the first `left` are words and the others numbers.

    A cell is empty where the row lacks what the cell is of, and a column without a cell is left out. What is `missing`
    has its reason in place of numbers.
    """
    body = []
    for row in rows:
        cells = [_cell(cell, row) for cell in by_title.values()]
        if "missing" in row:
            cells[left:] = [f"*{row['missing']}*", *[""] * (len(cells) - left - 1)]
        body.append(cells)
    filled = [any(cells) for cells in zip(*body, strict=True)] or [True] * len(by_title)
    kept = [list(compress(cells, filled)) for cells in (list(by_title), *body)]
    return grid(kept[0], kept[1:], left=sum(filled[:left]))


def pivot(rows: Iterable[Document], about: Mapping[str, Cell], *, across: str, cell: Cell) -> list[str]:
    """A line for all rows that the columns `about` do not tell apart, with a column for each of their `across`."""
    titles, lines = dict.fromkeys(about), dict[tuple[str, ...], Document]()
    for row in rows:
        words = {title: _cell(own, row) for title, own in about.items()}
        titles[row[across]] = None
        lines.setdefault(tuple(words.values()), words)[row[across]] = _cell(cell, row)
    return table(lines.values(), {title: itemgetter(title) for title in titles}, left=len(about))


def _cell(cell: Cell, row: Document) -> str:
    try:
        return text(cell, row) if isinstance(cell, str) else cell(row)
    except KeyError:
        return ""


def text(form: str, row: Mapping[str, Any]) -> str:
    """`str.format` of a row's fields, which also knows the `FORMATS` of this package; a field that is null is empty."""
    return _Formatter().vformat(form, (), row)


class _Formatter(string.Formatter):
    def format_field(self, value: Any, spec: str) -> str:
        if value is None:
            return ""
        return FORMATS[spec](value) if spec in FORMATS else str(super().format_field(value, spec))


def grid(head: Sequence[str], body: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """The lines of a table in Markdown, of texts; what is in a cell cannot end it."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    texts = ([" ".join(cell.split()).replace("|", "/") for cell in cells] for cells in (head, *body))
    lines = [f"| {' | '.join(cells)} |" for cells in texts]
    return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def machine_lines(document: Document) -> list[str]:
    """Processor, memory, GPU, system, versions, and the rates that bound all figures."""
    machine = document["machine"]
    rates = [f"2048x2048 matrix product at {machine['matrix_product_gflops']:g} GFLOP/s"]
    rates += [f"memory copied at {machine['memory_gbs']:g} GB/s"] if "memory_gbs" in machine else []
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; GPU: {_gpu(machine)}.",
        f"{machine['system']}; {versions}; {', '.join(rates)}.",
    ]


def _gpu(machine: Document) -> str:
    """Its name and what its figures depend on: driver, clocks, precision, rates."""
    if not machine["gpu"]:
        return "none at hand, so nothing was measured on one"
    words = [machine["gpu"]]
    for name, value in machine.get("cuda", {}).items():
        inner = ", ".join(f"{part} {what}" for part, what in value.items()) if isinstance(value, dict) else value
        words.append(f"{name.replace('_', ' ')} {inner}")
    return ", ".join(words)


def model_name(model: Document) -> str:
    """A model, and what is known of its network."""
    known = [str(model["network"])] if model.get("network") else []
    known += [f"width {model['width']:g}"] if model.get("width") else []
    known += [f"{model['parameters']:,} parameters"] if "parameters" in model else []
    return f"`{model['name']}`" + (f" ({', '.join(known)})" if known else "")


def short(value: float) -> str:
    """A time with three digits or so."""
    digits = 0 if value >= 200 else 1 if value >= 5 else 2
    return f"{value:,.{digits}f}"


def digits(value: float) -> str:
    """Three of them, and all of a whole number."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


FORMATS: Mapping[str, Callable[[Any], str]] = {
    "short": short,
    "digits": digits,
    "mark": lambda unstable: " *unstable*" if unstable else "",
    "yes": lambda true: "yes" if true else "no",
}


def with_ratio(row: Document) -> str:
    """A narrow summary and, in bold, its ratio to the first of its kind, which has none itself."""
    return text(NARROW if row["ratio"] == 1 else NARROW + ", **{ratio:.2f}**", row)


def list_of_rows(document: Document) -> list[str]:
    """The tables of a document that is a list of rows, and its model."""
    model = [f"{model_name(document['model'])}.", ""] if "model" in document else []
    command = [f"Again: `{document['command']}`.", ""] if "command" in document else []
    return [*model, *command, *by_phase(document["rows"])]


def by_phase(rows: Sequence[Document]) -> list[str]:
    """A table for each phase that the rows have, milliseconds: warm runs, first images of a shape, cold starts."""
    lines = []
    for phase in dict.fromkeys((*PHASES, *(row.get("phase") for row in rows))):
        own = [{**row, "phase": None} for row in rows if row.get("phase") == phase]
        if own:
            title = f"{PHASES[phase]}, milliseconds:" if phase in PHASES else "Milliseconds:"
            lines += [title, "", *_of_any_kind(own), ""]
    return lines[:-1]


def _of_any_kind(rows: list[Document]) -> list[str]:
    """What says which row it is, its summary, and its other figures; at the end what is missing, sizes together."""
    words = dict.fromkeys(name for row in rows for name in identity(row))
    words |= {"version": None} if any("version" in row for row in rows) else {}
    numbers: dict[str, Cell] = {}
    shown: list[Document] = []
    missing: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for row in rows:
        known = identity(row)
        if "missing" in row:
            size = known.pop("size", "")
            missing.setdefault((*known.items(), ("missing", row["missing"])), []).append(size)
            continue
        for name, value in row.items():
            if isinstance(value, int | float) and name not in (*known, *NO_COLUMNS):
                form = ".0%" if name.startswith("share_") else "digits"
                numbers[TITLES.get(name, name.replace("_", " "))] = f"{{{name}:{form}}}"
        shown.append({**row, **dict.fromkeys(words), **known, "version": row.get("version")})
    shown += [{**dict(known), "size": ", ".join(sizes)} for known, sizes in missing.items()]
    titles = {name.replace("_", " "): f"{{{name}}}" for name in words}
    return table(shown, {**titles, **SUMMARY, **numbers}, left=len(titles))
