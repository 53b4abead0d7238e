"""Capacity planning: how many machines a load needs, and what many images cost, computed from measured results.

The only assumption is `HEADROOM`; every other number is from the documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from nst_bench.drawing.serving import arrangement, throughputs
from nst_bench.drawing.tables import Cell, columns, machine_lines, table
from nst_bench.results import suites
from nst_bench.suite import Document
from nst_core.errors import InputError

BLOCK = "nst-bench-capacity"
"""The block of a page (see `report.fill`)."""

HEADROOM = 0.3
"""Share of a machine's highest rate that is kept free for peaks."""

LOADS = (1, 10, 100, 1000)
"""Requests per second that machines are counted for."""

BILLION = 1e9
FLEETS = (10, 100, 1000)
"""Numbers of machines for which the days of a billion images are given."""

CALLED = columns("model | size | load", "{model} | {size}² | {how}")


def text(documents: Sequence[Document], core_hour: float | None = None) -> str:
    """Return the tables as Markdown, with prices if `core_hour`, the price of a core per hour, is given.

    Raises `InputError` if no document has results of serving.
    """
    serving, training = _of("serving", documents), _of("training", documents)
    if not serving:
        raise InputError("no results of serving in these files; run nst bench serving first")
    rates = [row for document in serving for row in _rates(document)]
    blocks = [
        [_measured(document) for document in serving],
        ["## Throughput", "", *_images(rates)],
        ["## Machines for a load", "", *_requests([document for document in serving if "arrivals" in document])],
        ["## A billion images", "", *_billion(rates, core_hour)],
        *([["## Training a style", "", *_training(training, core_hour)]] if training else []),
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _of(suite: str, documents: Sequence[Document]) -> list[Document]:
    """Return the complete documents of a suite, including those within runs."""
    found = [suites(document).get(suite, {"missing": ""}) for document in documents]
    return [own for own in found if "missing" not in own and "stopped" not in own]


def _name(document: Document) -> str:
    model = document["model"]
    return f"`{model['name']}`" + (f", width {model['width']:g}" if model["width"] else "")


def _measured(document: Document) -> str:
    """Return which machine served which model."""
    served = f"{_name(document)} ({arrangement(document['model'])})"
    return f"- {served}, {document['date']}, on {machine_lines(document)[0]}"


def _rates(document: Document) -> list[Document]:
    """Return images/s of one request at a time by size, and the highest rate of concurrent clients."""
    machine, cores = document["machine"], document["machine"]["cores"]
    on_gpu = str(document["model"]["provider"]).startswith(("CUDA", "TensorRT", "Tensorrt", "NvTensorRTRTX"))
    missing = machine.get("cuda", {}).get("missing", "no GPU")
    found = [
        (row["size"], "one request at a time", 1000 / row["median"], row["unstable"])
        for row in document["latency"]
        if row["way"] == "gRPC"
    ]
    for load in reversed(throughputs(document)):
        best = max(load["rows"], key=lambda row: (not row["rate_unstable"], row["rate"]))
        how = f"{best['callers']} concurrent clients" if best["callers"] > 1 else "1 client"
        found.append((load["size"], how, best["rate"], best["rate_unstable"]))
    return [
        {
            "model": _name(document),
            "size": size,
            "how": how,
            "rate": rate,
            "unstable": unstable,
            "cores": cores,
            "core_hours": None if on_gpu else BILLION / rate / 3600 * cores,
            "no_core": "*served on the GPU*" if on_gpu else "",
            "no_gpu": "" if on_gpu else f"*{'served on the CPU' if machine['gpu'] else missing}*",
        }
        for size, how, rate, unstable in found
    ]


def _images(rates: Sequence[Document]) -> list[str]:
    figures = columns("images/s", "{rate:.2f}{unstable:mark}")
    figures["per core"] = lambda row: row["no_core"] or f"{row['rate'] / row['cores']:.2f}"
    figures["per GPU"] = lambda row: row["no_gpu"] or f"{row['rate']:.2f}"
    return [
        *table(rates, CALLED | figures, left=3),
        "",
        "The rate of one request at a time is the inverse of its median latency. The rate per core is the machine's "
        "rate divided by its cores, which client and server share. Images are sent as pixels over gRPC; reading and "
        "writing files is not included.",
    ]


def _requests(serving: Sequence[Document]) -> list[str]:
    """Return the machines that each of `LOADS` needs, with the latency limit and without."""
    rows, known = [], []
    for document in serving:
        arrivals, best = document["arrivals"], _rates(document)[-1]
        limit = f"{arrivals['percentile']} % within {arrivals['limit']:.0f} ms"
        within = {**best, "size": arrivals["size"], "answered": limit}
        if arrivals["rate"]:
            within["rate"] = arrivals["rate"] * (1 - HEADROOM)
            known.append(_how_well_known(document))
        else:
            within |= {"rate": None, "answered": f"{limit}: *not kept at any measured rate*"}
        rows += [within, {**best, "answered": "no limit"}]
    about = columns("model | size | latency limit", "{model} | {size}² | {answered}")
    return [
        "Number of machines like the measured one, and their cores in brackets:",
        "",
        *table(rows, about | {f"{load:,}/s": partial(_machines, load) for load in LOADS}, left=3),
        "",
        "machines = requests per second / (the highest rate of Poisson arrivals at which one machine kept the limit x "
        f"{1 - HEADROOM:g}), rounded up; {HEADROOM:.0%} is headroom. Poisson arrivals that a load balancer spreads at "
        "random are Poisson arrivals on each machine, so the rate measured on one machine holds for all; a balancer "
        "that considers the queues needs fewer. Add one machine for each that may fail. Without a limit, the rate is "
        "that of concurrent clients, without headroom.",
        "",
        *known,
    ]


def _machines(load: int, row: Document) -> str:
    """Return the number of machines, and their cores in brackets."""
    if not row["rate"]:
        return ""
    count = math.ceil(load / row["rate"])
    return f"{count:,} ({count * row['cores']:,})"


def _how_well_known(document: Document) -> str:
    """Return the highest rate within the limit, its number of requests, and the lowest rate beyond the limit."""
    arrivals = document["arrivals"]
    kept = next(row for row in arrivals["rows"] if row["rate"] == arrivals["rate"])
    above = [row["rate"] for row in arrivals["rows"] if row["rate"] > kept["rate"] and not row["within"]]
    failed = f"{min(above):.2f}/s did not" if above else "no higher rate was measured"
    return f"- {_name(document)}: {kept['rate']:.2f}/s kept the limit ({kept['n']} requests), {failed}."


def _billion(rates: Sequence[Document], core_hour: float | None) -> list[str]:
    """Return core-hours, and the days on each of `FLEETS`."""
    figures = columns("core-hours", "{core_hours:,.0f}{no_core}")
    figures |= {f"days on {count:,} machines": partial(_days, count) for count in FLEETS}
    priced = "`--core-hour PRICE` adds the price at a price per core-hour."
    if core_hour is not None:
        priced = f"Price at {core_hour:g} per core-hour."
    return [*table(rates, CALLED | figures | _price(core_hour), left=3), "", priced]


def _days(machines: int, row: Document) -> str:
    return f"{BILLION / row['rate'] / 86400 / machines:,.1f}"


def _price(core_hour: float | None) -> dict[str, Cell]:
    if core_hour is None:
        return {}
    return {"price": lambda row: f"{row['core_hours'] * core_hour:,.0f}" if row["core_hours"] else ""}


def _training(training: Sequence[Document], core_hour: float | None) -> list[str]:
    """Return what training costs per million photographs, once per style."""
    rows = []
    for document in training:
        for row in document["crops"]:
            a_core = row["nst"]["images_per_second"] / document["machine"]["cores"]
            rows.append({**row, "width": document["width"], "a_core": a_core, "core_hours": 1e6 / a_core / 3600})
    about = columns(
        "Johnson's network | crops   | photographs/s                | per core     | core-hours per million",
        "width {width:g}   | {crop}² | {nst[images_per_second]:.2f} | {a_core:.2f} | {core_hours:,.0f}",
    )
    return table(rows, about | _price(core_hour), left=2)
