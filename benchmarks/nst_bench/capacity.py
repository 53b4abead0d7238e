"""How many machines a load needs, and what many images cost: arithmetic on results that were measured.

Nothing is assumed but `HEADROOM`; every other number is of the documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nst_bench import report
from nst_bench.results import suites
from nst_bench.suite import Document
from nst_bench.suites.drawing.serving import arrangement, throughputs
from nst_bench.tables import machine_lines, table
from nst_core.errors import InputError
from nst_core.files import atomic_write

BEGIN, END = "<!-- nst-bench-capacity: begin -->", "<!-- nst-bench-capacity: end -->"

HEADROOM = 0.3
"""Share of a machine's highest rate that is kept free, for hours that are busier than they should be."""

LOADS = (1, 10, 100, 1000)
"""Requests a second that machines are counted for."""

BILLION = 1e9
FLEETS = (10, 100, 1000)
"""Machines that the days of a billion images are given for."""


@dataclass(frozen=True)
class Throughput:
    """What a machine did with one model at one size: images a second, and how it was called."""

    document: Document
    size: int
    rate: float
    how: str
    unstable: bool

    @property
    def core_hours(self) -> float:
        """Of a billion images."""
        return BILLION / self.rate / 3600 * int(self.document["machine"]["cores"])


def text(documents: Sequence[Document], core_hour: float | None = None) -> str:
    """The tables as Markdown, with prices if `core_hour` says what a core costs an hour.

    Raises `InputError` if no document has results of serving.
    """
    serving, training = _of("serving", documents), _of("training", documents)
    if not serving:
        raise InputError("no results of nst-bench serving among them: they say how many images a machine serves")
    rates = [rate for document in serving for rate in _throughputs(document)]
    blocks = [
        _measured(serving),
        ["## Images a second", "", *_rates(rates)],
        ["## Requests a second", "", *_machines(serving)],
        ["## A billion images", "", *_billion(rates, core_hour)],
    ]
    if training:
        blocks.append(["## Learning a style", "", *_training(training, core_hour)])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def inject(documents: Sequence[Document], page: Path, core_hour: float | None = None) -> None:
    """Put the tables between the markers of `page`; `InputError` if it has none."""
    new = report.between(page, page.read_text(), (BEGIN, END), text(documents, core_hour))
    with atomic_write(page) as temporary:
        temporary.write_text(new)


def _of(suite: str, documents: Sequence[Document]) -> list[Document]:
    """The documents of a suite, those within runs too, that were measured to their end."""
    found = [suites(document).get(suite, {"missing": ""}) for document in documents]
    return [own for own in found if "missing" not in own and "stopped" not in own]


def _on_gpu(document: Document) -> bool:
    return str(document["model"]["provider"]).startswith(("CUDA", "TensorRT", "Tensorrt", "NvTensorRTRTX"))


def _name(document: Document) -> str:
    model = document["model"]
    return f"`{model['name']}`" + (f", width {model['width']:g}" if model["width"] else "")


def _throughputs(document: Document) -> list[Throughput]:
    """One request at a time by size, and the most that callers at once got."""
    found = [
        Throughput(document, row["size"], 1000 / row["median"], "one request at a time", row["unstable"])
        for row in document["latency"]
        if row["way"] == "gRPC"
    ]
    for throughput in reversed(throughputs(document)):
        best = max(throughput["rows"], key=lambda row: (not row["rate_unstable"], row["rate"]))
        how = f"{best['callers']} callers at once" if best["callers"] > 1 else "1 caller"
        found.append(Throughput(document, throughput["size"], best["rate"], how, best["rate_unstable"]))
    return found


def _measured(serving: Sequence[Document]) -> list[str]:
    """Which machine did what."""
    lines = []
    for document in serving:
        machine = machine_lines(document)[0]
        lines.append(f"- {_name(document)} ({arrangement(document['model'])}), {document['date']}, on {machine}")
    return lines


def _rates(rates: Sequence[Throughput]) -> list[str]:
    body = []
    for own in rates:
        machine = own.document["machine"]
        if _on_gpu(own.document):
            per = "*served on the GPU*", f"{own.rate:.2f}"
        else:
            reason = "served on the CPU" if machine["gpu"] else machine.get("cuda", {}).get("missing", "no GPU at hand")
            per = f"{own.rate / machine['cores']:.2f}", f"*{reason}*"
        rate = f"{own.rate:.2f}" + (" *unstable*" if own.unstable else "")
        body.append([_name(own.document), f"{own.size}²", own.how, rate, *per])
    head = ["model", "size", "called by", "images a second", "a core", "a GPU"]
    return [
        *table(head, body, left=3),
        "",
        "One request at a time is a second over the median. A core is a machine's rate over its cores, which client "
        "and server shared. Images came over gRPC as pixels: reading and writing files is not in it.",
    ]


def _machines(serving: Sequence[Document]) -> list[str]:
    """What `LOADS` need so that the measured percentile stays within its limit."""
    body, brackets = [], []
    for document in (own for own in serving if "arrivals" in own):
        arrivals, best = document["arrivals"], _throughputs(document)[-1]
        limit = f"{arrivals['percentile']} % within {arrivals['limit']:.0f} ms"
        called = [_name(document), f"{arrivals['size']}²"]
        if arrivals["rate"]:
            body.append([*called, limit, *_counts(arrivals["rate"] * (1 - HEADROOM), document)])
            brackets.append(_bracket(document))
        else:
            body.append([*called, f"{limit}: *none of the rates that were tried*", *[""] * len(LOADS)])
        body.append(
            [_name(document), f"{best.size}²", "no limit: a queue that is never empty", *_counts(best.rate, document)]
        )
    return [
        "Machines as measured, and their cores in brackets:",
        "",
        *table(["model", "size", "answered", *(f"{load:,} a second" for load in LOADS)], body, left=3),
        "",
        "The model: machines = requests a second / (the highest rate of random (Poisson) arrivals at which one machine "
        f"kept the limit x {1 - HEADROOM:g}), rounded up; {HEADROOM:.0%} is headroom. Arrivals that are spread over "
        "machines at random are random on each, so that what one machine was measured at holds for all; a balancer "
        "that knows the queues needs fewer. A machine that may fail is one more. Without a limit it is the rate of "
        "callers at once, without headroom.",
        "",
        *brackets,
    ]


def _counts(rate: float, document: Document) -> list[str]:
    """Machines, and cores in brackets, for each of `LOADS`."""
    machines = [math.ceil(load / rate) for load in LOADS]
    return [f"{count:,} ({count * document['machine']['cores']:,})" for count in machines]


def _bracket(document: Document) -> str:
    """How well the rate is known: the next that was tried and failed, and how many requests it stands on."""
    arrivals = document["arrivals"]
    rate = arrivals["rate"]
    held = next(row for row in arrivals["rows"] if row["rate"] == rate)
    above = [row["rate"] for row in arrivals["rows"] if row["rate"] > rate and not row["within"]]
    failed = f"{min(above):.2f} a second did not" if above else "no higher rate was tried"
    return f"- {_name(document)}: {rate:.2f} a second kept the limit ({held['n']} requests), {failed}."


def _billion(rates: Sequence[Throughput], core_hour: float | None) -> list[str]:
    """Core-hours, and days on so many machines."""
    body = []
    for own in rates:
        days = [f"{BILLION / own.rate / 86400 / count:,.1f}" for count in FLEETS]
        gpu = _on_gpu(own.document)
        hours = "*served on the GPU*" if gpu else f"{own.core_hours:,.0f}"
        price = [] if core_hour is None else ["" if gpu else f"{own.core_hours * core_hour:,.0f}"]
        body.append([_name(own.document), f"{own.size}²", own.how, hours, *days, *price])
    head = ["model", "size", "called by", "core-hours", *(f"days on {count:,} machines" for count in FLEETS)]
    return [*table([*head, *_price(core_hour)], body, left=3), "", _priced(core_hour)]


def _price(core_hour: float | None) -> list[str]:
    return [] if core_hour is None else ["price"]


def _priced(core_hour: float | None) -> str:
    if core_hour is None:
        return "What that costs depends on where the cores are: `--core-hour PRICE` adds the price."
    return f"The price is at {core_hour:g} for a core-hour."


def _training(training: Sequence[Document], core_hour: float | None) -> list[str]:
    """What photographs cost that a network learns from, once for each style."""
    body = []
    for document in training:
        for row in document["crops"]:
            rate = row["nst"]["images_per_second"]
            hours = 1e6 / rate / 3600 * document["machine"]["cores"]
            price = [] if core_hour is None else [f"{hours * core_hour:,.0f}"]
            words = [f"width {document['width']:g}", f"{row['crop']}²"]
            body.append([*words, f"{rate:.2f}", f"{rate / document['machine']['cores']:.2f}", f"{hours:,.0f}", *price])
    head = ["Johnson's network", "crops", "photographs a second", "a core", "core-hours for a million"]
    return table([*head, *_price(core_hour)], body, left=2)
