"""Reports, drawn from results documents alone, so that any of them can be drawn again.

`report.md` is the report; `report.html` has the same text as one self-contained page with the plots inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from nst_bench import results
from nst_bench.drawing import speedup
from nst_bench.drawing.html import html
from nst_bench.drawing.tables import NARROW, grid, machine_lines, text
from nst_bench.drawing.words import shown
from nst_bench.results import Row, machine_name, measured, suite_of, suites
from nst_bench.suite import Document, Plot, load, names
from nst_core.errors import InputError
from nst_core.files import atomic_write

DRAW_OTHERS = {"latency", "soak"}
"""Suites whose plots also draw the results of other suites: `serving` and `gatys`."""


def title(suite: str) -> str:
    """Return the title of a suite, such as `Serving`, or `Serving, gallery` for a further checkpoint."""
    name, comma, model = suite.partition(", ")
    return f"{load(name).title if name in names() else name}{comma}{model}"


def headline(document: Document) -> str:
    """Return the speed-up in a run's or a speed-up's document as a sentence."""
    return speedup.headline(suites(document)["speedup"])


def one_table(document: Document) -> str:
    """Return the main table of a run's or a speed-up's document: serving against the optimisation."""
    found = suites(document).get("speedup", {"missing": "not in this document"})
    if "missing" in found:
        return f"The speed-up over Gatys' optimisation was not measured: {found['missing']}.\n"
    return "\n".join([*speedup.summary_table(found), ""])


def markdown(document: Document, *, machine: bool = True) -> str:
    """Render a suite's or a run's document as Markdown, with or without its machine.

    The text ends with a newline.
    """
    lines = [*machine_lines(document), ""] if machine else []
    if suite_of(document) == "run":
        return "\n".join([*lines, one_table(document), _suites(document)])
    lines += load(suite_of(document)).tables(document)
    lines += ["", f"Incomplete: {document['stopped']}."] if "stopped" in document else []
    return "\n".join([*lines, ""])


def _suites(document: Document) -> str:
    """Render every suite's tables under its title; for a suite that failed, the reason."""
    blocks = []
    for name, own in suites(document).items():
        shown = f"Not measured: {own['missing']}.\n" if "missing" in own else markdown(own, machine=False)
        blocks.append(f"## {title(name)}\n\n{shown}")
    return "\n".join(blocks)


def side_by_side(documents: Sequence[Document]) -> str:
    """Render every row of the documents, with one column per document: median (95th percentile)."""
    columns = [results.rows(document) for document in documents]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    about = [(machine_name(own), own.get("model", {}).get("name"), own["date"]) for own in documents]
    head = ["", *(", ".join(filter(None, words)) for words in about)]
    blocks = []
    for suite in dict.fromkeys(key[0] for key in keys):
        own = [key for key in keys if key[0] == suite and len(key) > 1]
        body = [[" / ".join(map(shown, key[1:])), *(_figure(column.get(key)) for column in columns)] for key in own]
        if body:
            blocks += [f"## {title(suite)}", "\n".join(grid(head, body))]
    return "\n\n".join(blocks) + "\n"


def _figure(row: Row | None) -> str:
    if row is None or row.median is None:
        return f"*{row.missing}*" if row and row.missing else ""
    return text("{median:.2f}{unstable:mark}" if row.rate or row.p95 is None else NARROW, vars(row))


def plots(document: Document) -> list[Plot]:
    """Draw the plots that the document has figures for."""
    own, machine = measured(document), machine_name(document)
    known = ({name.partition(", ")[0] for name in own} & set(names())) | DRAW_OTHERS
    drawn = (draw(own, machine) for name in sorted(known) for draw in load(name).plots)
    return [plot for plot in drawn if plot]


def write(documents: Sequence[Document], folder: Path) -> Path:
    """Write `report.md`, `report.html` and the plots to `folder`, and return the path of `report.md`.

    Several documents are shown side by side.
    """
    several = len(documents) > 1
    drawn = [(plot, number) for number, document in enumerate(documents, 1) for plot in plots(document)]
    drawn.sort(key=lambda pair: pair[0].name)  # the same plot of every machine, beside each other
    files = {f"{plot.name}-{number}.png" if several else f"{plot.name}.png": plot for plot, number in drawn}
    if several:
        heading = f"nst bench, {len(documents)} results side by side"
        machines = "\n".join(f"- {' '.join(machine_lines(document))}" for document in documents)
        what = "Median (95th percentile) in milliseconds, unless another unit is given:"
        first = [machines, what, side_by_side(documents)]
        details = [f"# {_name(document)}\n\n{_suites(document)}" for document in documents]
    else:
        (document,) = documents
        heading = f"nst bench, {_name(document)}"
        first = ["\n".join(machine_lines(document))]
        first += [one_table(document)] if "speedup" in suites(document) else []
        details = [_suites(document)]
    images = "\n".join(f"![{plot.alt}]({name})" for name, plot in files.items())
    blocks = [f"# {heading}", *first, images, *details]
    whole = "\n\n".join(block.strip("\n") for block in blocks if block.strip()) + "\n"
    written = {name: plot.png for name, plot in files.items()}
    written |= {"report.html": html(heading, whole, written).encode(), "report.md": whole.encode()}
    for name, content in written.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / "report.md"


def _name(document: Document) -> str:
    return f"{machine_name(document)}, {document['date']}"


def inject(documents: Sequence[Document], page: Path) -> None:
    """Fill a page's blocks with the tables of each suite; several documents follow each other.

    The block of a suite is `nst-bench-<suite> <model>`, or `nst-bench-<suite>` if the page has none for the model.
    The block of its phrase is `nst-bench-<suite> in words`, and that of the speed-up of all devices in one small table
    is `nst-bench-headline`.
    """
    before, blocks = page.read_text(), dict[str, Callable[[], str]]()
    tables: dict[str, list[Document]] = {}
    for own in (own for document in documents for own in measured(document).values()):
        block = f"nst-bench-{suite_of(own)}"
        of_model = f"{block} {own.get('model', {}).get('name')}"
        tables.setdefault(of_model if _marks(of_model)[0] in before else block, []).append(own)
        if _marks(f"{block} in words")[0] in before and (in_words := load(suite_of(own)).in_words):
            blocks.setdefault(f"{block} in words", partial(in_words, own))
    if _marks(speedup.HEADLINE)[0] in before:
        blocks[speedup.HEADLINE] = partial(headline_table, documents)
    fill(page, blocks | {block: partial(_below_each_other, several) for block, several in tables.items()})


def headline_table(documents: Sequence[Document]) -> str:
    """Render the speed-up at equal loss in all documents that have it, as one small table."""
    found = [own["speedup"] for own in map(measured, documents) if "speedup" in own]
    return "\n".join([*speedup.headline_table(found), ""])


def _below_each_other(documents: Sequence[Document]) -> str:
    return "\n".join(map(markdown, documents))


def fill(page: Path, blocks: Mapping[str, Callable[[], str]]) -> None:
    """Replace the text between the marks of each block on a page, such as `<!-- nst-bench-cold: begin -->`.

    Blocks without marks on the page are skipped. Raises `InputError` if it has none at all.
    """
    whole, filled = page.read_text(), False
    for name, block in blocks.items():
        if found := re.search(r"{}\n?(.*?){}".format(*map(re.escape, _marks(name))), whole, re.DOTALL):
            whole, filled = whole[: found.start(1)] + block() + whole[found.end(1) :], True
    if not filled:
        wanted = ", or ".join(" and ".join(_marks(name)) for name in blocks)
        raise InputError(f"{page}: no marks to insert tables between; add the lines {wanted}")
    with atomic_write(page) as temporary:
        temporary.write_text(whole)


def _marks(block: str) -> tuple[str, str]:
    return f"<!-- {block}: begin -->", f"<!-- {block}: end -->"
