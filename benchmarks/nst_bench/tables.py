"""What the tables of all suites have in common: summaries, rows of any kind, the lines of a machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nst_bench.results import identity
from nst_bench.suite import Document

HEAD = ("p50", "p95", "p99", "spread", "n")
"""Columns of a summary; `cells` fills them."""

PHASES = {"steady": "Warm runs", "first of a shape": "First images of new shapes", "cold": "Cold starts"}

TITLES = {
    "gflop": "GFLOP",
    "share_of_matrix_rate": "of the matrix rate",
    "share_of_bandwidth": "of the bandwidth",
    "peak_mib": "peak MiB",
    "image_seconds": "an image, s",
    "ratio": "times",
}

SUMMARY = ("n", "median", "p95", "p99", "minimum", "maximum", "spread", "unstable", "samples")


def machine_lines(document: Document) -> list[str]:
    """Processor, memory, GPU, system, versions, and the rates that bound all figures."""
    machine = document["machine"]
    rates = [f"2048x2048 matrix product at {machine['matrix_product_gflops']:g} GFLOP/s"]
    rates += [f"memory copied at {machine['memory_gbs']:g} GB/s"] if "memory_gbs" in machine else []
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; GPU: {_gpu(machine)}.",
        f"{machine['system']}; " + ", ".join(f"{name} {value}" for name, value in machine["versions"].items()) + "; "
        f"{', '.join(rates)}.",
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


def milliseconds(value: float) -> str:
    """With three digits or so."""
    digits = 0 if value >= 200 else 1 if value >= 5 else 2
    return f"{value:,.{digits}f}"


def seconds(value: float) -> str:
    """Whole seconds, or with two decimals where there are few."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def cells(row: Document, digits: int | None = None) -> list[str]:
    """What stands under `HEAD`, milliseconds; a missing row has its reason instead.

    Older documents have no p99 and no spread.
    """
    if "missing" in row:
        return [f"*{row['missing']}*", *[""] * (len(HEAD) - 1)]

    def shown(value: float) -> str:
        return milliseconds(value) if digits is None else f"{value:.{digits}f}"

    return [
        shown(row["median"]) + mark(row),
        shown(row["p95"]),
        shown(row["p99"]) if "p99" in row else "",
        f"{row['spread']:.0%}" if "spread" in row else "",
        str(row["n"]),
    ]


def narrow(row: Document, digits: int = 0) -> str:
    """`median (p95)` for tables without room for more."""
    return f"{row['median']:.{digits}f} ({row['p95']:.{digits}f}){mark(row)}"


def mark(row: Document) -> str:
    """Of a figure that did not settle."""
    return " *unstable*" if row["unstable"] else ""


def line(cells: Iterable[str]) -> str:
    """A line of a table; what is in a cell cannot end it."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"


def table(head: Sequence[str], body: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table whose first `left` columns are words and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return [line(head), f"| {' | '.join(rule)} |", *map(line, body)]


def model_name(model: Document) -> str:
    """A model, and what is known of its network."""
    known = [str(model["network"])] if model.get("network") else []
    known += [f"width {model['width']:g}"] if model.get("width") else []
    known += [f"{model['parameters']:,} parameters"] if "parameters" in model else []
    return f"`{model['name']}`" + (f" ({', '.join(known)})" if known else "")


def list_of_rows(document: Document) -> list[str]:
    """The tables of a document that is a list of rows, and its model."""
    model = [f"{model_name(document['model'])}.", ""] if "model" in document else []
    command = [f"Again: `{document['command']}`.", ""] if "command" in document else []
    return [*model, *command, *by_phase(document["rows"])]


def by_phase(rows: Sequence[Document]) -> list[str]:
    """A table for each phase that the rows have, milliseconds: warm runs, first images of a shape, cold starts."""
    lines = []
    for phase in dict.fromkeys((*PHASES, *(row.get("phase") for row in rows))):
        own = [row for row in rows if row.get("phase") == phase]
        if own:
            title = f"{PHASES[phase]}, milliseconds:" if phase in PHASES else "Milliseconds:"
            lines += [title, "", *_rows([{k: v for k, v in row.items() if k != "phase"} for row in own]), ""]
    return lines[:-1]


def _rows(rows: list[Document]) -> list[str]:
    """What says which row it is, its summary, and its other figures; at the end what is missing, sizes together."""
    measured = [row for row in rows if "missing" not in row]
    missing: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for row in rows:
        if "missing" in row:
            words = ({**identity(row), "missing": row["missing"]}).items()
            rest = tuple(pair for pair in words if pair[0] != "size")
            missing.setdefault(rest, []).extend(word for name, word in words if name == "size")
    names = list(dict.fromkeys(name for row in rows for name in identity(row)))
    names += ["version"] if any("version" in row for row in rows) else []
    others = list(dict.fromkeys(name for row in measured for name, value in row.items() if _other(name, value)))
    body = [
        [
            *({**identity(row), "version": str(row.get("version") or "")}.get(name, "") for name in names),
            *cells(row),
            *(number(row.get(name), share=name.startswith("share_")) for name in others),
        ]
        for row in measured
    ]
    for rest, sizes in missing.items():
        known = {**dict(rest), "size": ", ".join(sizes)}
        body.append([*(known.get(name, "") for name in names), *cells(known), *[""] * len(others)])
    titles = [TITLES.get(name, name.replace("_", " ")) for name in others]
    return table([*(name.replace("_", " ") for name in names), *HEAD, *titles], body, left=len(names))


def _other(name: str, value: Any) -> bool:
    """A number that is neither of the summary nor says which row it is."""
    known = name in (*SUMMARY, "height", "width") or name in identity({name: value})
    return not known and isinstance(value, int | float)


def number(value: float | None, *, share: bool = False) -> str:
    """With three digits; a share in per cent."""
    if value is None:
        return ""
    if share:
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
