"""Tables and plots, drawn from a results document alone; any of them can be drawn again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nst_bench.suites.speedup import GATYS, SCHEMA
from nst_core.errors import InputError
from nst_core.files import written_whole

Document = dict[str, Any]

BEGIN, END = "<!-- nst-bench: begin -->", "<!-- nst-bench: end -->"


def read(path: Path) -> Document:
    """A results document; `InputError` if the file is none of this schema."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no results of nst-bench ({error})") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{path}: no results of nst-bench with the schema {SCHEMA!r}")
    return document


def write(document: Document, folder: Path) -> Path:
    """`results.json`, `report.md` and `latency.png` in `folder`; returns the report's path."""
    with written_whole(folder / "results.json") as beside:
        beside.write_text(json.dumps(document, indent=1) + "\n")
    with written_whole(folder / "latency.png") as beside:
        plot(document, beside)
    report = folder / "report.md"
    with written_whole(report) as beside:
        beside.write_text(f"# nst-bench, {document['date']}\n\n{markdown(document)}\n![latency](latency.png)\n")
    return report


def markdown(document: Document) -> str:
    """The tables and the sentences that say what they mean."""
    model, machine = document["model"], document["machine"]
    sizes = _sizes(document)
    engines = list(dict.fromkeys(one["engine"] for one in document["figures"] if one["phase"] == "steady"))
    lines = [
        f"`{model['name']}` ({model['network']}, width {model['width']:g}, {model['parameters']:,} parameters) on "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; "
        f"GPU: {machine['gpu'] or 'none at hand, so nothing was measured on one'}.",
        f"{machine['system']}; " + ", ".join(f"{name} {value}" for name, value in machine["versions"].items()) + "; "
        f"2048x2048 matrix product at {machine['matrix_product_gflops']:g} GFLOP/s.",
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


def inject(document: Document, readme: Path) -> None:
    """Replace what stands between the two markers of `readme` by the document's tables."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise InputError(f"{readme}: lacks the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    with written_whole(readme) as beside:
        beside.write_text(f"{before}{BEGIN}\n{markdown(document)}{END}{after}")


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
