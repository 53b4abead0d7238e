"""What the tables of all suites have in common: columns, summaries, and the machine's description."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from operator import itemgetter
from typing import Any

from nst_bench.drawing.words import shown
from nst_bench.results import identity
from nst_bench.suite import Document

Cell = str | Callable[[Any], str]
"""A column's cells: a format string of a row's fields (see `text`), or a function of the row."""


def columns(titles: str, cells: str) -> dict[str, Cell]:
    """Define columns as two lines of a table: their titles, and the formats of their cells."""
    return dict(zip(*([part.strip() for part in line.split("|")] for line in (titles, cells)), strict=True))


SUMMARY = columns(
    "p50                           | p95         | p99         | spread       | n  ",
    "{median:short}{unstable:mark} | {p95:short} | {p99:short} | {spread:.0%} | {n}",
)
"""Columns of a summary (`measure.Summary`), milliseconds; documents of version 1 may lack p99 and spread."""

NARROW = "{median:short} ({p95:short}){unstable:mark}"
"""A summary for narrow tables."""


PHASES = {"steady": "Warm runs", "first of a shape": "First requests of new shapes", "cold": "Cold starts"}

TITLES = {
    "gflop": "GFLOP",
    "share_of_matrix_rate": "share of matmul rate",
    "share_of_bandwidth": "share of memory bandwidth",
    "peak_mib": "peak memory, MiB",
    "image_seconds": "s per image",
    "ratio": "relative time",
    "frames_per_second": "frames/s",
    "share_of_bare": "share of in-process rate",
}

NO_COLUMNS = ("n", "median", "p95", "p99", "minimum", "maximum", "spread", "unstable", "height", "width")
"""Numbers of a row without a column of that name."""


def table(rows: Iterable[Document], by_title: Mapping[str, Cell], *, left: int = 1) -> list[str]:
    """Return the lines of a table with one line per row; the first `left` columns are text, the others numbers.

    A cell is empty if the row lacks its field, and a column of empty cells is left out. A row with `missing` has the
    reason in place of numbers.
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
    """Return a table with one line per combination of the columns `about`, and one column per value of `across`."""
    titles, lines = dict.fromkeys(about), dict[tuple[str, ...], Document]()
    for row in rows:
        words = {title: _cell(own, row) for title, own in about.items()}
        title = shown(row[across])
        titles[title] = None
        lines.setdefault(tuple(words.values()), words)[title] = _cell(cell, row)
    return table(lines.values(), {title: itemgetter(title) for title in titles}, left=len(about))


def _cell(cell: Cell, row: Document) -> str:
    try:
        return text(cell, row) if isinstance(cell, str) else cell(row)
    except KeyError:
        return ""


def text(form: str, row: Mapping[str, Any]) -> str:
    """Format a row's fields as `str.format` does, with the `FORMATS` of this module; null is empty.

    Texts of the document are replaced by what is shown for them (`words.shown`).
    """
    return _Formatter().vformat(form, (), row)


class _Formatter(string.Formatter):
    def format_field(self, value: Any, spec: str) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            value = shown(value)
        return FORMATS[spec](value) if spec in FORMATS else str(super().format_field(value, spec))


def grid(head: Sequence[str], body: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return the lines of a Markdown table; `|` in a cell becomes `/`."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    texts = ([" ".join(cell.split()).replace("|", "/") for cell in cells] for cells in (head, *body))
    lines = [f"| {' | '.join(cells)} |" for cells in texts]
    return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def machine_lines(document: Document) -> list[str]:
    """Return two lines: processor, memory and GPU; system, versions and the machine's peak rates."""
    machine = document["machine"]
    rates = [f"2048x2048 matrix product {machine['matrix_product_gflops']:g} GFLOP/s"]
    rates += [f"memory copy {machine['memory_gbs']:g} GB/s"] if "memory_gbs" in machine else []
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; GPU: {_gpu(machine)}.",
        f"{machine['system']}; {versions}; {', '.join(rates)}.",
    ]


def _gpu(machine: Document) -> str:
    """Return the GPU's name and what its figures depend on: driver, clocks, precision, rates."""
    if not machine["gpu"]:
        return "none"
    words = [machine["gpu"]]
    for name, value in machine.get("cuda", {}).items():
        inner = ", ".join(f"{part} {what}" for part, what in value.items()) if isinstance(value, dict) else value
        words.append(f"{name.replace('_', ' ')} {inner}")
    return ", ".join(words)


def model_name(model: Document) -> str:
    """Return a model's name and what is known of its network."""
    known = [str(model["network"])] if model.get("network") else []
    known += [f"width {model['width']:g}"] if model.get("width") else []
    known += [f"{model['parameters']:,} parameters"] if "parameters" in model else []
    return f"`{model['name']}`" + (f" ({', '.join(known)})" if known else "")


def short(value: float) -> str:
    """Format a time with about three digits."""
    digits = 0 if value >= 200 else 1 if value >= 5 else 2
    return f"{value:,.{digits}f}"


def digits(value: float) -> str:
    """Format a number with three digits, an integer with all."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


FORMATS: Mapping[str, Callable[[Any], str]] = {
    "short": short,
    "digits": digits,
    "mark": lambda unstable: " *unstable*" if unstable else "",
    "yes": lambda true: "yes" if true else "no",
}


def with_ratio(row: Document) -> str:
    """Return a narrow summary and, in bold, its ratio to the first of its kind, which has none itself."""
    return text(NARROW if row["ratio"] == 1 else NARROW + ", **{ratio:.2f}**", row)


def list_of_rows(document: Document) -> list[str]:
    """Render a document that is a list of rows, with its model."""
    model = [f"{model_name(document['model'])}.", ""] if "model" in document else []
    command = [f"Repeat it with `{shown(document['command'])}`.", ""] if "command" in document else []
    return [*model, *command, *by_phase(document["rows"])]


def by_phase(rows: Sequence[Document]) -> list[str]:
    """Render a table per phase of the rows, milliseconds: warm runs, first requests of a shape, cold starts."""
    lines = []
    for phase in dict.fromkeys((*PHASES, *(row.get("phase") for row in rows))):
        own = [{**row, "phase": None} for row in rows if row.get("phase") == phase]
        if own:
            title = f"{PHASES[phase]}, milliseconds:" if phase in PHASES else "Milliseconds:"
            lines += [title, "", *_of_any_kind(own), ""]
    return lines[:-1]


def _of_any_kind(rows: list[Document]) -> list[str]:
    """Render identifying texts, summary and other figures; missing rows come last, with their sizes joined."""
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
