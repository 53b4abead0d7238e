"""How the results of `serving` are shown; `capacity` reads the same documents."""

from __future__ import annotations

from collections.abc import Mapping

from nst_bench.drawing.plots import figure
from nst_bench.drawing.tables import SUMMARY, columns, short, table, text
from nst_bench.suite import Document, Plot

SPLIT = columns("batch | queue | compute | rest", "{batch:.2f} | {queue:.1f} | {compute:.1f} | {rest:.1f}")
"""Where the latency was spent, as columns."""


def tables(document: Document) -> list[str]:
    """Requests against the bare session, many callers, arrivals."""
    model = document["model"]
    width = f"width {model['width']:g}, " if model["width"] else ""
    alone = columns("size | way", "{size}² | {way}") | SUMMARY | {"times the bare session": "**{ratio:.3f}**"}
    return [
        f"`{model['name']}` ({width}{arrangement(model)}).",
        "",
        "One request at a time, milliseconds; the bare session is the same file in the same arrangement, without a "
        "server, in turns with the others:",
        "",
        *table(document["latency"], alone, left=2),
        *(line for load in throughputs(document) for line in ("", *_throughput(load))),
        *(["", *_mixed(document)] if "mixed" in document else []),
        *(["", *_arrivals(document["arrivals"])] if "arrivals" in document else []),
    ]


def arrangement(model: Document) -> str:
    """How a model is served: instances and threads, the engine, and half precision."""
    threads = f" x {model['threads']} threads" if model["threads"] else " at once"
    half = ", FP16" if model.get("precision") == "fp16" else ""
    return f"{model['instances']}{threads}, {model['provider']}{half}"


def throughputs(document: Document) -> list[Document]:
    """What callers at once got, by size, the size that also arrivals have first; not all there in a part."""
    return [*([document["throughput"]] if "throughput" in document else []), *document.get("throughput_by_size", [])]


def _throughput(load: Document) -> list[str]:
    bare, reached = load["bare"], text("{rate:.2f}{rate_unstable:mark}", load["bare"])
    rates = columns(
        "callers   | images/s                        | of the bare     | times one caller",
        "{callers} | {rate:.2f}{rate_unstable:mark}  | **{ratio:.3f}** | **{against_one:.2f}**",
    )
    return [
        f"Callers at once, each a process, at {load['size']}² over gRPC, against the {reached} images a "
        f"second (spread {bare['rate_spread']:.0%}) that the bare sessions reach together; {load['requests']} "
        f"images a turn, {len(bare['rates'])} turns. The batch is the mean number of images in a run, from the "
        "server's counters, as are queue and compute; the rest is the network and the client. Means, milliseconds:",
        "",
        *table(load["rows"], rates | SUMMARY | SPLIT, left=0),
    ]


def _mixed(document: Document) -> list[str]:
    """Callers of mixed sizes against one caller, and what is slowest of all that callers at once do."""
    smallest, largest = document["mixed"]["sides"]
    rates = columns(
        "mixture   | callers   | images/s                       | one caller's     | times one caller",
        "{mixture} | {callers} | {rate:.2f}{rate_unstable:mark} | {one_caller:.2f} | **{against_one:.2f}**",
    )
    lines = [
        f"Mixed sizes, as many as callers, sides of {smallest} to {largest} pixels, each size equally often, over "
        "gRPC, against one caller with the same images, one size after the other:",
        "",
        *table(document["mixed"]["rows"], rates | SUMMARY | SPLIT),
    ]
    if found := document.get("slowest_against_one"):
        there_is = "No" if found["ratio"] >= 1.0 else "A"
        verdict = f"{there_is} mixture of sizes and callers is slower than one caller"
        lines += ["", f"{verdict}: the slowest, {found['who']}, has **{found['ratio']:.2f}** times its rate."]
    return lines


def _arrivals(arrivals: Document) -> list[str]:
    found = f"{arrivals['rate']:.2f} a second" if arrivals["rate"] else "none that was tried"
    return [
        f"Arrivals at random times (Poisson) at {arrivals['size']}². The highest rate at which "
        f"{arrivals['percentile']} % are answered within {arrivals['limit']:.0f} ms, by bisection: **{found}**.",
        "",
        *table(arrivals["rows"], {"arrivals/s": "{rate:.2f}", **SUMMARY, **SPLIT, "within": "{within:yes}"}, left=0),
    ]


def plot(own: Mapping[str, Document], machine: str) -> Plot | None:
    """Images a second by callers, the turns as points, and what the bare sessions reach."""
    throughput = own.get("serving", {}).get("throughput")
    if throughput is None:
        return None
    rows, bare, size = throughput["rows"], throughput["bare"], throughput["size"]
    with figure("throughput", f"Throughput at {size}² by callers\n{machine}") as (axes, finish):
        callers = [row["callers"] for row in rows]
        axes.plot(callers, [row["rate"] for row in rows], "o-", color="C0", label="Triton, gRPC (median of the turns)")
        for row in rows:
            axes.plot([row["callers"]] * len(row["rates"]), row["rates"], "_", color="C0", alpha=0.6)
            note, place = f"p95 {short(row['p95'])} ms", (row["callers"], row["rate"])
            axes.annotate(note, place, (0, -14), textcoords="offset points", fontsize=7, ha="center")
        axes.axhline(bare["rate"], color="C1", label="bare sessions, no server")
        axes.axhspan(min(bare["rates"]), max(bare["rates"]), color="C1", alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(callers, [str(count) for count in callers])
        axes.margins(x=0.12)
        highest = max(bare["rate"], *(row["rate"] for row in rows))
        axes.set(ylim=(0, 1.25 * highest), xlabel="callers at once", ylabel="images a second")
        axes.legend(loc="lower right")
        by_callers = ", ".join(f"{row['rate']:.2f} with {row['callers']}" for row in rows)
        rates = f"{by_callers} callers; bare sessions {bare['rate']:.2f} images a second"
        return finish(f"Throughput by callers at {size}² on {machine}: {rates}.")
