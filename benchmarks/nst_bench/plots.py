"""Plots of results documents, each a PNG with a text that says the same to those who cannot see it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nst_bench.results import Document, machine_name, suites
from nst_bench.tables import GATYS, milliseconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, DPI = (4.8, 3.4), 170
"""Inches and dots an inch: letters can be read on a telephone, where a plot is as wide as the screen."""


@dataclass(frozen=True)
class Plot:
    """A picture: its file's name without the ending, what it shows in words, and the PNG."""

    name: str
    alt: str
    png: bytes


def plots(document: Document) -> list[Plot]:
    """Those that the document has figures for: latency, throughput, loss, memory, the time a picture takes."""
    own = {name: one for name, one in suites(document).items() if "missing" not in one}
    ways = (_latency, _throughput, _loss, _memory, _bars, _quality, _frontier)
    drawn = (draw(own, machine_name(document)) for draw in ways)
    return [plot for plot in drawn if plot]


Suites = dict[str, Document]


def _latency(own: Suites, machine: str) -> Plot | None:
    """Latency by size, a line an engine; the bar above a point ends at the 95th percentile."""
    rows: list[tuple[str, int, Document]] = []
    if "latency" in own:
        steady = [one for one in own["latency"]["rows"] if "median" in one and one["phase"] == "steady"]
        several = len({one["device"] for one in steady}) > 1
        rows = [(f"{one['engine']}, {one['device']}" if several else one["engine"], one["size"], one) for one in steady]
    elif "serving" in own:
        rows = [(one["way"], one["size"], one) for one in own["serving"]["latency"]]
    if not rows:
        return None
    with _figure("latency-by-size", f"Latency by size\n{machine}") as (axes, finish):
        lines = _by(((engine, (size, one["median"], one["p95"])) for engine, size, one in rows))
        for position, (engine, points) in enumerate(lines.items()):
            sizes, medians, p95 = (np.array(values) for values in zip(*sorted(points), strict=True))
            above = np.maximum(p95 - medians, 0.0)
            style = "-" if position < 10 else "--"
            axes.errorbar(
                *(sizes, medians, [np.zeros_like(above), above]), fmt=f"o{style}", capsize=2, markersize=3, label=engine
            )
        axes.set_xscale("log", base=2)
        ticks = sorted({size for _, size, _ in rows})
        axes.set_xticks(ticks, [f"{size}²" for size in ticks])
        _decades(axes, lambda value: _seconds(value / 1000))
        axes.set_ylabel("median, and up to the 95th percentile")
        _legend(axes, len(lines))
        largest = ticks[-1]
        said = ", ".join(f"{engine} {milliseconds(one['median'])}" for engine, size, one in rows if size == largest)
        return finish(f"Latency by size on {machine}. Medians at {largest}², milliseconds: {said}.")


def _throughput(own: Suites, machine: str) -> Plot | None:
    """Pictures a second by callers, the turns as points, and what the bare sessions reach."""
    if "throughput" not in own.get("serving", {}):
        return None
    throughput = own["serving"]["throughput"]
    rows = throughput["rows"]
    with _figure("throughput", f"Throughput at {throughput['size']}² by callers\n{machine}") as (axes, finish):
        callers = [one["callers"] for one in rows]
        axes.plot(callers, [one["rate"] for one in rows], "o-", color="C0", label="Triton, gRPC (median of the turns)")
        for one in rows:
            axes.plot([one["callers"]] * len(one["rates"]), one["rates"], "_", color="C0", alpha=0.6)
            note = f"p95 {milliseconds(one['p95'])} ms"
            axes.annotate(
                note, (one["callers"], one["rate"]), (0, -14), textcoords="offset points", fontsize=7, ha="center"
            )
        bare = throughput["bare"]
        axes.axhline(bare["rate"], color="C1", label="bare sessions, no server")
        axes.axhspan(min(bare["rates"]), max(bare["rates"]), color="C1", alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(callers, [str(count) for count in callers])
        axes.set_ylim(0, 1.25 * max(bare["rate"], *(one["rate"] for one in rows)))
        axes.margins(x=0.12)
        axes.set_xlabel("callers at once")
        axes.set_ylabel("pictures a second")
        axes.legend(fontsize=7, loc="lower right")
        said = ", ".join(f"{one['rate']:.2f} with {one['callers']}" for one in rows)
        return finish(
            f"Throughput by callers at {throughput['size']}² on {machine}: {said} callers; "
            f"bare sessions {bare['rate']:.2f} pictures a second."
        )


def _loss(own: Suites, machine: str) -> Plot | None:
    """The optimisation's loss by time, down to the network's, and the network's picture as a point; a colour a size."""
    rows = [one for one in own.get("speedup", {}).get("equal_loss", ()) if "curve" in one]
    if not rows:
        return None
    with _figure("loss", f"Loss by time\n{machine}") as (axes, finish):
        said = []
        for position, (size, photos) in enumerate(_by((one["size"], one) for one in rows).items()):
            for number, one in enumerate(photos):
                seconds = one["gatys_seconds"] * np.arange(1, len(one["curve"]) + 1) / len(one["curve"])
                label = f"Gatys' optimisation, {size}²" if number == 0 else None
                axes.plot(seconds, one["curve"], color=f"C{position}", alpha=0.8, linewidth=1, label=label)
                label = f"one pass, served, {size}²" if number == 0 else None
                axes.plot(one["served_ms"] / 1000, one["loss"], "o", color=f"C{position}", label=label)
            middle = sorted(photos, key=lambda one: float(one["ratio"]))[len(photos) // 2]
            said.append(
                f"at {size}² the served picture has a loss of {middle['loss']:.2f} after {middle['served_ms']:.0f} ms, "
                f"the optimisation after {middle['gatys_seconds']:.0f} s ({middle['photo']})"
            )
        axes.set_xscale("log")
        _decades(axes, lambda value: f"{value:g}")
        axes.xaxis.set_major_formatter(lambda value, _: _seconds(value))
        axes.set_xlabel("time, logarithmic")
        axes.set_ylabel("loss, weighted as in training")
        axes.legend(fontsize=7, loc="center left")  # between the points and where the curves begin
        return finish(f"Loss by time on {machine}: {'; '.join(said)}.")


def _memory(own: Suites, machine: str) -> Plot | None:
    """The optimisation's peak by size, and what the processes of serving hold."""
    peaks = {f"optimisation, {one['size']}²": one["peak_mib"] for one in own.get("gatys", {}).get("iterations", ())}
    held = own["soak"]["memory"] if "soak" in own else []
    served = {f"{name}, peak": max(one[name] for one in held) for name in own.get("soak", {}).get("trends", ())}
    if not peaks and not served:
        return None
    bars = {**peaks, **{f"serving: {name}": value for name, value in served.items()}}
    with _figure("memory", f"Resident memory\n{machine}") as (axes, finish):
        drawn = axes.barh(list(bars), list(bars.values()), color=["C0"] * len(peaks) + ["C1"] * len(served))
        axes.bar_label(drawn, [f"{value:,.0f} MiB" for value in bars.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(right=1.25 * max(bars.values()))
        axes.set_xlabel("MiB")
        return finish(
            f"Resident memory on {machine}, MiB: "
            + ", ".join(f"{name} {value:,.0f}" for name, value in bars.items())
            + "."
        )


def _bars(own: Suites, machine: str) -> Plot | None:
    """Median times on a logarithmic axis, a bar an engine and size."""
    if "speedup" not in own:
        return None
    document = own["speedup"]
    bars: dict[str, dict[int, float]] = {}
    for one in document["rows"]:
        if one["phase"] == "steady" and one["engine"] != GATYS and "median" in one:
            bars.setdefault(one["engine"], {})[one["size"]] = one["median"] / 1000
    for one in (one for one in document["speedup"] if one["served"] == document["speedup"][0]["served"]):
        bars.setdefault(f"Gatys, {one['iterations']} iterations", {})[one["size"]] = one["gatys_seconds"]
    sizes = sorted({size for values in bars.values() for size in values})
    title = f"Time a picture: {document['model']['name']}\n{machine}"
    with _figure("latency", title, height=1.2 + 0.14 * len(bars) * (len(sizes) + 1)) as (axes, finish):
        height = 0.8 / len(sizes)
        for index, size in enumerate(sizes):
            there = [(at, values[size]) for at, values in enumerate(bars.values()) if size in values]
            at = [position + (index - (len(sizes) - 1) / 2) * height for position, _ in there]
            values = [value for _, value in there]
            drawn = axes.barh(at, values, height * 0.92, label=f"{size}²")
            axes.bar_label(drawn, [_seconds(value) for value in values], padding=3, fontsize=7)
        axes.set_xscale("log")
        axes.set_xlim(right=axes.get_xlim()[1] * 6)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(lambda value, _: _seconds(value))
        axes.set_xlabel("seconds, logarithmic")
        axes.legend(fontsize=7, loc="upper right")
        said = ", ".join(
            f"{name} {_seconds(values[sizes[-1]])}" for name, values in bars.items() if sizes[-1] in values
        )
        return finish(f"Time a picture at {sizes[-1]}² on {machine}: {said}.")


def _quality(own: Suites, _machine: str) -> Plot | None:
    """Johnson et al.'s figure 5: the optimisation's loss by iteration, and the network's as a line."""
    if "quality" not in own:
        return None
    document = own["quality"]
    rows, worth = document["photos"], document["worth"]
    shortest = min(len(one["curve"]) for one in rows)
    curves = np.array([one["curve"][:shortest] for one in rows])
    numbers = np.arange(1, curves.shape[1] + 1)
    title = f"{len(rows)} photographs at {document['size']}²; shades: all of them"
    with _figure("quality", title) as (axes, finish):
        axes.plot(numbers, np.median(curves, axis=0), color="C0", label="optimisation from noise (median)")
        axes.fill_between(numbers, curves.min(axis=0), curves.max(axis=0), color="C0", alpha=0.2, linewidth=0)
        losses = [one["loss"] for one in rows]
        cut = np.array([one["curve_in_range"][:shortest] for one in rows])
        axes.plot(
            numbers, np.median(cut, axis=0), color="C0", linestyle="--", label="the same, cut to the range (median)"
        )
        axes.axhline(float(np.median(losses)), color="C1", label=f"{document['model']['name']}, one pass (median)")
        axes.axhspan(min(losses), max(losses), color="C1", alpha=0.2, linewidth=0)
        axes.axvline(
            worth["median"], color="0.6", linestyle=":", label=f"worth {worth['median']:g} iterations (median)"
        )
        _decades(axes, lambda value: f"{value:g}")
        axes.set_xlabel("iterations of L-BFGS")
        axes.set_ylabel("loss, weighted as in training")
        axes.legend(fontsize=7)
        return finish(
            f"Loss of the optimisation by iteration at {document['size']}², and of {document['model']['name']}, "
            f"which is worth {worth['median']:g} iterations."
        )


def _frontier(own: Suites, machine: str) -> Plot | None:
    """Each network's worth over its time; in colour those that nothing faster beats."""
    if "frontier" not in own:
        return None
    from matplotlib.ticker import LogLocator, NullFormatter

    document = own["frontier"]
    rows = document["rows"]
    side = rows[0]["size"]
    with _figure("frontier", f"Quality over time, {document['style']}\n{machine}") as (axes, finish):
        below = False
        for before, one in zip([None, *rows], rows, strict=False):
            place = one["median"], one["worth"]
            axes.plot(*place, "o", color="C0" if one["best_for_its_time"] else "0.6", markersize=4)
            # Names of neighbours go above and below in turn, or they would lie on each other.
            near = before and place[0] < 1.4 * before["median"] and abs(place[1] - before["worth"]) < 2
            below = bool(near) and not below
            axes.annotate(one["name"], place, (4, -9 if below else 4), textcoords="offset points", fontsize=7)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15, y=0.1)
        axes.set_xlabel(f"milliseconds a picture at {side}², logarithmic")
        axes.set_ylabel(f"worth in iterations of L-BFGS at {document['quality_size']}²")
        said = ", ".join(f"{one['name']} {one['worth']:g} in {milliseconds(one['median'])} ms" for one in rows)
        return finish(f"Worth over time on {machine}: {said}.")


@contextmanager
def _figure(name: str, title: str, *, height: float = SIZE[1]) -> Iterator[tuple[Axes, Callable[[str], Plot]]]:
    """Axes to draw on, and what makes a `Plot` of them, given its words."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

    def finish(alt: str) -> Plot:
        axes.xaxis.label.set_fontsize(8)
        axes.yaxis.label.set_fontsize(8)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=DPI, format="png")
        return Plot(name, alt, buffer.getvalue())

    yield axes, finish


def _decades(axes: Axes, written: Callable[[float], str]) -> None:
    """A logarithmic upright axis with marks at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: written(value))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, lines: int) -> None:
    if lines > 6:
        axes.figure.legend(fontsize=7, loc="outside lower center", ncols=3)
    else:
        axes.legend(fontsize=7)


def _by(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"
