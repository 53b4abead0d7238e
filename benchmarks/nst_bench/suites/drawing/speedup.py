"""How the results of `speedup` are shown, alone, beside those of GPUs, and as the table that a report begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nst_bench import plots
from nst_bench.plots import Plot, decades, figure
from nst_bench.suite import Document
from nst_bench.tables import HEAD, cells, machine_lines, milliseconds, model_name, narrow, seconds, table

GATYS = "Gatys, one iteration"
"""The engine of the rows that are no images."""

ITERATIONS = (100, 300, 500)
"""Johnson et al.'s table 1."""


def tables(document: Document) -> list[str]:
    """The served network against the optimisation."""
    return tables_beside(document, [])


def tables_beside(document: Document, beside: Sequence[Document]) -> list[str]:
    """The same, with a column for each of the documents of GPUs, and their speed-ups below."""
    rows, warm = document["rows"], _warm(document)
    columns = [_warm(other) for other in beside]
    first = {(row["engine"], row["size"]): row for row in rows if row["phase"] == "first of a shape"}
    body = []
    for at in dict.fromkeys((*warm, *(at for column in columns for at in column))):
        shown = cells(warm[at]) if at in warm else [""] * len(HEAD)
        others = [cells(column[at])[0] if at in column else "" for column in columns]
        body.append([f"{at[1]}²", at[0], *shown, narrow(first[at]) if at in first else "", *others])
    body.sort(key=lambda line: int(line[0].removesuffix("²")))
    head = ["size", "engine", *HEAD, "first of a shape", *(f"p50 on {_gpu_name(other)}" for other in beside)]
    both_on_gpu = document.get("device") == "GPU"
    return [
        *(line for other in beside for line in ("and", *machine_lines(other), "")),
        f"{model_name(document['model'])}.",
        "",
        "Milliseconds of warm runs, and of the first images of new shapes (95th percentile):",
        "",
        *table(head, body, left=2),
        "",
        "Cold starts, once each:",
        "",
        *(f"- {row['engine']}: {row['median'] / 1000:.1f} s" for row in rows if row["phase"] == "cold"),
        "",
        "The optimisation's time is its median iteration times the number of iterations; the ratio is to an image "
        "over gRPC, network and server included."
        + (" Both on the GPU, the optimisation in PyTorch's precision." if both_on_gpu else ""),
        "",
        *_ratios(document),
        *(line for other in beside for line in _ratios_beside(other)),
    ]


def _warm(document: Document) -> dict[tuple[str, int], Document]:
    return {(row["engine"], row["size"]): row for row in document["rows"] if row["phase"] == "steady"}


def _gpu_name(document: Document) -> str:
    return str(document["machine"]["gpu"])


def _ratios_beside(document: Document) -> list[str]:
    where = f"On {_gpu_name(document)}, the network and the optimisation on the GPU:"
    return ["", where, "", *_ratios(document)]


def _ratios(document: Document) -> list[str]:
    return [*_fixed_iterations(document["speedup"]), *_equal_loss(document["equal_loss"])]


def _fixed_iterations(speedups: list[Document]) -> list[str]:
    """Johnson et al.'s table 1; where images went by shared memory too, these ratios as well."""
    sizes = sorted({row["size"] for row in speedups})
    ways = list(dict.fromkeys(row["served"] for row in speedups))
    named = {way: "" if way == ways[0] else f", {way.removeprefix('Triton, ')}" for way in ways}
    head = ["", *(f"{size}²: seconds" for size in sizes)]
    head += [f"{size}²: times slower{named[way]}" for way in ways for size in sizes]
    body = []
    for iterations in dict.fromkeys(row["iterations"] for row in speedups):
        own = [row for row in speedups if row["iterations"] == iterations]
        times = [seconds(row["gatys_seconds"]) for row in own if row["served"] == ways[0]]
        body.append([f"Gatys, {iterations} iterations", *times, *(f"**{row['ratio']:,.0f}**" for row in own)])
    return table(head, body)


def _equal_loss(rows: list[Document]) -> list[str]:
    """The speed-up that counts: until the optimisation's loss is the network's."""
    if not rows:
        return []
    memory = any("shared_memory_ratio" in row for row in rows)
    body = []
    for row in rows:
        if "missing" in row:
            body.append([f"{row['size']}²", f"*{row['missing']}*", *[""] * (7 if memory else 5)])
            continue
        digits = 1 if row["gatys_seconds"] >= 5 else 2
        times = [f"{row['gatys_seconds']:.{digits}f} s", f"{milliseconds(row['served_ms'])} ms"]
        times.append(f"**{row['ratio']:,.0f}**")
        if memory:
            times += [f"{milliseconds(row['shared_memory_ms'])} ms", f"**{row['shared_memory_ratio']:,.0f}**"]
        body.append([f"{row['size']}²", row["photo"], f"{row['loss']:.3f}", str(row["iteration"]), *times])
    head = ["size", "photograph", "the network's loss", "iterations to it", "the optimisation", "served", "times"]
    head += ["by shared memory", "times"] if memory else []
    return ["", "At equal loss:", "", *table(head, body, left=2)]


def summary_table(document: Document) -> list[str]:
    """The table that matters: a served image, and what it replaces."""
    warm, served = _warm(document), document["speedup"][0]["served"]
    body = []
    for size in dict.fromkeys(row["size"] for row in document["speedup"]):
        median, *others = cells(warm[served, size])
        for number, (what, row) in enumerate(_replaced(document, size)):
            times = f"**{row['ratio']:,.0f}**"
            shown = [median, times, *others] if number == 0 else ["", times, *[""] * len(others)]
            body.append([f"{size}²", what, f"{row['gatys_seconds']:,.0f} s", *shown])
    head = ["size", "Gatys' optimisation", "takes", "a served image, ms: p50", "times", *HEAD[1:]]
    missing: dict[str, list[str]] = {}
    for row in document["equal_loss"]:
        if "missing" in row:
            missing.setdefault(row["missing"], []).append(f"{row['size']}²")
    why = "; ".join(f"{', '.join(sizes)}: {reason}" for reason, sizes in missing.items())
    lines = table(head, body, left=2)
    if len({row["served"] for row in document["speedup"]}) > 1:
        lines += ["", _by_shared_memory(document["speedup"])]
    return [*lines, *(["", f"Not compared at equal loss, {why}."] if why else [])]


def headline(document: Document) -> str:
    """The largest size and the most iterations, over gRPC, in a sentence."""
    every = document["speedup"]
    last = [row for row in every if row["served"] == every[0]["served"]][-1]
    return (
        f"at {last['size']}x{last['size']} a served image takes {last['served_ms']:.0f} ms; Gatys' "
        f"{last['iterations']} iterations take {last['gatys_seconds']:.0f} s: {last['ratio']:,.0f} times as long"
    )


def _replaced(document: Document, size: int) -> list[tuple[str, Document]]:
    """What an image of `size` replaces: the iterations to its loss, and those of Johnson et al.'s table 1."""
    served = document["speedup"][0]["served"]
    fixed = [row for row in document["speedup"] if (row["size"], row["served"]) == (size, served)]
    rows = [(f"{row['iterations']} iterations", row) for row in fixed]
    if equal := [row for row in document["equal_loss"] if row["size"] == size and "missing" not in row]:
        middle = _middle(equal)
        of = f" (of {len(equal)} photographs)" if len(equal) > 1 else ""
        rows.insert(0, (f"same loss: {middle['iteration']} iterations{of}", middle))
    return rows


def _middle(rows: Sequence[Document]) -> Document:
    """The row whose ratio is the median."""
    return sorted(rows, key=lambda row: float(row["ratio"]))[len(rows) // 2]


def _by_shared_memory(speedups: Sequence[Document]) -> str:
    """The same by shared memory, of the highest number of iterations."""
    last = speedups[-1]
    own = [row for row in speedups if (row["served"], row["iterations"]) == (last["served"], last["iterations"])]
    times = (f"{milliseconds(row['served_ms'])} ms at {row['size']}², **{row['ratio']:,.0f}** times" for row in own)
    return f"By shared memory an image takes {', '.join(times)} less than {last['iterations']} iterations."


def plot_loss(own: Mapping[str, Document], machine: str) -> Plot | None:
    """The optimisation's loss by time, down to the network's, and the network's image as a point; a colour a size."""
    rows = [row for row in own.get("speedup", {}).get("equal_loss", ()) if "curve" in row]
    if not rows:
        return None
    with figure("loss", f"Loss by time\n{machine}") as (axes, finish):
        words = []
        for position, size in enumerate(dict.fromkeys(row["size"] for row in rows)):
            photos, colour = [row for row in rows if row["size"] == size], f"C{position}"
            for number, row in enumerate(photos):
                times = row["gatys_seconds"] * np.arange(1, len(row["curve"]) + 1) / len(row["curve"])
                label = f"Gatys' optimisation, {size}²" if number == 0 else None
                axes.plot(times, row["curve"], color=colour, alpha=0.8, linewidth=1, label=label)
                label = f"one pass, served, {size}²" if number == 0 else None
                axes.plot(row["served_ms"] / 1000, row["loss"], "o", color=colour, label=label)
            middle = _middle(photos)
            words.append(
                f"at {size}² the served image has a loss of {middle['loss']:.2f} after {middle['served_ms']:.0f} ms, "
                f"the optimisation after {middle['gatys_seconds']:.0f} s ({middle['photo']})"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        decades(axes.yaxis, lambda value: f"{value:g}")
        axes.xaxis.set_major_formatter(lambda value, _: plots.seconds(value))
        axes.set_xlabel("time, logarithmic")
        axes.set_ylabel("loss, weighted as in training")
        axes.legend(fontsize=7, loc="center left")  # between the points and where the curves begin
        return finish(f"Loss by time on {machine}: {'; '.join(words)}.")


def plot_times(own: Mapping[str, Document], machine: str) -> Plot | None:
    """Median times on a logarithmic axis, a bar an engine and size."""
    if "speedup" not in own:
        return None
    document = own["speedup"]
    bars = _bars(document)
    sizes = sorted({size for values in bars.values() for size in values})
    title = f"Time an image: {document['model']['name']}\n{machine}"
    with figure("latency", title, height=1.2 + 0.14 * len(bars) * (len(sizes) + 1)) as (axes, finish):
        height = 0.8 / len(sizes)
        for index, size in enumerate(sizes):
            there = [(at, values[size]) for at, values in enumerate(bars.values()) if size in values]
            places = [position + (index - (len(sizes) - 1) / 2) * height for position, _ in there]
            drawn = axes.barh(places, [value for _, value in there], height * 0.92, label=f"{size}²")
            axes.bar_label(drawn, [plots.seconds(value) for _, value in there], padding=3, fontsize=7)
        axes.set_xscale("log")
        axes.set_xlim(right=axes.get_xlim()[1] * 6)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(lambda value, _: plots.seconds(value))
        axes.set_xlabel("seconds, logarithmic")
        axes.legend(fontsize=7, loc="upper right")
        largest = [f"{name} {plots.seconds(values[sizes[-1]])}" for name, values in bars.items() if sizes[-1] in values]
        return finish(f"Time an image at {sizes[-1]}² on {machine}: {', '.join(largest)}.")


def _bars(document: Document) -> dict[str, dict[int, float]]:
    """Seconds by engine, or iterations of the optimisation, and size."""
    bars: dict[str, dict[int, float]] = {}
    for (engine, size), row in _warm(document).items():
        if engine != GATYS and "median" in row:
            bars.setdefault(engine, {})[size] = row["median"] / 1000
    for row in document["speedup"]:
        if row["served"] == document["speedup"][0]["served"]:
            bars.setdefault(f"Gatys, {row['iterations']} iterations", {})[row["size"]] = row["gatys_seconds"]
    return bars
