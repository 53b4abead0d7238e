"""Reports drawn from results documents alone; any of them can be drawn again.

`report.md` is the report; `report.html` is the same text as a page that needs nothing else, its plots inside.
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
from nst_bench.results import Row, machine_name, measured, suite_of, suites
from nst_bench.suite import Document, Plot, load, names
from nst_core.errors import InputError
from nst_core.files import atomic_write

DRAW_OTHERS = {"latency", "soak"}
"""Suites whose plots also draw what other suites measured: `serving` and `gatys`."""


def title(suite: str) -> str:
    """A suite's, such as `Serving`; of a further checkpoint, `Serving, gallery`."""
    name, comma, model = suite.partition(", ")
    return f"{load(name).title if name in names() else name}{comma}{model}"


def headline(document: Document) -> str:
    """The speed-up of a run's or a speed-up's document in a sentence."""
    return speedup.headline(suites(document)["speedup"])


def one_table(document: Document) -> str:
    """The table that matters, of a run's or a speed-up's document: a served image, and what it replaces."""
    found = suites(document).get("speedup", {"missing": "not in this document"})
    if "missing" in found:
        return f"The served network against the optimisation was not measured: {found['missing']}.\n"
    return "\n".join([*speedup.summary_table(found), ""])


def markdown(document: Document, *, machine: bool = True) -> str:
    """The tables and the sentences that say what they mean, for a suite's document or a run's.

    With the lines of the machine that it was measured on, or without; it ends with a new line.
    """
    lines = [*machine_lines(document), ""] if machine else []
    if suite_of(document) == "run":
        return "\n".join([*lines, one_table(document), _suites(document)])
    lines += load(suite_of(document)).tables(document)
    lines += ["", f"It ended before it was done: {document['stopped']}."] if "stopped" in document else []
    return "\n".join([*lines, ""])


def _suites(document: Document) -> str:
    """Every suite's tables under its title; the reason of a suite that failed."""
    blocks = []
    for name, own in suites(document).items():
        shown = f"Not measured: {own['missing']}.\n" if "missing" in own else markdown(own, machine=False)
        blocks.append(f"## {title(name)}\n\n{shown}")
    return "\n".join(blocks)


def side_by_side(documents: Sequence[Document]) -> str:
    """Every row that one of the documents has, a column each: median (95th percentile), milliseconds or a second."""
    columns = [results.rows(document) for document in documents]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    about = [(machine_name(own), own.get("model", {}).get("name"), own["date"]) for own in documents]
    head = ["", *(", ".join(filter(None, words)) for words in about)]
    blocks = []
    for suite in dict.fromkeys(key[0] for key in keys):
        own = [key for key in keys if key[0] == suite and len(key) > 1]
        body = [[" / ".join(key[1:]), *(_figure(column.get(key)) for column in columns)] for key in own]
        if body:
            blocks += [f"## {title(suite)}", "\n".join(grid(head, body))]
    return "\n\n".join(blocks) + "\n"


def _figure(row: Row | None) -> str:
    if row is None or row.median is None:
        return f"*{row.missing}*" if row and row.missing else ""
    return text("{median:.2f}{unstable:mark}" if row.rate or row.p95 is None else NARROW, vars(row))


def plots(document: Document) -> list[Plot]:
    """Those that the document has figures for."""
    own, machine = measured(document), machine_name(document)
    known = ({name.partition(", ")[0] for name in own} & set(names())) | DRAW_OTHERS
    drawn = (draw(own, machine) for name in sorted(known) for draw in load(name).plots)
    return [plot for plot in drawn if plot]


def write(documents: Sequence[Document], folder: Path) -> Path:
    """`report.md`, `report.html` and the plots in `folder`; returns the report's path. Several stand side by side."""
    several = len(documents) > 1
    drawn = [(plot, number) for number, document in enumerate(documents, 1) for plot in plots(document)]
    drawn.sort(key=lambda pair: pair[0].name)  # the same plot of every machine, beside each other
    files = {f"{plot.name}-{number}.png" if several else f"{plot.name}.png": plot for plot, number in drawn}
    if several:
        heading = f"nst-bench, {len(documents)} results side by side"
        machines = "\n".join(f"- {' '.join(machine_lines(document))}" for document in documents)
        what = "Median (95th percentile), milliseconds, where nothing else is said:"
        first = [machines, what, side_by_side(documents)]
        details = [f"# {_name(document)}\n\n{_suites(document)}" for document in documents]
    else:
        (document,) = documents
        heading = f"nst-bench, {_name(document)}"
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
    """Fill a page with the tables of each suite, those of several documents below each other.

    Their block is `nst-bench-<suite> <model>`, or `nst-bench-<suite>` if the page has none for the model. What a suite
    says in words is in `nst-bench-<suite> in words`.
    """
    before, blocks = page.read_text(), dict[str, Callable[[], str]]()
    tables: dict[str, list[Document]] = {}
    for own in (own for document in documents for own in measured(document).values()):
        block = f"nst-bench-{suite_of(own)}"
        of_model = f"{block} {own.get('model', {}).get('name')}"
        tables.setdefault(of_model if _marks(of_model)[0] in before else block, []).append(own)
        if _marks(f"{block} in words")[0] in before and (in_words := load(suite_of(own)).in_words):
            blocks.setdefault(f"{block} in words", partial(in_words, own))
    fill(page, blocks | {block: partial(_below_each_other, several) for block, several in tables.items()})


def _below_each_other(documents: Sequence[Document]) -> str:
    return "\n".join(map(markdown, documents))


def fill(page: Path, blocks: Mapping[str, Callable[[], str]]) -> None:
    """Replace what stands on a page between the marks of each block, such as `<!-- nst-bench-cold: begin -->`.

    Blocks that the page has no marks for are not drawn; `InputError` if it has none at all.
    """
    whole, filled = page.read_text(), False
    for name, block in blocks.items():
        if found := re.search(r"{}\n?(.*?){}".format(*map(re.escape, _marks(name))), whole, re.DOTALL):
            whole, filled = whole[: found.start(1)] + block() + whole[found.end(1) :], True
    if not filled:
        wanted = ", or ".join(" and ".join(_marks(name)) for name in blocks)
        raise InputError(f"{page}: lacks the lines {wanted}")
    with atomic_write(page) as temporary:
        temporary.write_text(whole)


def _marks(block: str) -> tuple[str, str]:
    return f"<!-- {block}: begin -->", f"<!-- {block}: end -->"
