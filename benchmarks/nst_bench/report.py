"""Reports drawn from results documents alone; any of them can be drawn again.

`report.md` is the report; `report.html` is the same text as a page that needs nothing else, its plots inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nst_bench import page, results
from nst_bench.plots import Plot
from nst_bench.results import Row, machine_name, measured, suite_of, suites
from nst_bench.suite import Document, load, names
from nst_bench.suites.drawing import speedup
from nst_bench.tables import machine_lines, milliseconds, table
from nst_core.errors import InputError
from nst_core.files import atomic_write

DRAW_OTHERS = {"latency", "soak"}
"""Suites whose plots also draw what other suites measured: `serving` and `gatys`."""


def title(suite: str) -> str:
    """A suite's, such as `Serving`; of a further checkpoint, `Serving, gallery`."""
    name, comma, model = suite.partition(", ")
    return f"{load(name).title if name in names() else name}{comma}{model}"


def tables(document: Document, *, machine: bool = True, beside: Sequence[Document] = ()) -> str:
    """A suite's tables, ending with a new line; with the lines of the machine that it was measured on, or without.

    `beside` are documents of the same suite from machines with a GPU.
    """
    suite = load(suite_of(document))
    lines = [*machine_lines(document), ""] if machine else []
    if beside and suite.tables_beside:
        lines += suite.tables_beside(document, beside)
    else:
        lines += suite.tables(document)
        for other in beside:
            lines += ["", *machine_lines(other), "", *suite.tables(other)]
    stopped = ["", f"It ended before it was done: {document['stopped']}."] if "stopped" in document else []
    return "\n".join([*lines, *stopped, ""])


def plots(document: Document) -> list[Plot]:
    """Those that the document has figures for."""
    own, machine = measured(document), machine_name(document)
    known = ({name.partition(", ")[0] for name in own} & set(names())) | DRAW_OTHERS
    drawn = (draw(own, machine) for name in sorted(known) for draw in load(name).plots)
    return [plot for plot in drawn if plot]


def markdown(document: Document, beside: Sequence[Document] = ()) -> str:
    """The tables and the sentences that say what they mean, for a suite's document or a run's.

    With a suite's the same suite of `beside`, documents from machines with a GPU.
    """
    if suite_of(document) == "run":
        return "\n".join([*machine_lines(document), "", one_table(document), _suites(document)])
    same = [own for other in beside for own in measured(other).values() if own["schema"] == document["schema"]]
    return tables(document, beside=same[: len(beside)])


def write(documents: Sequence[Document], folder: Path) -> Path:
    """`report.md`, `report.html` and the plots in `folder`; returns the report's path. Several stand side by side."""
    files = [
        (plot.name if len(documents) == 1 else f"{plot.name}-{number}", plot)
        for number, document in enumerate(documents, 1)
        for plot in plots(document)
    ]
    files.sort(key=lambda pair: pair[1].name)  # the same plot of every machine, beside each other
    if len(documents) == 1:
        heading = f"nst-bench, {machine_name(documents[0])}, {documents[0]['date']}"
    else:
        heading = f"nst-bench, {len(documents)} results side by side"
    images = "\n".join(f"![{plot.alt}]({name}.png)" for name, plot in files)
    blocks = [f"# {heading}", *_first(documents), images, *_details(documents)]
    text = "\n\n".join(block.strip("\n") for block in blocks if block.strip()) + "\n"
    for name, plot in files:
        with atomic_write(folder / f"{name}.png") as temporary:
            temporary.write_bytes(plot.png)
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(page.html(heading, text, {f"{name}.png": plot.png for name, plot in files}))
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(text)
    return folder / "report.md"


def markers(document: Document, text: str) -> tuple[str, str]:
    """The lines of a page between which this suite's tables stand; those of the document's model if it has some."""
    suite = f"nst-bench-{suite_of(document)}"
    own = f"{suite} {document.get('model', {}).get('name')}"
    name = own if f"<!-- {own}: begin -->" in text else suite
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def inject(document: Document, readme: Path, beside: Sequence[Document] = ()) -> None:
    """Replace what stands between the `markers` in `readme` by the document's tables; a run's suites, those it has.

    Suites that only `beside` has, documents from machines with a GPU, have their own tables.
    """
    text = readme.read_text()
    own = list(measured(document).values())
    known = {suite["schema"] for suite in own}
    others = [suite for other in beside for suite in measured(other).values() if suite["schema"] not in known]
    text, in_words = _with_words([*own, *others], readme, text)
    found = [suite for suite in (*own, *others) if all(mark in text for mark in markers(suite, text))]
    if not found and not in_words:
        wanted = ", or ".join(" and ".join(markers(suite, text)) for suite in (*own, *others))
        raise InputError(f"{readme}: lacks the lines {wanted}")
    for suite in found:
        shown = markdown(suite, beside if suite["schema"] in known else ())
        text = between(readme, text, markers(suite, text), shown)
    with atomic_write(readme) as temporary:
        temporary.write_text(text)


def _with_words(documents: Sequence[Document], page: Path, text: str) -> tuple[str, bool]:
    """`text` with what a suite says in words where the page asks for it, and whether it does."""
    found = False
    for document in documents:
        name = suite_of(document)
        begin, end = (f"<!-- nst-bench-{name} in words: {edge} -->" for edge in ("begin", "end"))
        if begin in text and (in_words := load(name).in_words):
            text, found = between(page, text, (begin, end), in_words(document), line=""), True
    return text, found


def between(page: Path, text: str, marks: tuple[str, str], block: str, *, line: str = "\n") -> str:
    """`text`, which is that of `page`, with `block` between its `marks`; `InputError` if it lacks a mark.

    A block of lines begins on a `line` of its own.
    """
    begin, end = marks
    if begin not in text or end not in text.split(begin, 1)[1]:
        raise InputError(f"{page}: lacks the lines {begin} and {end}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}{line}{block}{end}{rest.split(end, 1)[1]}"


def one_table(document: Document) -> str:
    """The table that matters, of a run's or a speed-up's document: a served image, and what it replaces."""
    found = suites(document).get("speedup", {"missing": "not in this document"})
    if "missing" in found:
        return f"The served network against the optimisation was not measured: {found['missing']}.\n"
    return "\n".join([*speedup.summary_table(found), ""])


def headline(document: Document) -> str:
    """The speed-up of a run's or a speed-up's document in a sentence."""
    return speedup.headline(suites(document)["speedup"])


def side_by_side(documents: Sequence[Document]) -> str:
    """Every row that one of the documents has, a column each: median (95th percentile), milliseconds or a second."""
    columns = [results.rows(document) for document in documents]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    blocks = []
    for suite in dict.fromkeys(key[0] for key in keys):
        own = [key for key in keys if key[0] == suite and len(key) > 1]
        body = [[" / ".join(key[1:]), *(_figure(column.get(key)) for column in columns)] for key in own]
        if body:
            blocks += [f"## {title(suite)}", "\n".join(table(["", *map(_column, documents)], body))]
    return "\n\n".join(blocks) + "\n"


def _column(document: Document) -> str:
    model = document.get("model", {}).get("name")
    return ", ".join(part for part in (machine_name(document), model, document["date"]) if part)


def _figure(row: Row | None) -> str:
    if row is None or row.median is None:
        return f"*{row.missing}*" if row and row.missing else ""
    mark = " *unstable*" if row.unstable else ""
    if row.rate or row.p95 is None:
        return f"{row.median:.2f}{mark}"
    return f"{milliseconds(row.median)} ({milliseconds(row.p95)}){mark}"


def _first(documents: Sequence[Document]) -> list[str]:
    """What is read first: the machine and the table that matters, or the machines side by side."""
    if len(documents) > 1:
        machines = [f"- {' '.join(machine_lines(document))}" for document in documents]
        what = "Median (95th percentile), milliseconds, where nothing else is said:"
        return ["\n".join(machines), what, side_by_side(documents)]
    machine = "\n".join(machine_lines(documents[0]))
    return [machine, one_table(documents[0])] if "speedup" in suites(documents[0]) else [machine]


def _details(documents: Sequence[Document]) -> list[str]:
    if len(documents) == 1:
        return [_suites(documents[0])]
    return [f"# {machine_name(document)}, {document['date']}\n\n{_suites(document)}" for document in documents]


def _suites(document: Document) -> str:
    """Every suite's tables under its title; the reason of a suite that failed."""
    blocks = []
    for name, own in suites(document).items():
        shown = f"Not measured: {own['missing']}.\n" if "missing" in own else tables(own, machine=False)
        blocks.append(f"## {title(name)}\n\n{shown}")
    return "\n".join(blocks)
