"""Tables and plots, drawn from a results document alone; any of them can be drawn again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nst_bench.suites import export, gatys, perf_analyzer, quality, serving, soak, training
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
        f"Johnson's network at width {document['width']:g}, batches of {document['batch']}, images a second; "
        f"the plain loop in {document['precision']['plain']}, nst's convolutions in {document['precision']['nst']}: "
        f"{document['precision']['why']}.",
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


def _serving(document: Document) -> str:
    """Requests against the bare session, many callers, arrivals (`nst-bench serving`)."""
    model, throughput, arrivals = document["model"], document["throughput"], document["arrivals"]
    width = f"width {model['width']:g}, " if model["width"] else ""
    lines = [
        f"`{model['name']}` ({width}{model['instances']} x {model['threads']} threads, {model['provider']}) on",
        *_machine(document),
        "",
        "One request at a time, milliseconds; the bare session is the same file in the same arrangement, without a "
        "server, in turns with the others:",
        "",
        _row(["size", "way", "p50", "p95", "p99", "spread", "n", "times the bare session"]),
        _row(["---", "---", *["---:"] * 6]),
    ]
    for one in document["latency"]:
        ratio = "" if one["way"] == serving.BARE else f"**{one['ratio']:.3f}**"
        lines.append(_row([f"{one['size']}²", one["way"], *_latency(one), str(one["n"]), ratio]))
    bare = throughput["bare"]
    lines += [
        "",
        f"Callers at once, each a process, at {throughput['size']}² over gRPC, against the {_rate(bare)} pictures a "
        f"second (spread {bare['rate_spread']:.0%}) that the bare sessions reach together; {throughput['requests']} "
        f"pictures a turn, {len(bare['rates'])} turns. The batch is the mean number of pictures in a run, from the "
        "server's counters, as are queue and compute; the rest is the network and the client. Means, milliseconds:",
        "",
        _row(
            ["callers", "pictures/s", "of the bare", "p50", "p95", "p99", "spread", "batch", "queue", "compute", "rest"]
        ),
        _row(["---:"] * 11),
    ]
    for one in throughput["rows"]:
        cells = [str(one["callers"]), _rate(one), f"**{one['ratio']:.3f}**", *_latency(one)]
        lines.append(_row([*cells, f"{one['batch']:.2f}", *(f"{one[name]:.1f}" for name in _SPLIT)]))
    found = f"{arrivals['rate']:.2f} a second" if arrivals["rate"] else "none that was tried"
    lines += [
        "",
        f"Arrivals at random times (Poisson) at {arrivals['size']}². The highest rate at which "
        f"{arrivals['percentile']} % are answered within {arrivals['limit']:.0f} ms, by bisection: **{found}**.",
        "",
        _row(["arrivals/s", "n", "p50", "p95", "p99", "spread", "batch", "queue", "compute", "rest", "within"]),
        _row(["---:"] * 10 + ["---"]),
    ]
    for one in arrivals["rows"]:
        cells = [f"{one['rate']:.2f}", str(one["n"]), *_latency(one), f"{one['batch']:.2f}"]
        lines.append(_row([*cells, *(f"{one[name]:.1f}" for name in _SPLIT), "yes" if one["within"] else "no"]))
    return "\n".join([*lines, ""])


_SPLIT = ("queue", "compute", "rest")


def _latency(one: Document) -> list[str]:
    """p50, p95, p99 and the spread of a summary in milliseconds."""
    mark = " unstable" if one["unstable"] else ""
    return [f"{one['median']:.1f}{mark}", f"{one['p95']:.1f}", f"{one['p99']:.1f}", f"{one['spread']:.0%}"]


def _rate(one: Document) -> str:
    return f"{one['rate']:.2f}" + (" (unstable)" if one["rate_unstable"] else "")


def _soak(document: Document) -> str:
    """Whether memory stopped growing (`nst-bench soak`)."""
    memory, trends = document["memory"], document["trends"]
    errors = sum(document["errors"].values())
    drift = document["latency_drift"]
    lines = [
        f"`{document['model']['name']}` for {document['minutes']:g} minutes, {document['callers']} callers: "
        f"{document['requests']:,} pictures of {document['shapes']:,} sizes, {errors} errors. "
        + ("Latency was not compared." if drift is None else f"The last third took {drift:.3f} of the middle's time")
        + (" (unstable)." if document["latency_unstable"] else "." if drift is not None else ""),
        *_machine(document),
        "",
        f"Resident memory, MiB. A line is fitted to the second half; memory grew if the line rises by more than "
        f"{soak.TOLERANCE:.0%} of the median, by more than twice the error of that rise:",
        "",
        _row(["", "at the start", "at half time", "at the end", "rise in the second half", ""]),
        _row(["---", "---:", "---:", "---:", "---:", "---"]),
    ]
    for name, trend in trends.items():
        values = [memory[position][name] for position in (0, len(memory) // 2, -1)]
        rise = f"{trend['growth']:+.1f} ± {2 * trend['error']:.1f}"
        lines.append(_row([name, *(f"{value:.0f}" for value in values), rise, "grew" if trend["grew"] else "stopped"]))
    lines += ["", *(f"- {count} x {error}" for error, count in document["errors"].items())]
    return "\n".join([*lines, ""])


def _perf_analyzer(document: Document) -> str:
    """Our figures against NVIDIA's (`nst-bench perf-analyzer`)."""
    lines = [
        f"`{document['model']['name']}` at {document['size']}², nst-bench and NVIDIA's perf_analyzer in turns, on",
        *_machine(document),
        "",
        _row(
            ["", "callers", "pictures/s: ours", "perf_analyzer's", "ratio", "p50, ms: ours", "perf_analyzer's", "ratio"]
        ),
        _row(["---", *["---:"] * 7]),
    ]
    for one in document["rows"]:
        cells = [one["protocol"] + (" (unstable)" if one["unstable"] else ""), str(one["callers"])]
        for name, digits in (("rate", 2), ("median", 1)):
            cells += [f"{one[who][name]:.{digits}f}" for who in ("ours", "theirs")]
            cells.append(f"**{one[f'{name}_ratio']:.3f}**")
        lines.append(_row(cells))
    return "\n".join([*lines, "", f"The two are {document['largest_difference']:.1%} apart at most.", ""])


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
    serving.SCHEMA: _serving,
    soak.SCHEMA: _soak,
    perf_analyzer.SCHEMA: _perf_analyzer,
}
"""How a document of each schema is shown."""
