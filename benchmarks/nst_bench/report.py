"""Tables and plots, drawn from a results document alone; any of them can be drawn again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nst_bench.suites import export, gatys, quality, training
from nst_bench.suites.speedup import GATYS, SCHEMA
from nst_core.errors import InputError
from nst_core.files import written_whole

Document = dict[str, Any]


def markers(document: Document) -> tuple[str, str]:
    """The lines of a page between which this suite's tables stand."""
    return f"<!-- {document['schema']}: begin -->", f"<!-- {document['schema']}: end -->"


def read(path: Path) -> Document:
    """A results document; `InputError` if the file is none of this schema."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no results of nst-bench ({error})") from error
    if not isinstance(document, dict) or document.get("schema") not in TABLES:
        raise InputError(f"{path}: no results of nst-bench with a schema of {', '.join(TABLES)}")
    return document


def write(document: Document, folder: Path) -> Path:
    """`results.json`, `report.md` and `latency.png` in `folder`; returns the report's path.

    Raises `InputError` for a document of another suite than the speed-up: only that one has a plot.
    """
    if document["schema"] != SCHEMA:
        raise InputError(f"{document['schema']} has tables and no plot: put them into a file with --readme")
    with written_whole(folder / "results.json") as beside:
        beside.write_text(json.dumps(document, indent=1) + "\n")
    with written_whole(folder / "latency.png") as beside:
        plot(document, beside)
    report = folder / "report.md"
    with written_whole(report) as beside:
        beside.write_text(f"# nst-bench, {document['date']}\n\n{markdown(document)}\n![latency](latency.png)\n")
    return report


def markdown(document: Document) -> str:
    """The tables and the sentences that say what they mean, for any suite's document."""
    return TABLES[document["schema"]](document)


def _machine(document: Document) -> list[str]:
    machine = document["machine"]
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; "
        f"GPU: {machine['gpu'] or 'none at hand, so nothing was measured on one'}.",
        f"{machine['system']}; " + ", ".join(f"{name} {value}" for name, value in machine["versions"].items()) + "; "
        f"2048x2048 matrix product at {machine['matrix_product_gflops']:g} GFLOP/s.",
    ]


def _optimization(document: Document) -> str:
    """An iteration by size, and the time to a result (`nst-bench gatys`)."""
    lines = [
        *_machine(document),
        "",
        "The bound is the arithmetic of the convolutions, forward and backward, at three quarters of the matrix "
        "product's rate measured just before.",
        "",
        _row(["size", "an iteration", "over the bound", "a megapixel", "peak memory"]),
        _row(["---", *["---:"] * 4]),
    ]
    for one in document["iterations"]:
        mark = " unstable" if one["unstable"] else ""
        lines.append(
            _row(
                [
                    f"{one['size']}²",
                    f"{one['median']:.0f} ms ({one['p95']:.0f}){mark}",
                    f"{one['ratio_to_bound']:.2f}",
                    f"{one['median'] / 1000 / (one['size'] ** 2 / 1e6):.2f} s",
                    f"{one['peak_mib']:.0f} MiB",
                ]
            )
        )
    return "\n".join([*lines, "", _result(document["result"]), ""])


def _result(result: Document) -> str:
    goal = f"the loss {result['loss']:.3f} of `johnson2016-baseline` after {result['iterations']} iterations"
    took = f"({result['baseline_seconds']:.0f} s)"
    if result["ratio"] is None:
        return (
            f"At {result['size']}² `best` does not reach {goal} {took}; its lowest is {result['best_lowest_loss']:.3f}."
        )
    return (
        f"At {result['size']}² `best` reaches {goal} {took} in {result['best_seconds']:.0f} s: "
        f"**{result['ratio']:.2f}** of its time."
    )


def _quality(document: Document) -> str:
    """What a network is worth in iterations of the optimisation (`nst-bench quality`)."""
    model, worth, size = document["model"], document["worth"], document["size"]
    rows, in_range = document["photos"], document["worth_in_range"]
    low, high = worth["quartiles"]
    lines = [
        f"`{model['name']}` ({model['network']}, width {model['width']:g}, {model['parameters']:,} parameters) in the "
        f"style of {model['style']} is worth **{worth['median']:g} iterations** of the optimisation at {size}² "
        f"(median of {len(rows)} photographs; half of them {low:.0f}-{high:.0f}, "
        f"all {worth['minimum']}-{worth['maximum']}), or {in_range['median']:g} "
        f"({in_range['minimum']}-{in_range['maximum']}) if the optimisation's pictures, too, are cut to the range of "
        "colours that a file can hold.",
        "",
        _row(
            [
                *("photograph", "worth", "in range", "loss", "content", "style", *rows[0]["style_by_layer"]),
                *("total variation", "warping error", "lattice", "border"),
            ]
        ),
        _row(["---", *["---:"] * (9 + len(rows[0]["style_by_layer"]))]),
    ]
    for one in rows:
        losses = [one["loss"], one["content"], one["style"], *one["style_by_layer"].values(), one["total_variation"]]
        levels = [one["warping_error"], one["lattice"], one["border"]]
        worths = [str(one[name] or f"> {one['iterations']}") for name in ("worth", "worth_in_range")]
        cells = [one["photo"], *worths]
        lines.append(_row([*cells, *(f"{value:.3f}" for value in losses), *(f"{value:.2f}" for value in levels)]))
    return "\n".join([*lines, "", "Losses are weighted as in training; the last three are levels of 255.", ""])


def _training(document: Document) -> str:
    """Images a second against a plain loop (`nst-bench training`)."""
    lines = [
        *_machine(document),
        "",
        f"Johnson's network at width {document['width']:g}, batches of {document['batch']}, images a second:",
        "",
        _row(["crops", "a plain loop", "nst", "times"]),
        _row(["---", "---:", "---:", "---:"]),
    ]
    for one in document["crops"]:
        rates = [
            f"{one[name]['images_per_second']:.2f}" + (" unstable" if one[name]["unstable"] else "")
            for name in ("plain", "nst")
        ]
        lines.append(_row([f"{one['crop']}²", *rates, f"**{one['ratio']:.2f}**"]))
    return "\n".join([*lines, ""])


def _export(document: Document) -> str:
    """What the rewrites of an exported graph save (`nst-bench export`)."""
    rows = document["rows"]
    forms = list(dict.fromkeys(one["form"] for one in rows))
    lines = [
        *_machine(document),
        "",
        "Milliseconds (median of warm runs) and, in bold, the share of the plain export's time:",
        "",
        _row(["engine", "width", "size", *forms]),
        _row(["---", "---:", "---:", *["---:"] * len(forms)]),
    ]
    for engine, width, size in dict.fromkeys((one["engine"], one["width"], one["size"]) for one in rows):
        own = [one for one in rows if (one["engine"], one["width"], one["size"]) == (engine, width, size)]
        cells = [
            f"{one['median']:.0f}"
            + ("" if one["form"] == export.PLAIN else f", **{one['ratio']:.2f}**")
            + (" unstable" if one["unstable"] else "")
            for one in own
        ]
        lines.append(_row([engine, f"{width:g}", f"{size}²", *cells]))
    largest = max(one["size"] for one in rows)
    shown = [one for one in rows if one["size"] == largest and one["engine"] == rows[0]["engine"]]
    flop = "; ".join(f"width {one['width']:g} {one['form']} {one['gflop']:.1f}" for one in shown)
    return "\n".join([*lines, "", f"Arithmetic of the convolutions at {largest}², GFLOP: {flop}.", ""])


def _speedup(document: Document) -> str:
    """The served network against the optimisation (`nst-bench`)."""
    model = document["model"]
    width = f", width {model['width']:g}" if "width" in model else ""
    sizes = _sizes(document)
    engines = list(dict.fromkeys(one["engine"] for one in document["figures"] if one["phase"] == "steady"))
    lines = [
        f"`{model['name']}` ({model['network']}{width}, {model['parameters']:,} parameters) on",
        *_machine(document),
        "",
        "Milliseconds: median (95th percentile) of warm runs, and the median of the first pictures of new shapes.",
        "",
        _row(["", *(f"{size}²" for size in sizes), *(f"{size}², first of a shape" for size in sizes)]),
        _row(["---", *["---:"] * (2 * len(sizes))]),
    ]
    for engine in engines:
        steady = [_cell(document, engine, size, "steady") for size in sizes]
        first = [_cell(document, engine, size, "first of a shape", spread=False) for size in sizes]
        lines.append(_row([engine, *steady, *first]))
    lines += ["", "Cold starts, once each:", ""]
    for one in document["figures"]:
        if one["phase"] == "cold":
            lines.append(f"- {one['engine']}: {one['median'] / 1000:.1f} s")
    lines += [
        "",
        "The optimisation's time is its median iteration times the number of iterations; the ratio is to a picture "
        "over gRPC, network and server included.",
        "",
        _row(["", *(f"{size}²: seconds" for size in sizes), *(f"{size}²: times slower" for size in sizes)]),
        _row(["---", *["---:"] * (2 * len(sizes))]),
    ]
    for iterations in dict.fromkeys(one["iterations"] for one in document["speedup"]):
        rows = [one for one in document["speedup"] if one["iterations"] == iterations]
        seconds = [f"{one['gatys_seconds']:.0f}" for one in rows]
        lines.append(_row([f"Gatys, {iterations} iterations", *seconds, *(f"**{one['ratio']:,.0f}**" for one in rows)]))
    return "\n".join([*lines, ""])


def plot(document: Document, path: Path) -> None:
    """Median times on a logarithmic axis, a bar an engine and size, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = _sizes(document)
    bars: dict[str, list[float]] = {}
    for one in document["figures"]:
        if one["phase"] == "steady" and one["engine"] != GATYS:
            bars.setdefault(one["engine"], []).append(one["median"] / 1000)
    for one in document["speedup"]:
        bars.setdefault(f"Gatys, {one['iterations']} iterations", []).append(one["gatys_seconds"])
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height = 0.8 / len(sizes)
    for index, size in enumerate(sizes):
        at = [position + (index - (len(sizes) - 1) / 2) * height for position in range(len(bars))]
        drawn = axes.barh(at, [values[index] for values in bars.values()], height * 0.92, label=f"{size} x {size}")
        axes.bar_label(drawn, [_seconds(values[index]) for values in bars.values()], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 3)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: _seconds(value))
    axes.set_xlabel("time a picture, logarithmic")
    axes.set_title(f"{document['model']['name']} on {document['machine']['cores']} cores", fontsize=10)
    axes.legend(fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def plot_quality(document: Document, path: Path) -> None:
    """Johnson et al.'s figure 5: the optimisation's loss by iteration, and the network's as a line; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, worth = document["photos"], document["worth"]
    curves = np.array([one["curve"][: quality.CURVE] for one in rows])
    numbers = np.arange(1, curves.shape[1] + 1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(numbers, np.median(curves, axis=0), color="C0", label="optimisation from noise (median)")
    axes.fill_between(numbers, curves.min(axis=0), curves.max(axis=0), color="C0", alpha=0.2, linewidth=0)
    losses = [one["loss"] for one in rows]
    cut = np.array([one["curve_in_range"][: quality.CURVE] for one in rows])
    axes.plot(numbers, np.median(cut, axis=0), color="C0", linestyle="--", label="the same, cut to the range (median)")
    axes.axhline(float(np.median(losses)), color="C1", label=f"{document['model']['name']}, one pass (median)")
    axes.axhspan(min(losses), max(losses), color="C1", alpha=0.2, linewidth=0)
    axes.axvline(worth["median"], color="0.6", linestyle=":", label=f"worth {worth['median']:g} iterations (median)")
    axes.set_yscale("log")
    axes.set_xlabel("iterations of L-BFGS")
    axes.set_ylabel("loss, weighted as in training")
    axes.set_title(
        f"{len(rows)} photographs at {document['size']} x {document['size']}; shades: all of them", fontsize=10
    )
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def inject(document: Document, readme: Path) -> None:
    """Replace what stands between the two `markers` in `readme` by the document's tables."""
    text = readme.read_text()
    begin, end = markers(document)
    if begin not in text or end not in text:
        raise InputError(f"{readme}: lacks the lines {begin} and {end}")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    with written_whole(readme) as beside:
        beside.write_text(f"{before}{begin}\n{markdown(document)}{end}{after}")


def headline(document: Document) -> str:
    """The one sentence: the largest size, 500 iterations, over gRPC."""
    last = document["speedup"][-1]
    return (
        f"at {last['size']}x{last['size']} a served picture takes {last['served_ms']:.0f} ms; Gatys' "
        f"{last['iterations']} iterations take {last['gatys_seconds']:.0f} s: {last['ratio']:,.0f} times as long"
    )


def _sizes(document: Document) -> list[int]:
    return sorted({one["size"] for one in document["speedup"]})


def _cell(document: Document, engine: str, size: int, phase: str, *, spread: bool = True) -> str:
    for one in document["figures"]:
        if (one["engine"], one["size"], one["phase"]) == (engine, size, phase):
            text = f"{one['median']:.0f} ({one['p95']:.0f})" if spread else f"{one['median']:.0f}"
            return text + (" unstable" if one["unstable"] else "")
    return ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:,.0f} s"


TABLES = {
    SCHEMA: _speedup,
    gatys.SCHEMA: _optimization,
    quality.SCHEMA: _quality,
    training.SCHEMA: _training,
    export.SCHEMA: _export,
}
"""How a document of each schema is shown."""
