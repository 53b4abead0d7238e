"""Reports drawn from results documents alone; any of them can be drawn again.

`report.md` is the report; `report.html` is the same text as a page that needs nothing else, its plots inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nst_bench import page, plots, results, tables
from nst_bench.results import RUN, Document, Row, machine_name, suites
from nst_bench.results import read as read
from nst_core.errors import InputError
from nst_core.files import atomic_write

TITLES = {
    "latency": "Latency by size",
    "serving": "Serving",
    "gatys": "The optimisation",
    "speedup": "The served network against the optimisation",
    "styles": "Several styles in one model",
    "cold": "Cold starts",
    "soak": "Memory of serving",
    "quality": "What the network is worth",
    "frontier": "Quality over time",
    "methods": "Methods",
    "peers": "Peers",
    "video": "Video",
    "training": "Training",
    "export": "Export",
    "energy": "Energy",
    "perf-analyzer": "NVIDIA's perf_analyzer",
}


def title(suite: str) -> str:
    """A suite's, such as `Serving`; of a further checkpoint, `Serving, gallery`."""
    name, comma, model = suite.partition(", ")
    return f"{TITLES.get(name, name)}{comma}{model}"


def markers(document: Document, page: str) -> tuple[str, str]:
    """The lines of a page between which this suite's tables stand; those of the document's model if it has some."""
    suite = document["schema"]
    own = f"{suite} {document.get('model', {}).get('name')}"
    name = own if f"<!-- {own}: begin -->" in page else suite
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def markdown(document: Document, beside: Sequence[Document] = ()) -> str:
    """The tables and the sentences that say what they mean, for a suite's document or a run's.

    With a suite's the same suite of `beside`, documents from machines with a GPU.
    """
    if document["schema"] == RUN:
        return _run(document)
    return tables.tables(document, beside=[one for other in beside for one in _same(document, other)])


def _same(document: Document, other: Document) -> list[Document]:
    """The suite of `document` in another one, if it was measured there."""
    return [one for one in suites(other).values() if "missing" not in one and one["schema"] == document["schema"]][:1]


def write(documents: Sequence[Document], folder: Path) -> Path:
    """`report.md`, `report.html` and the plots in `folder`; returns the report's path. Several stand side by side."""
    files = [
        (plot.name if len(documents) == 1 else f"{plot.name}-{number}", plot)
        for number, document in enumerate(documents, 1)
        for plot in plots.plots(document)
    ]
    files.sort(key=lambda pair: pair[1].name)  # the same plot of every machine, beside each other
    if len(documents) == 1:
        title = f"nst-bench, {machine_name(documents[0])}, {documents[0]['date']}"
    else:
        title = f"nst-bench, {len(documents)} results side by side"
    images = "\n".join(f"![{plot.alt}]({name}.png)" for name, plot in files)
    blocks = [f"# {title}", *_first(documents), images, *_details(documents)]
    text = "\n\n".join(block.strip("\n") for block in blocks if block.strip()) + "\n"
    for name, plot in files:
        with atomic_write(folder / f"{name}.png") as beside:
            beside.write_bytes(plot.png)
    with atomic_write(folder / "report.html") as beside:
        beside.write_text(page.html(title, text, {f"{name}.png": plot.png for name, plot in files}))
    report = folder / "report.md"
    with atomic_write(report) as beside:
        beside.write_text(text)
    return report


def inject(document: Document, readme: Path, beside: Sequence[Document] = ()) -> None:
    """Replace what stands between the `markers` in `readme` by the document's tables; a run's suites, those it has.

    Suites that only `beside` has, documents from machines with a GPU, have their own tables.
    """
    text = readme.read_text()
    measured = [one for one in suites(document).values() if "missing" not in one]
    known = {one["schema"] for one in measured}
    measured += [
        one for other in beside for one in suites(other).values() if "missing" not in one and one["schema"] not in known
    ]
    text, said = _with_words(measured, readme, text)
    found = [one for one in measured if all(mark in text for mark in markers(one, text))]
    if not found and not said:
        wanted = ", or ".join(" and ".join(markers(one, text)) for one in measured)
        raise InputError(f"{readme}: lacks the lines {wanted}")
    for one in found:
        shown = markdown(one, beside) if one["schema"] in known else markdown(one)
        text = between(readme, text, markers(one, text), shown)
    with atomic_write(readme) as beside_it:
        beside_it.write_text(text)


def _with_words(measured: Sequence[Document], page: Path, text: str) -> tuple[str, bool]:
    """`text` with what a suite says in words where the page asks for it, and whether it does."""
    said = False
    for one in measured:
        begin, end = (f"<!-- {one['schema']} in words: {edge} -->" for edge in ("begin", "end"))
        if one["schema"] in tables.WORDS and begin in text:
            text, said = between(page, text, (begin, end), tables.WORDS[one["schema"]](one), line=""), True
    return text, said


def between(page: Path, text: str, marks: tuple[str, str], block: str, *, line: str = "\n") -> str:
    """`text`, which is that of `page`, with `block` between its `marks`; `InputError` if it lacks one.

    A block of lines begins on a `line` of its own.
    """
    begin, end = marks
    if begin not in text or end not in text.split(begin, 1)[1]:
        raise InputError(f"{page}: lacks the lines {begin} and {end}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}{line}{block}{end}{rest.split(end, 1)[1]}"


def headline(document: Document) -> str:
    """The one sentence of a document with the speed-up: the largest size, the most iterations, over gRPC."""
    every = suites(document)["speedup"]["speedup"]
    last = [one for one in every if one["served"] == every[0]["served"]][-1]
    return (
        f"at {last['size']}x{last['size']} a served picture takes {last['served_ms']:.0f} ms; Gatys' "
        f"{last['iterations']} iterations take {last['gatys_seconds']:.0f} s: {last['ratio']:,.0f} times as long"
    )


def side_by_side(documents: Sequence[Document]) -> str:
    """Every row that one of them has, a column a document: median (95th percentile), milliseconds or a second."""
    columns = [results.rows(document) for document in documents]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    head = ["", *map(_column, documents)]
    blocks = []
    for suite in dict.fromkeys(key[0] for key in keys):
        own = [key for key in keys if key[0] == suite and len(key) > 1]
        body = [[" / ".join(key[1:]), *(_figure(column.get(key)) for column in columns)] for key in own]
        if body:
            blocks += [f"## {title(suite)}", "\n".join(tables.table(head, body))]
    return "\n\n".join(blocks) + "\n"


def one_table(document: Document) -> str:
    """The table that matters, of a run's or a speed-up's document: a served picture, and what it replaces."""
    speedup = suites(document).get("speedup", {"missing": "not in this document"})
    if "missing" in speedup:
        return f"The served network against the optimisation was not measured: {speedup['missing']}.\n"
    warm = {(one["engine"], one["size"]): one for one in speedup["rows"] if one["phase"] == "steady"}
    body = []
    served = speedup["speedup"][0]["served"]
    for size, engine in {one["size"]: served for one in speedup["speedup"]}.items():
        median, *others = tables.cells(warm[engine, size])
        for number, (what, one) in enumerate(_replaced(speedup, size)):
            times = f"**{one['ratio']:,.0f}**"
            shown = [median, times, *others] if number == 0 else ["", times, *[""] * len(others)]
            body.append([f"{size}²", what, f"{one['gatys_seconds']:,.0f} s", *shown])
    head = ["size", "Gatys' optimisation", "takes", "a served picture, ms: p50", "times", *tables.HEAD[1:]]
    missing: dict[str, list[str]] = {}
    for one in speedup["equal_loss"]:
        if "missing" in one:
            missing.setdefault(one["missing"], []).append(f"{one['size']}²")
    why = "; ".join(f"{', '.join(sizes)}: {reason}" for reason, sizes in missing.items())
    reasons = ["", *_by_memory(speedup)] if len({one["served"] for one in speedup["speedup"]}) > 1 else []
    reasons += ["", f"Not compared at equal loss, {why}."] if why else []
    return "\n".join([*tables.table(head, body, left=2), *reasons, ""])


def _replaced(speedup: Document, size: int) -> list[tuple[str, Document]]:
    """What a picture of `size` replaces: the iterations to its loss, and those of Johnson et al.'s table 1."""
    equal = [one for one in speedup["equal_loss"] if one["size"] == size and "missing" not in one]
    served = speedup["speedup"][0]["served"]
    fixed = [one for one in speedup["speedup"] if (one["size"], one["served"]) == (size, served)]
    rows = [(f"{one['iterations']} iterations", one) for one in fixed]
    if equal:
        equal.sort(key=lambda one: float(one["ratio"]))
        middle = equal[len(equal) // 2]
        of = f" (of {len(equal)} photographs)" if len(equal) > 1 else ""
        rows.insert(0, (f"same loss: {middle['iteration']} iterations{of}", middle))
    return rows


def _by_memory(speedup: Document) -> list[str]:
    """The same by shared memory, of the most iterations."""
    last = speedup["speedup"][-1]
    own = [one for one in speedup["speedup"] if one["served"] == last["served"]]
    most = [one for one in own if one["iterations"] == last["iterations"]]
    said = ", ".join(
        f"{tables.milliseconds(one['served_ms'])} ms at {one['size']}², **{one['ratio']:,.0f}** times" for one in most
    )
    return [f"By shared memory a picture takes {said} less than {last['iterations']} iterations."]


def _first(documents: Sequence[Document]) -> list[str]:
    """What is read first: the machine and the table that matters, or the machines side by side."""
    if len(documents) > 1:
        machines = [f"- {' '.join(tables.machine_lines(document))}" for document in documents]
        what = "Median (95th percentile), milliseconds, where nothing else is said:"
        return ["\n".join(machines), what, side_by_side(documents)]
    machine = "\n".join(tables.machine_lines(documents[0]))
    return [machine, one_table(documents[0])] if "speedup" in suites(documents[0]) else [machine]


def _details(documents: Sequence[Document]) -> list[str]:
    if len(documents) == 1:
        return [_suites(documents[0])]
    return [f"# {machine_name(document)}, {document['date']}\n\n{_suites(document)}" for document in documents]


def _run(document: Document) -> str:
    return "\n".join([*tables.machine_lines(document), "", one_table(document), _suites(document)])


def _suites(document: Document) -> str:
    """Every suite's tables under its title; one that failed has its reason."""
    blocks = []
    for name, one in suites(document).items():
        shown = f"Not measured: {one['missing']}.\n" if "missing" in one else tables.tables(one, machine=False)
        blocks.append(f"## {title(name)}\n\n{shown}")
    return "\n".join(blocks)


def _column(document: Document) -> str:
    model = document.get("model", {}).get("name")
    return ", ".join(part for part in (machine_name(document), model, document["date"]) if part)


def _figure(one: Row | None) -> str:
    if one is None or one.median is None:
        return f"*{one.missing}*" if one and one.missing else ""
    mark = " *unstable*" if one.unstable else ""
    if one.rate or one.p95 is None:
        return f"{one.median:.2f}{mark}"
    return f"{tables.milliseconds(one.median)} ({tables.milliseconds(one.p95)}){mark}"
