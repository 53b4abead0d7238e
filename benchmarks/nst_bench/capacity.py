"""How many machines a load needs, and what many images cost: arithmetic on results that were measured.

Nothing is assumed but `HEADROOM`; every other number is of the documents.
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
"""Of a page (`report.fill`)."""

HEADROOM = 0.3
"""Share of a machine's highest rate that is kept free, for hours that are busier than they should be."""

LOADS = (1, 10, 100, 1000)
"""Requests a second that machines are counted for."""

BILLION = 1e9
FLEETS = (10, 100, 1000)
"""Machines that the days of a billion images are given for."""

CALLED = columns("model | size | called by", "{model} | {size}² | {how}")


def text(documents: Sequence[Document], core_hour: float | None = None) -> str:
    """The tables as Markdown, with prices if `core_hour` says what a core costs an hour.

    Raises `InputError` if no document has results of serving.
    """
    serving, training = _of("serving", documents), _of("training", documents)
    if not serving:
        raise InputError("no results of nst-bench serving among them: they say how many images a machine serves")
    rates = [row for document in serving for row in _rates(document)]
    blocks = [
        [_measured(document) for document in serving],
        ["## Images a second", "", *_images(rates)],
        ["## Requests a second", "", *_requests([document for document in serving if "arrivals" in document])],
        ["## A billion images", "", *_billion(rates, core_hour)],
        *([["## Learning a style", "", *_training(training, core_hour)]] if training else []),
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _of(suite: str, documents: Sequence[Document]) -> list[Document]:
    """The documents of a suite, those within runs too, that were measured to their end."""
    found = [suites(document).get(suite, {"missing": ""}) for document in documents]
    return [own for own in found if "missing" not in own and "stopped" not in own]


def _name(document: Document) -> str:
    model = document["model"]
    return f"`{model['name']}`" + (f", width {model['width']:g}" if model["width"] else "")


def _measured(document: Document) -> str:
    """Which machine did what."""
    served = f"{_name(document)} ({arrangement(document['model'])})"
    return f"- {served}, {document['date']}, on {machine_lines(document)[0]}"


def _rates(document: Document) -> list[Document]:
    """Images a second of one request at a time by size, and the most that callers at once got."""
    machine, cores = document["machine"], document["machine"]["cores"]
    on_gpu = str(document["model"]["provider"]).startswith(("CUDA", "TensorRT", "Tensorrt", "NvTensorRTRTX"))
    missing = machine.get("cuda", {}).get("missing", "no GPU at hand")
    found = [
        (row["size"], "one request at a time", 1000 / row["median"], row["unstable"])
        for row in document["latency"]
        if row["way"] == "gRPC"
    ]
    for load in reversed(throughputs(document)):
        best = max(load["rows"], key=lambda row: (not row["rate_unstable"], row["rate"]))
        how = f"{best['callers']} callers at once" if best["callers"] > 1 else "1 caller"
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
    figures = columns("images a second", "{rate:.2f}{unstable:mark}")
    figures["a core"] = lambda row: row["no_core"] or f"{row['rate'] / row['cores']:.2f}"
    figures["a GPU"] = lambda row: row["no_gpu"] or f"{row['rate']:.2f}"
    return [
        *table(rates, CALLED | figures, left=3),
        "",
        "One request at a time is a second over the median. A core is a machine's rate over its cores, which client "
        "and server shared. Images came over gRPC as pixels: reading and writing files is not in it.",
    ]


def _requests(serving: Sequence[Document]) -> list[str]:
    """What `LOADS` need so that the measured percentile stays within its limit, and without it."""
    rows, known = [], []
    for document in serving:
        arrivals, best = document["arrivals"], _rates(document)[-1]
        limit = f"{arrivals['percentile']} % within {arrivals['limit']:.0f} ms"
        within = {**best, "size": arrivals["size"], "answered": limit}
        if arrivals["rate"]:
            within["rate"] = arrivals["rate"] * (1 - HEADROOM)
            known.append(_how_well_known(document))
        else:
            within |= {"rate": None, "answered": f"{limit}: *none of the rates that were tried*"}
        rows += [within, {**best, "answered": "no limit: a queue that is never empty"}]
    about = columns("model | size | answered", "{model} | {size}² | {answered}")
    return [
        "Machines as measured, and their cores in brackets:",
        "",
        *table(rows, about | {f"{load:,} a second": partial(_machines, load) for load in LOADS}, left=3),
        "",
        "The model: machines = requests a second / (the highest rate of random (Poisson) arrivals at which one machine "
        f"kept the limit x {1 - HEADROOM:g}), rounded up; {HEADROOM:.0%} is headroom. Arrivals that are spread over "
        "machines at random are random on each, so that what one machine was measured at holds for all; a balancer "
        "that knows the queues needs fewer. A machine that may fail is one more. Without a limit it is the rate of "
        "callers at once, without headroom.",
        "",
        *known,
    ]


def _machines(load: int, row: Document) -> str:
    """How many, and their cores in brackets."""
    if not row["rate"]:
        return ""
    count = math.ceil(load / row["rate"])
    return f"{count:,} ({count * row['cores']:,})"


def _how_well_known(document: Document) -> str:
    """The rate that was kept, the next that was tried and failed, and how many requests it stands on."""
    arrivals = document["arrivals"]
    kept = next(row for row in arrivals["rows"] if row["rate"] == arrivals["rate"])
    above = [row["rate"] for row in arrivals["rows"] if row["rate"] > kept["rate"] and not row["within"]]
    failed = f"{min(above):.2f} a second did not" if above else "no higher rate was tried"
    return f"- {_name(document)}: {kept['rate']:.2f} a second kept the limit ({kept['n']} requests), {failed}."


def _billion(rates: Sequence[Document], core_hour: float | None) -> list[str]:
    """Core-hours, and days on so many machines."""
    figures = columns("core-hours", "{core_hours:,.0f}{no_core}")
    figures |= {f"days on {count:,} machines": partial(_days, count) for count in FLEETS}
    priced = "What that costs depends on where the cores are: `--core-hour PRICE` adds the price."
    if core_hour is not None:
        priced = f"The price is at {core_hour:g} for a core-hour."
    return [*table(rates, CALLED | figures | _price(core_hour), left=3), "", priced]


def _days(machines: int, row: Document) -> str:
    return f"{BILLION / row['rate'] / 86400 / machines:,.1f}"


def _price(core_hour: float | None) -> dict[str, Cell]:
    if core_hour is None:
        return {}
    return {"price": lambda row: f"{row['core_hours'] * core_hour:,.0f}" if row["core_hours"] else ""}


def _training(training: Sequence[Document], core_hour: float | None) -> list[str]:
    """What photographs cost that a network learns from, once for each style."""
    rows = []
    for document in training:
        for row in document["crops"]:
            a_core = row["nst"]["images_per_second"] / document["machine"]["cores"]
            rows.append({**row, "width": document["width"], "a_core": a_core, "core_hours": 1e6 / a_core / 3600})
    about = columns(
        "Johnson's network | crops   | photographs a second         | a core       | core-hours for a million",
        "width {width:g}   | {crop}² | {nst[images_per_second]:.2f} | {a_core:.2f} | {core_hours:,.0f}",
    )
    return table(rows, about | _price(core_hour), left=2)
