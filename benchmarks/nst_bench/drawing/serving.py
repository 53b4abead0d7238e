"""Tables and plot of `serving`; `capacity` reads the same documents."""

from __future__ import annotations

from collections.abc import Mapping

from nst_bench.drawing.plots import figure
from nst_bench.drawing.tables import SUMMARY, columns, short, table, text
from nst_bench.drawing.words import shown
from nst_bench.suite import Document, Plot

SPLIT = columns(
    "batch size | queue | compute | network and client", "{batch:.2f} | {queue:.1f} | {compute:.1f} | {rest:.1f}"
)
"""Columns: the mean batch size, and where the latency was spent."""


def tables(document: Document) -> list[str]:
    """Render latency, throughput, mixed sizes and Poisson arrivals."""
    model = document["model"]
    width = f"width {model['width']:g}, " if model["width"] else ""
    alone = columns("size | protocol", "{size}² | {way}") | SUMMARY | {"relative to in-process": "**{ratio:.3f}**"}
    return [
        f"`{model['name']}` ({width}{arrangement(model)}).",
        "",
        "Latency of one request at a time, milliseconds. The in-process session runs the same model file with the same "
        "settings and without a server; all take turns:",
        "",
        *table(document["latency"], alone, left=2),
        *(line for load in throughputs(document) for line in ("", *_throughput(load))),
        *(["", *_mixed(document)] if "mixed" in document else []),
        *(["", *_arrivals(document["arrivals"])] if "arrivals" in document else []),
    ]


def arrangement(model: Document) -> str:
    """Return how a model is served: instances and threads, the engine, and half precision."""
    threads = f" x {model['threads']} threads" if model["threads"] else " in parallel"
    half = ", FP16" if model.get("precision") == "fp16" else ""
    return f"{model['instances']}{threads}, {model['provider']}{half}"


def throughputs(document: Document) -> list[Document]:
    """Return the throughput by size, that of the arrivals first; a partial document may lack it."""
    return [*([document["throughput"]] if "throughput" in document else []), *document.get("throughput_by_size", [])]


def _throughput(load: Document) -> list[str]:
    bare, reached = load["bare"], text("{rate:.2f}{rate_unstable:mark}", load["bare"])
    rates = columns(
        "clients   | images/s                        | relative to in-process | relative to one client",
        "{callers} | {rate:.2f}{rate_unstable:mark}  | **{ratio:.3f}**        | **{against_one:.2f}**",
    )
    return [
        f"Throughput of concurrent clients, one process each, at {load['size']}² over gRPC. The in-process sessions "
        f"reach {reached} images/s together (spread {bare['rate_spread']:.0%}); each of {len(bare['rates'])} turns has "
        f"{load['requests']} images. Milliseconds per request; mean batch size, queue and compute time are from the "
        "server's counters:",
        "",
        *table(load["rows"], rates | SUMMARY | SPLIT, left=0),
    ]


def _mixed(document: Document) -> list[str]:
    """Render clients of mixed sizes against one client, and the slowest mixture of all."""
    smallest, largest = document["mixed"]["sides"]
    rates = columns(
        "sizes     | clients   | images/s                       | images/s of one client | relative to one client",
        "{mixture} | {callers} | {rate:.2f}{rate_unstable:mark} | {one_caller:.2f}       | **{against_one:.2f}**",
    )
    lines = [
        f"Mixed sizes: as many sizes as clients, with sides of {smallest} to {largest} pixels, each equally often, "
        "over gRPC, against one client that sends the same images one size after the other:",
        "",
        *table(document["mixed"]["rows"], rates | SUMMARY | SPLIT),
    ]
    if found := document.get("slowest_against_one"):
        verdict = "No mixture" if found["ratio"] >= 1.0 else "At least one mixture"
        rate = f"the slowest, {shown(found['who'])}, reaches **{found['ratio']:.2f}** times its rate"
        lines += ["", f"{verdict} of sizes and clients is slower than one client; {rate}."]
    return lines


def _arrivals(arrivals: Document) -> list[str]:
    found = f"{arrivals['rate']:.2f}/s" if arrivals["rate"] else "none of those measured"
    return [
        f"Poisson arrivals at {arrivals['size']}². Highest rate at which {arrivals['percentile']} % of the requests "
        f"are answered within {arrivals['limit']:.0f} ms, by bisection: **{found}**.",
        "",
        *table(
            arrivals["rows"], {"arrivals/s": "{rate:.2f}", **SUMMARY, **SPLIT, "within limit": "{within:yes}"}, left=0
        ),
    ]


def plot(own: Mapping[str, Document], machine: str) -> Plot | None:
    """Draw images/s by number of clients, with each turn as a mark, and the rate of the in-process sessions."""
    throughput = own.get("serving", {}).get("throughput")
    if throughput is None:
        return None
    rows, bare, size = throughput["rows"], throughput["bare"], throughput["size"]
    with figure("throughput", f"Throughput at {size}²\n{machine}") as (axes, finish):
        callers = [row["callers"] for row in rows]
        axes.plot(callers, [row["rate"] for row in rows], "o-", color="C0", label="Triton, gRPC (median of turns)")
        for row in rows:
            axes.plot([row["callers"]] * len(row["rates"]), row["rates"], "_", color="C0", alpha=0.6)
            note, place = f"p95 {short(row['p95'])} ms", (row["callers"], row["rate"])
            axes.annotate(note, place, (0, -14), textcoords="offset points", fontsize=7, ha="center")
        axes.axhline(bare["rate"], color="C1", label="in-process sessions, no server")
        axes.axhspan(min(bare["rates"]), max(bare["rates"]), color="C1", alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(callers, [str(count) for count in callers])
        axes.margins(x=0.12)
        highest = max(bare["rate"], *(row["rate"] for row in rows))
        axes.set(ylim=(0, 1.25 * highest), xlabel="concurrent clients", ylabel="images/s")
        axes.legend(loc="lower right")
        by_clients = ", ".join(f"{row['rate']:.2f} with {row['callers']}" for row in rows)
        rates = f"{by_clients} concurrent clients; in-process sessions {bare['rate']:.2f} images/s"
        return finish(f"Throughput at {size}² on {machine}, images/s: {rates}.")
