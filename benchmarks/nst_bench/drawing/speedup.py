"""Tables and plots of `speedup`, and the main table that a report begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nst_bench.drawing.plots import decades, figure, seconds
from nst_bench.drawing.tables import NARROW, SUMMARY, columns, model_name, pivot, short, table, text
from nst_bench.drawing.words import shown
from nst_bench.suite import Document, Plot

GATYS = "Gatys, one iteration"
"""The engine of the rows of iterations instead of images."""

ITERATIONS = (100, 300, 500)
"""Fixed numbers of iterations, as in table 1 of Johnson et al. 2016."""


TIMES = columns(
    "speed-up         | shared memory             | speed-up, shared memory",
    "**{ratio:,.0f}** | {shared_memory_ms:short} ms | **{shared_memory_ratio:,.0f}**",
)


def tables(document: Document) -> list[str]:
    """Render the served network against the optimisation."""
    first = _of_phase(document, "first of a shape")
    warm = sorted(_of_phase(document, "steady").values(), key=lambda row: int(row["size"]))
    by_engine = columns("size | engine", "{size}² | {engine}") | SUMMARY
    by_engine["first request of a shape"] = lambda row: text(NARROW, first[row["engine"], row["size"]])
    cold = [row for row in document["rows"] if row["phase"] == "cold"]
    both_on_gpu = document.get("device") == "GPU"
    return [
        f"{model_name(document['model'])}.",
        "",
        "Warm runs, and the first requests of new shapes as median (95th percentile), milliseconds:",
        "",
        *table(warm, by_engine, left=2),
        "",
        "Cold starts, measured once each:",
        "",
        *(f"- {shown(row['engine'])}: {row['median'] / 1000:.1f} s" for row in cold),
        "",
        "The optimisation's time is its median iteration times the number of iterations. The speed-up is relative to "
        "the latency of a request over gRPC."
        + (" Both run on the GPU; the optimisation uses PyTorch's precision." if both_on_gpu else ""),
        "",
        *_fixed_iterations(document["speedup"]),
        *(["", "At equal loss:", "", *_equal_loss(document["equal_loss"])] if document["equal_loss"] else []),
    ]


def _of_phase(document: Document, phase: str) -> dict[tuple[str, int], Document]:
    """Return the rows of a phase by engine and size."""
    return {(row["engine"], row["size"]): row for row in document["rows"] if row["phase"] == phase}


def _fixed_iterations(speedups: list[Document]) -> list[str]:
    """Render table 1 of Johnson et al. 2016; if shared memory was measured, with its speed-up as well."""
    first = speedups[0]["served"]
    cells = [
        {**row, "column": f"{row['size']}²: seconds", "text": short(row["gatys_seconds"])}
        for row in speedups
        if row["served"] == first
    ]
    for row in speedups:
        way = "" if row["served"] == first else f", {row['served'].removeprefix('Triton, ')}"
        cells.append({**row, "column": f"{row['size']}²: speed-up{way}", "text": f"**{row['ratio']:,.0f}**"})
    return pivot(cells, {"": "Gatys, {iterations} iterations"}, across="column", cell="{text}")


def _equal_loss(rows: Sequence[Document]) -> list[str]:
    """Render the speed-up at equal loss, by photograph."""
    about = columns(
        "size    | photograph | network's loss | equivalent iterations | optimisation           | served",
        "{size}² | {photo}    | {loss:.3f}     | {iteration}          | {gatys_seconds:short} s | {served_ms:short} ms",
    )
    return table(rows, about | TIMES, left=2)


def summary_table(document: Document) -> list[str]:
    """Render the main table: a served image against the optimisation that it replaces."""
    warm, speedups = _of_phase(document, "steady"), document["speedup"]
    served, rows = speedups[0]["served"], list[Document]()
    by_memory = {
        (row["size"], row["iterations"]): {"shared_memory_ms": row["served_ms"], "shared_memory_ratio": row["ratio"]}
        for row in speedups
        if row["served"] != served
    }
    for size in dict.fromkeys(row["size"] for row in speedups):
        equal = [row for row in document["equal_loss"] if row["size"] == size]
        replaced = []
        if photos := [row for row in equal if "missing" not in row]:
            of = f" (median of {len(photos)} photographs)" if len(photos) > 1 else ""
            middle = _middle(photos)
            replaced.append({**middle, "what": f"equal loss: {middle['iteration']} iterations{of}"})
        for row in (row for row in speedups if (row["size"], row["served"]) == (size, served)):
            memory = by_memory.get((size, row["iterations"]), {})
            replaced.append({**row, **memory, "what": f"{row['iterations']} iterations"})
        missing = [{**row, "what": "equal loss"} for row in equal if "missing" in row]
        rows += [{**warm[served, size], **replaced[0]}, *replaced[1:], *missing]
    about = columns(
        "size    | Gatys' optimisation | duration                | served, ms: p50",
        "{size}² | {what}              | {gatys_seconds:short} s | {median:short}{unstable:mark}",
    )
    others = {title: cell for title, cell in SUMMARY.items() if title != "p50"}
    return table(rows, about | TIMES | others, left=2)


HEADLINE = "nst-bench-headline"
"""The block of `headline_table` on a page."""


def headline_table(documents: Sequence[Document]) -> list[str]:
    """Render the speed-up at equal loss of several documents as one small table, a line per device and size."""
    rows = []
    for document in documents:
        machine, device = document["machine"], document.get("device", "CPU")
        name = machine["gpu"] if device == "GPU" else f"{machine['processor']}, {machine['cores']} cores"
        served = {row["size"]: row for row in document["speedup"] if row["served"] == document["speedup"][0]["served"]}
        for size, row in served.items():
            photos = [own for own in document["equal_loss"] if own["size"] == size and "missing" not in own]
            equal = _middle(photos) if photos else {}
            rows.append({"device": f"{device}: {name}", "size": size, "served_ms": row["served_ms"], "equal": equal})
    about = columns("device | size | served (ms)", "{device} | {size}² | {served_ms:short}") | {
        "Gatys at equal loss (s)": lambda row: text("{gatys_seconds:short}", row["equal"]) if row["equal"] else "",
        "speed-up": lambda row: text("**{ratio:,.0f}**", row["equal"]) if row["equal"] else "*not measured*",
    }
    names = dict.fromkeys(f"`{document['model']['name']}`" for document in documents)
    lines = [
        *table(rows, about, left=2),
        "",
        f"{', '.join(names)}, median latency of a request over gRPC. Gatys' optimisation runs on the same device until "
        "its loss is the network's; the figures are of the photograph with the median speed-up.",
    ]
    if all(document.get("device") != "GPU" for document in documents):
        lines[-1] += " No GPU has been measured."
    return lines


def _middle(rows: Sequence[Document]) -> Document:
    """Return the row whose ratio is the median (of an even number, the upper one)."""
    return sorted(rows, key=lambda row: float(row["ratio"]))[len(rows) // 2]


def headline(document: Document) -> str:
    """Return the speed-up of the largest size and most iterations, over gRPC, as a sentence."""
    every = document["speedup"]
    last = [row for row in every if row["served"] == every[0]["served"]][-1]
    return (
        f"at {last['size']}x{last['size']}, a served image takes {last['served_ms']:.0f} ms and {last['iterations']} "
        f"iterations of Gatys' optimisation take {last['gatys_seconds']:.0f} s: {last['ratio']:,.0f} times as long"
    )


def plot_loss(own: Mapping[str, Document], machine: str) -> Plot | None:
    """Draw the optimisation's loss over time, and the network's as a point; one colour per size."""
    rows = [row for row in own.get("speedup", {}).get("equal_loss", ()) if "curve" in row]
    if not rows:
        return None
    with figure("loss", f"Loss over time\n{machine}") as (axes, finish):
        words = []
        for position, size in enumerate(dict.fromkeys(row["size"] for row in rows)):
            photos, colour = [row for row in rows if row["size"] == size], f"C{position}"
            for number, row in enumerate(photos):
                times = row["gatys_seconds"] * np.arange(1, len(row["curve"]) + 1) / len(row["curve"])
                label = f"Gatys' optimisation, {size}²" if number == 0 else None
                axes.plot(times, row["curve"], color=colour, alpha=0.8, linewidth=1, label=label)
                label = f"served network, {size}²" if number == 0 else None
                axes.plot(row["served_ms"] / 1000, row["loss"], "o", color=colour, label=label)
            middle = _middle(photos)
            words.append(
                f"at {size}² the served network reaches a loss of {middle['loss']:.2f} in {middle['served_ms']:.0f} "
                f"ms, the optimisation in {middle['gatys_seconds']:.0f} s ({middle['photo']})"
            )
        axes.set(xscale="log", yscale="log", xlabel="time (log scale)", ylabel="loss, weighted as in training")
        decades(axes.yaxis, "{:g}".format)
        axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
        axes.legend(loc="center left")  # between the points and the beginning of the curves
        return finish(f"Loss over time on {machine}: {'; '.join(words)}.")


def plot_times(own: Mapping[str, Document], machine: str) -> Plot | None:
    """Draw median times on a logarithmic axis, one bar per engine and size."""
    if "speedup" not in own:
        return None
    document = own["speedup"]
    bars = _bars(document)
    sizes = sorted({size for values in bars.values() for size in values})
    title = f"Time per image: {document['model']['name']}\n{machine}"
    with figure("latency", title, height=1.2 + 0.14 * len(bars) * (len(sizes) + 1)) as (axes, finish):
        height = 0.8 / len(sizes)
        for index, size in enumerate(sizes):
            there = [(at, values[size]) for at, values in enumerate(bars.values()) if size in values]
            places = [position + (index - (len(sizes) - 1) / 2) * height for position, _ in there]
            drawn = axes.barh(places, [value for _, value in there], height * 0.92, label=f"{size}²")
            axes.bar_label(drawn, [seconds(value) for _, value in there], padding=3, fontsize=7)
        axes.set(xscale="log", xlabel="time per image (log scale)")
        axes.set_xlim(right=axes.get_xlim()[1] * 6)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
        axes.legend(loc="upper right")
        largest = [f"{name} {seconds(values[sizes[-1]])}" for name, values in bars.items() if sizes[-1] in values]
        return finish(f"Time per image at {sizes[-1]}² on {machine}: {', '.join(largest)}.")


def _bars(document: Document) -> dict[str, dict[int, float]]:
    """Return seconds by engine (or iterations of the optimisation) and size."""
    bars: dict[str, dict[int, float]] = {}
    for (engine, size), row in _of_phase(document, "steady").items():
        if engine != GATYS and "median" in row:
            bars.setdefault(shown(engine), {})[size] = row["median"] / 1000
    for row in document["speedup"]:
        if row["served"] == document["speedup"][0]["served"]:
            bars.setdefault(f"Gatys, {row['iterations']} iterations", {})[row["size"]] = row["gatys_seconds"]
    return bars
