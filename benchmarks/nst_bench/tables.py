"""A results document as Markdown: the tables of every suite, and the sentences that say what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nst_bench.results import Document, identity

SPEEDUP = "nst-bench-speedup/1"
GATYS = "Gatys, one iteration"
"""The engine of the speed-up's rows that are no pictures."""

SHORTEST_SOAK = 5.0
"""Minutes below which memory still fills up, so that its growth says nothing."""

OURS = "for TensorRT"
"""The form of an exported graph that the exporter makes for TensorRT."""

HEAD = ("p50", "p95", "p99", "spread", "n")
"""Columns of a summary; `cells` fills them."""


def tables(document: Document, *, machine: bool = True, beside: Sequence[Document] = ()) -> str:
    """A suite's tables, ending with a new line; with the lines of the machine that it was measured on, or without.

    `beside` are documents of the same suite from machines with a GPU: their speed-ups have a column, and the others'
    tables stand below.
    """
    own = machine_lines(document) if machine else []
    if document["schema"] == SPEEDUP:
        lines = _speedup(document, own, beside)
    else:
        lines = TABLES.get(document["schema"], _list)(document, own)
        for one in beside:
            lines += ["", *TABLES.get(one["schema"], _list)(one, machine_lines(one))]
    stopped = ["", f"It ended before it was done: {document['stopped']}."] if "stopped" in document else []
    return "\n".join([*lines, *stopped, ""])


def machine_lines(document: Document) -> list[str]:
    """Processor, memory, GPU, system, versions, and the rates that bound all figures."""
    machine = document["machine"]
    rates = [f"2048x2048 matrix product at {machine['matrix_product_gflops']:g} GFLOP/s"]
    rates += [f"memory copied at {machine['memory_gbs']:g} GB/s"] if "memory_gbs" in machine else []
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; GPU: {_gpu(machine)}.",
        f"{machine['system']}; " + ", ".join(f"{name} {value}" for name, value in machine["versions"].items()) + "; "
        f"{', '.join(rates)}.",
    ]


def _gpu(machine: Document) -> str:
    """Its name and what its figures depend on: driver, clocks, precision, rates."""
    if not machine["gpu"]:
        return "none at hand, so nothing was measured on one"
    words = [machine["gpu"]]
    for name, value in machine.get("cuda", {}).items():
        inner = ", ".join(f"{part} {what}" for part, what in value.items()) if isinstance(value, dict) else value
        words.append(f"{name.replace('_', ' ')} {inner}")
    return ", ".join(words)


def milliseconds(value: float) -> str:
    """With three digits or so."""
    digits = 0 if value >= 200 else 1 if value >= 5 else 2
    return f"{value:,.{digits}f}"


def cells(one: Document, digits: int | None = None) -> list[str]:
    """What stands under `HEAD`, milliseconds; a missing row has its reason instead.

    Older documents have no p99 and no spread.
    """
    if "missing" in one:
        return [f"*{one['missing']}*", *[""] * (len(HEAD) - 1)]

    def shown(value: float) -> str:
        return milliseconds(value) if digits is None else f"{value:.{digits}f}"

    return [
        shown(one["median"]) + mark(one),
        shown(one["p95"]),
        shown(one["p99"]) if "p99" in one else "",
        f"{one['spread']:.0%}" if "spread" in one else "",
        str(one["n"]),
    ]


def narrow(one: Document, digits: int = 0) -> str:
    """`median (p95)` for tables without room for more."""
    return f"{one['median']:.{digits}f} ({one['p95']:.{digits}f}){mark(one)}"


def mark(one: Document) -> str:
    """Of a figure that did not settle."""
    return " *unstable*" if one["unstable"] else ""


def row(cells: Sequence[str]) -> str:
    """A line of a table; what is in a cell cannot end it."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table whose first `left` columns are words and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return [row(head), f"| {' | '.join(rule)} |", *map(row, body)]


def _on(subject: str, machine: list[str]) -> list[str]:
    return [f"{subject} on", *machine, ""] if machine else [f"{subject}.", ""]


def _optimization(document: Document, machine: list[str]) -> list[str]:
    """An iteration by size, and the time to a result (`nst-bench gatys`)."""
    head = ["size", "an iteration, ms: p50", *HEAD[1:], "over the bound", "a megapixel", "peak memory"]
    body = [
        [
            f"{one['size']}²",
            *cells(one),
            f"{one['ratio_to_bound']:.2f}",
            f"{one['median'] / 1000 / (one['size'] ** 2 / 1e6):.2f} s",
            f"{one['peak_mib']:.0f} MiB",
        ]
        for one in document["iterations"]
    ]
    return [
        *machine,
        *([""] if machine else []),
        "The bound is the arithmetic of the convolutions, forward and backward, at three quarters of the matrix "
        "product's rate measured just before."
        + "".join(f" On the GPU both are in {name.upper()}." for name in sorted(_gpu_precisions(document))),
        "",
        *table(head, body),
        *(["", *map(_whole, document["whole"])] if document.get("whole") else []),
        *(["", _result(document["result"])] if document["result"] else []),
    ]


def _gpu_precisions(document: Document) -> set[str]:
    """What the iterations of a document of a GPU were computed in; of a CPU it goes without saying."""
    return {row["precision"] for row in document["iterations"]} if document.get("whole") else set()


def _whole(run: Document) -> str:
    return (
        f"- {run['iterations']} iterations at {run['size']}², from the two images to the result: "
        f"**{run['seconds']:.2f} s**, to the loss {run['lowest_loss']:.3f}."
    )


def _seconds(value: float) -> str:
    """Whole seconds, or with two decimals where there are few."""
    return f"{value:.0f} s" if value >= 10 else f"{value:.2f} s"


def _result(result: Document) -> str:
    goal = f"the loss {result['loss']:.3f} of `johnson2016-baseline` after {result['iterations']} iterations"
    took = f"({_seconds(result['baseline_seconds'])})"
    if result["ratio"] is None:
        return (
            f"At {result['size']}² `best` does not reach {goal} {took}; its lowest is {result['best_lowest_loss']:.3f}."
        )
    return (
        f"At {result['size']}² `best` reaches {goal} {took} in {_seconds(result['best_seconds'])}: "
        f"**{result['ratio']:.2f}** of its time."
    )


def _quality(document: Document, _machine: list[str]) -> list[str]:
    """What a network is worth in iterations of the optimisation (`nst-bench quality`)."""
    model, worth, size = document["model"], document["worth"], document["size"]
    photos, in_range = document["photos"], document["worth_in_range"]
    low, high = worth["quartiles"]
    layers = photos[0]["style_by_layer"]
    head = ["photograph", "worth", "in range", "loss", "content", "style", *layers]
    head += ["total variation", "warping error", "lattice", "border"]
    body = []
    for one in photos:
        losses = [one["loss"], one["content"], one["style"], *one["style_by_layer"].values(), one["total_variation"]]
        levels = [one["warping_error"], one["lattice"], one["border"]]
        worths = [str(one[name] or f"> {one['iterations']}") for name in ("worth", "worth_in_range")]
        body.append([one["photo"], *worths, *(f"{value:.3f}" for value in losses), *(f"{one:.2f}" for one in levels)])
    return [
        f"`{model['name']}` ({model['network']}, width {model['width']:g}, {model['parameters']:,} parameters) in the "
        f"style of {model['style']} is worth **{worth['median']:g} iterations** of the optimisation at {size}² "
        f"(median of {len(photos)} photographs; half of them {low:.0f}-{high:.0f}, "
        f"all {worth['minimum']}-{worth['maximum']}), or {in_range['median']:g} "
        f"({in_range['minimum']}-{in_range['maximum']}) if the optimisation's pictures, too, are cut to the range of "
        "colours that a file can hold.",
        "",
        *table(head, body),
        "",
        "Losses are weighted as in training; the last three are levels of 255.",
    ]


def _frontier(document: Document, machine: list[str]) -> list[str]:
    """Networks of one painting by their time (`nst-bench frontier`); bold: none that is faster has a lower loss."""
    body = []
    for one in document["rows"]:
        name = f"**{one['name']}**" if one["best_for_its_time"] else one["name"]
        told = [one["network"], f"width {one['arguments']['width']:g}", f"{one['parameters']:,}"]
        losses = [f"{one[term]:.3f}" for term in ("loss", "content", "style")]
        body.append([name, ", ".join(told[:2]), told[2], f"{one['worth']:g}", *losses, *cells(one)])
    head = ["checkpoint", "network", "parameters", "worth", "loss", "content", "style", *HEAD]
    return [
        *machine,
        *([""] if machine else []),
        f"{document['style']}, {len(document['photos'])} photographs at {document['quality_size']}² (worth: median; "
        f"losses: means), milliseconds at {document['rows'][0]['size']}²; bold: nothing faster has a lower loss.",
        "",
        *table(head, body, left=2),
    ]


def _training(document: Document, machine: list[str]) -> list[str]:
    """Images a second against a plain loop (`nst-bench training`)."""
    precision = document["precision"]
    loops = {"plain": "a plain loop", "nst": "nst"}
    body = [
        [
            f"{one['crop']}²",
            title,
            f"{one[name]['images_per_second']:.2f}",
            "" if name == "plain" else f"**{one['ratio']:.2f}**",
            *cells(one[name]),
        ]
        for one in document["crops"]
        for name, title in loops.items()
    ]
    return [
        *machine,
        *([""] if machine else []),
        f"Johnson's network at width {document['width']:g}, batches of {document['batch']}; "
        f"the plain loop in {precision['plain']}, nst's convolutions in {precision['nst']}: {precision['why']}. "
        "Milliseconds are a step's.",
        "",
        *table(["crops", "loop", "images/s", "times the plain loop", *HEAD], body, left=2),
    ]


def _export(document: Document, machine: list[str]) -> list[str]:
    """What the rewrites of an exported graph save (`nst-bench export`); older documents are of one network alone."""
    measured = [one for one in document["rows"] if "missing" not in one]
    lines = [*machine, *([""] if machine else [])]
    if measured:
        head, left = ["engine", "width", "size"], 1
        if "network" in measured[0]:
            head, left = ["engine", "network", "width", "size"], 2
        forms = list(dict.fromkeys(one["form"] for one in measured))
        lines += [
            "Milliseconds, median (95th percentile) of warm runs, and, in bold, the share of the plain export's time:",
            "",
            *table([*head, *forms], _by_form(measured, forms), left=left),
            "",
            f"Arithmetic of the convolutions at {max(one['size'] for one in measured)}², GFLOP: {_gflop(measured)}.",
        ]
    if OURS in {one["form"] for one in measured}:
        lines += ["", f"TensorRT builds no plain export of dynamic sides: its shares are of the form *{OURS}*."]
    missing = [one for one in document["rows"] if "missing" in one]
    reasons = dict.fromkeys(f"{one['engine']}, {one['form']}: {one['missing']}" for one in missing)
    return [*lines, *(["", f"Not measured: {'; '.join(reasons)}."] if reasons else [])]


def _by_form(rows: Sequence[Document], forms: Sequence[str]) -> list[list[str]]:
    """A line for each engine, network and size; the first form that an engine has is what the others are shares of."""
    groups: dict[tuple[str, ...], dict[str, Document]] = {}
    for one in rows:
        network = [f"{one['network']}, {one['precision']}"] if "network" in one else []
        about = (one["engine"], *network, f"{one['width']:g}", f"{one['size']}²")
        groups.setdefault(about, {})[one["form"]] = one
    body = []
    for about, own in groups.items():
        first = next(iter(own))
        digits = 2 if own[first]["median"] < 10 else 0
        shares = {form: "" if form == first else f", **{one['ratio']:.2f}**" for form, one in own.items()}
        body.append([*about, *(narrow(own[form], digits) + shares[form] if form in own else "" for form in forms)])
    return body


def _gflop(rows: Sequence[Document]) -> str:
    """Each form's arithmetic at the largest size, by the network's width; it does not depend on the engine."""
    largest = max(one["size"] for one in rows)
    found = {
        (one.get("network", "johnson"), one["width"], one["form"]): one["gflop"]
        for one in rows
        if one["size"] == largest and one["engine"] == rows[0]["engine"]
    }
    return "; ".join(f"width {width:g} {form} {gflop:.1f}" for (_, width, form), gflop in found.items())


def _serving(document: Document, machine: list[str]) -> list[str]:
    """Requests against the bare session, many callers, arrivals (`nst-bench serving`)."""
    model = document["model"]
    width = f"width {model['width']:g}, " if model["width"] else ""
    subject = f"`{model['name']}` ({width}{arrangement(model)})"
    single = [
        [
            f"{one['size']}²",
            one["way"],
            *cells(one, 1),
            "" if one["way"] == document["latency"][0]["way"] else f"**{one['ratio']:.3f}**",
        ]
        for one in document["latency"]
    ]
    return [
        *_on(subject, machine),
        "One request at a time, milliseconds; the bare session is the same file in the same arrangement, without a "
        "server, in turns with the others:",
        "",
        *table(["size", "way", *HEAD, "times the bare session"], single, left=2),
        *(line for load in throughputs(document) for line in ("", *_throughput(load))),
        *_mixed(document),
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


def _throughput(throughput: Document) -> list[str]:
    bare = throughput["bare"]
    against = any("against_one" in one for one in throughput["rows"])
    body = [
        [
            *(str(one["callers"]), _rate(one), f"**{one['ratio']:.3f}**"),
            *([f"**{one['against_one']:.2f}**"] if against else []),
            *cells(one, 1),
            *_split(one),
        ]
        for one in throughput["rows"]
    ]
    return [
        f"Callers at once, each a process, at {throughput['size']}² over gRPC, against the {_rate(bare)} pictures a "
        f"second (spread {bare['rate_spread']:.0%}) that the bare sessions reach together; {throughput['requests']} "
        f"pictures a turn, {len(bare['rates'])} turns. The batch is the mean number of pictures in a run, from the "
        "server's counters, as are queue and compute; the rest is the network and the client. Means, milliseconds:",
        "",
        *table(
            ["callers", "pictures/s", "of the bare", *(["times one caller"] if against else []), *HEAD, *_SPLIT],
            body,
            left=0,
        ),
    ]


def _mixed(document: Document) -> list[str]:
    """Callers of mixed sizes against one caller, and what is slowest of all that callers at once do."""
    if "mixed" not in document:
        return []
    smallest, largest = document["mixed"]["sides"]
    body = [
        [
            *(one["mixture"], str(one["callers"]), _rate(one), f"{one['one_caller']:.2f}"),
            *(f"**{one['against_one']:.2f}**", *cells(one, 1), *_split(one)),
        ]
        for one in document["mixed"]["rows"]
    ]
    head = ["mixture", "callers", "pictures/s", "one caller's", "times one caller", *HEAD, *_SPLIT]
    lines = [
        "",
        f"Mixed sizes, as many as callers, sides of {smallest} to {largest} pixels, each size equally often, over "
        "gRPC, against one caller that paints the same pictures, one size after the other:",
        "",
        *table(head, body),
    ]
    if slowest := document.get("slowest_against_one"):
        verdict = (
            "No mixture of sizes and callers is slower than one caller"
            if slowest["ratio"] >= 1.0
            else "There is a mixture of sizes and callers that is slower than one caller"
        )
        lines += ["", f"{verdict}: the slowest, {slowest['who']}, has **{slowest['ratio']:.2f}** times its rate."]
    return lines


def _energy(document: Document, machine: list[str]) -> list[str]:
    """Joules an image (`nst-bench energy`)."""
    body = [
        [
            *(f"{one['size']}²", one["what"], _number("joules", one["joules"]), f"**{_number('', one['ratio'])}**"),
            *(f"{one['watts']:.0f}", f"{one['pieces']:,}", f"{one['seconds']:.1f}"),
        ]
        for one in document["rows"]
    ]
    head = ["size", "what", "joules an image", "times the network's", "mean power, W", "counted over", "seconds"]
    return [
        *_on(f"`{document['model']['name']}`", machine),
        "Energy of the whole card by its own counter (NVML), without the processor's. The "
        f"{document['idle_watts']:.0f} W that it draws while it does nothing are in it, not subtracted. Served images "
        f"go by shared memory; the optimisation's {document['iterations']} iterations are scaled from those that were "
        "counted.",
        "",
        *table(head, body, left=2),
    ]


def _arrivals(arrivals: Document) -> list[str]:
    found = f"{arrivals['rate']:.2f} a second" if arrivals["rate"] else "none that was tried"
    body = [
        [f"{one['rate']:.2f}", *cells(one, 1), *_split(one), "yes" if one["within"] else "no"]
        for one in arrivals["rows"]
    ]
    return [
        f"Arrivals at random times (Poisson) at {arrivals['size']}². The highest rate at which "
        f"{arrivals['percentile']} % are answered within {arrivals['limit']:.0f} ms, by bisection: **{found}**.",
        "",
        *table(["arrivals/s", *HEAD, *_SPLIT, "within"], body, left=0),
    ]


_SPLIT = ("batch", "queue", "compute", "rest")


def _split(one: Document) -> list[str]:
    return [f"{one['batch']:.2f}", *(f"{one[name]:.1f}" for name in _SPLIT[1:])]


def _rate(one: Document) -> str:
    return f"{one['rate']:.2f}" + (" *unstable*" if one["rate_unstable"] else "")


def _soak(document: Document, machine: list[str]) -> list[str]:
    """Whether memory stopped growing (`nst-bench soak`)."""
    memory = document["memory"]
    errors = sum(document["errors"].values())
    drift = document["latency_drift"]
    body = []
    for name, trend in document["trends"].items():
        values = [memory[position][name] for position in (0, len(memory) // 2, -1)]
        rise = f"{trend['growth']:+.1f} ± {2 * trend['error']:.1f}"
        judged = "grew" if trend["grew"] else "stopped"
        if document["minutes"] < SHORTEST_SOAK:
            judged = "too short to say"
        body.append([name, *(f"{value:.0f}" for value in values), rise, judged])
    return [
        *_on(f"`{document['model']['name']}`", machine),
        f"For {document['minutes']:g} minutes, {document['callers']} callers: "
        f"{document['requests']:,} pictures of {document['shapes']:,} sizes, {errors} errors. "
        + ("Latency was not compared." if drift is None else f"The last third took {drift:.3f} of the middle's time")
        + (" (*unstable*)." if document["latency_unstable"] else "." if drift is not None else ""),
        "",
        "Resident memory, MiB. A line is fitted to the second half; memory grew if the line rises by more than "
        "1 % of the median, by more than twice the error of that rise:",
        "",
        *table(["", "at the start", "at half time", "at the end", "rise in the second half", ""], body),
        *(["", *(f"- {count} x {error}" for error, count in document["errors"].items())] if errors else []),
    ]


def _perf_analyzer(document: Document, machine: list[str]) -> list[str]:
    """Our figures against NVIDIA's (`nst-bench perf-analyzer`)."""
    head = ["", "callers", "pictures/s: ours", "perf_analyzer's", "ratio", "p50, ms: ours", "perf_analyzer's", "ratio"]
    body = []
    for one in document["rows"]:
        shown = [one["protocol"] + mark(one), str(one["callers"])]
        for name, digits in (("rate", 2), ("median", 1)):
            shown += [f"{one[who][name]:.{digits}f}" for who in ("ours", "theirs")]
            shown.append(f"**{one[f'{name}_ratio']:.3f}**")
        body.append(shown)
    return [
        *_on(
            f"`{document['model']['name']}` at {document['size']}², by nst-bench and perf_analyzer in turns,", machine
        ),
        *table(head, body),
        "",
        f"The two are {document['largest_difference']:.1%} apart at most.",
    ]


def _speedup(document: Document, machine: list[str], beside: Sequence[Document] = ()) -> list[str]:
    """The served network against the optimisation (`nst-bench speedup`); a column for each GPU's document."""
    rows = document["rows"]
    columns = [_warm(one) for one in beside]
    first = {(one["engine"], one["size"]): one for one in rows if one["phase"] == "first of a shape"}
    body = []
    for at in dict.fromkeys((*_warm(document), *(at for column in columns for at in column))):
        own = _warm(document).get(at)
        shown = cells(own) if own else [""] * len(HEAD)
        others = [cells(column[at])[0] if at in column else "" for column in columns]
        body.append([f"{at[1]}²", at[0], *shown, narrow(first[at]) if at in first else "", *others])
    body.sort(key=lambda line: int(line[0].removesuffix("²")))
    head = ["size", "engine", *HEAD, "first of a shape", *(f"p50 on {_gpu_name(one)}" for one in beside)]
    return [
        *_on(_model(document["model"]), machine),
        *(line for one in beside for line in ("and", *machine_lines(one), "")),
        "Milliseconds of warm runs, and of the first pictures of new shapes (95th percentile):",
        "",
        *table(head, body, left=2),
        "",
        "Cold starts, once each:",
        "",
        *(f"- {one['engine']}: {one['median'] / 1000:.1f} s" for one in rows if one["phase"] == "cold"),
        "",
        "The optimisation's time is its median iteration times the number of iterations; the ratio is to a picture "
        "over gRPC, network and server included."
        + (" Both on the GPU, the optimisation in PyTorch's precision." if document.get("device") == "GPU" else ""),
        "",
        *_times(document["speedup"]),
        *_equal_loss(document["equal_loss"]),
        *(line for one in beside for line in _beside(one)),
    ]


def _beside(document: Document) -> list[str]:
    """The speed-ups of a GPU's document."""
    return [
        "",
        f"On {_gpu_name(document)}, the network and the optimisation on the GPU:",
        "",
        *_times(document["speedup"]),
        *_equal_loss(document["equal_loss"]),
    ]


def _warm(document: Document) -> dict[tuple[str, int], Document]:
    return {(one["engine"], one["size"]): one for one in document["rows"] if one["phase"] == "steady"}


def _gpu_name(document: Document) -> str:
    return str(document["machine"]["gpu"])


def _times(speedups: list[Document]) -> list[str]:
    """Johnson et al.'s table 1; where pictures went by shared memory too, these ratios as well."""
    sizes = sorted({one["size"] for one in speedups})
    ways = list(dict.fromkeys(one["served"] for one in speedups))
    named = {way: "" if way == ways[0] else f", {way.removeprefix('Triton, ')}" for way in ways}
    head = ["", *(f"{size}²: seconds" for size in sizes)]
    head += [f"{size}²: times slower{named[way]}" for way in ways for size in sizes]
    body = []
    for iterations in dict.fromkeys(one["iterations"] for one in speedups):
        own = [one for one in speedups if one["iterations"] == iterations]
        seconds = [_whole_seconds(one["gatys_seconds"]) for one in own if one["served"] == ways[0]]
        body.append([f"Gatys, {iterations} iterations", *seconds, *(f"**{one['ratio']:,.0f}**" for one in own)])
    return table(head, body)


def _whole_seconds(seconds: float) -> str:
    """A GPU takes some seconds, a processor minutes."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2f}"


def _equal_loss(rows: list[Document]) -> list[str]:
    """The speed-up that counts: until the optimisation's loss is the network's."""
    if not rows:
        return []
    memory = any("shared_memory_ratio" in one for one in rows)
    body = []
    for one in rows:
        if "missing" in one:
            body.append([f"{one['size']}²", f"*{one['missing']}*", *[""] * (7 if memory else 5)])
            continue
        digits = 1 if one["gatys_seconds"] >= 5 else 2
        times = [
            f"{one['gatys_seconds']:.{digits}f} s",
            f"{milliseconds(one['served_ms'])} ms",
            f"**{one['ratio']:,.0f}**",
        ]
        if memory:
            times += [f"{milliseconds(one['shared_memory_ms'])} ms", f"**{one['shared_memory_ratio']:,.0f}**"]
        body.append([f"{one['size']}²", one["photo"], f"{one['loss']:.3f}", str(one["iteration"]), *times])
    head = ["size", "photograph", "the network's loss", "iterations to it", "the optimisation", "served", "times"]
    head += ["by shared memory", "times"] if memory else []
    return ["", "At equal loss:", "", *table(head, body, left=2)]


def _methods(document: Document, machine: list[str]) -> list[str]:
    """Methods against each other, as in the review of Jing et al. (`nst-bench methods`)."""
    body = []
    for one in document["methods"]:
        loss, style = one["loss"], one["new_style"]
        body.append(
            [
                *(one["method"], one["network"] or "", f"{one['parameters']:,}" if one["parameters"] else ""),
                "any" if one["styles"] is None else str(one["styles"]),
                f"*{loss['missing']}*" if "missing" in loss else f"{loss['value']:.3f} ({loss['of']})",
                f"*{style['missing']}*" if "missing" in style else f"{style['seconds']:,.0f} s, {style['from']}",
            ]
        )
    head = ["method", "network", "parameters", "styles", "loss", "time to a new style"]
    return [*machine, *([""] if machine else []), *table(head, body, left=6), "", *_phases(document["rows"])]


def _styles(document: Document, machine: list[str]) -> list[str]:
    """A model of ten styles against a model of one (`nst-bench styles`)."""
    found: dict[tuple[str, str], dict[str, Document]] = {}
    for one in document["rows"]:
        found.setdefault((f"{one['size']}²", one["form"]), {})[one["styles"]] = one
    titles = list(dict.fromkeys(one["styles"] for one in document["rows"]))
    body = []
    for (size, form), own in sorted(found.items(), key=lambda pair: int(pair[0][0].removesuffix("²"))):
        shown = [f"{narrow(own[title], 1)}" if title in own else "" for title in titles]
        ratios = [f"**{own[title]['ratio']:.2f}**" if title in own else "" for title in titles[1:]]
        body.append([size, form, *shown, *ratios])
    return [
        *machine,
        *([""] if machine else []),
        f"`{document['network']}`, milliseconds, median (95th percentile), in turns:",
        "",
        *table(["size", "", *titles, *(f"{title}: times" for title in titles[1:])], body, left=2),
    ]


def several_styles(document: Document) -> str:
    """What a model of several styles takes at 512 x 512, in words, for a page's running text."""
    alone = document["rows"][0]["styles"]  # what the others are compared with
    ratios = [one["ratio"] for one in document["rows"] if one["size"] == 512 and one["styles"] != alone]
    return f"{min(ratios):.2f} to {max(ratios):.2f} times as long as a network of one style"


def _list(document: Document, machine: list[str]) -> list[str]:
    """Any suite whose document is a list of rows."""
    model = document.get("model")
    lines = _on(_model(model), machine) if model else [*machine, *([""] if machine else [])]
    command = [f"Again: `{document['command']}`.", ""] if "command" in document else []
    return [*lines, *command, *_phases(document["rows"])]


def _model(model: Document) -> str:
    known = [str(model["network"])] if model.get("network") else []
    known += [f"width {model['width']:g}"] if model.get("width") else []
    known += [f"{model['parameters']:,} parameters"] if "parameters" in model else []
    return f"`{model['name']}`" + (f" ({', '.join(known)})" if known else "")


def _phases(rows: list[Document]) -> list[str]:
    """A table for each phase that the rows have, milliseconds: warm runs, first pictures of a shape, cold starts."""
    titles = {"steady": "Warm runs", "first of a shape": "First pictures of new shapes", "cold": "Cold starts"}
    known = dict.fromkeys((*titles, *(one.get("phase") for one in rows)))
    lines = []
    for phase in known:
        own = [one for one in rows if one.get("phase") == phase]
        if own:
            title = f"{titles[phase]}, milliseconds:" if phase in titles else "Milliseconds:"
            lines += [title, "", *_rows([{k: v for k, v in one.items() if k != "phase"} for one in own]), ""]
    return lines[:-1]


def _rows(rows: list[Document]) -> list[str]:
    """What says which row it is, its summary, and its other figures; at the end what is missing, sizes together."""
    measured = [one for one in rows if "missing" not in one]
    missing: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for one in rows:
        if "missing" in one:
            words = ({**identity(one), "missing": one["missing"]}).items()
            rest = tuple(pair for pair in words if pair[0] != "size")
            missing.setdefault(rest, []).extend(word for name, word in words if name == "size")
    names = list(dict.fromkeys(name for one in rows for name in identity(one)))
    names += ["version"] if any("version" in one for one in rows) else []
    others = list(dict.fromkeys(name for one in measured for name, value in one.items() if _other(name, value)))
    body = [
        [
            *({**identity(one), "version": str(one.get("version") or "")}.get(name, "") for name in names),
            *cells(one),
            *(_number(name, one.get(name)) for name in others),
        ]
        for one in measured
    ]
    for rest, sizes in missing.items():
        said = {**dict(rest), "size": ", ".join(sizes)}
        body.append([*(said.get(name, "") for name in names), *cells(said), *[""] * len(others)])
    head = [
        *(name.replace("_", " ") for name in names),
        *HEAD,
        *(_TITLES.get(name, name.replace("_", " ")) for name in others),
    ]
    return table(head, body, left=len(names))


_SUMMARY = ("n", "median", "p95", "p99", "minimum", "maximum", "spread", "unstable", "samples")
_TITLES = {
    "gflop": "GFLOP",
    "share_of_matrix_rate": "of the matrix rate",
    "share_of_bandwidth": "of the bandwidth",
    "peak_mib": "peak MiB",
    "picture_seconds": "a picture, s",
    "ratio": "times",
}


def _other(name: str, value: Any) -> bool:
    """A number that is neither of the summary nor says which row it is."""
    known = name in (*_SUMMARY, "height", "width") or name in identity({name: value})
    return not known and isinstance(value, int | float)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.startswith("share_"):
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


TABLES: dict[str, Callable[[Document, list[str]], list[str]]] = {
    SPEEDUP: _speedup,
    "nst-bench-energy/1": _energy,
    "nst-bench-styles/1": _styles,
    "nst-bench-methods/1": _methods,
    "nst-bench-gatys/1": _optimization,
    "nst-bench-quality/1": _quality,
    "nst-bench-frontier/1": _frontier,
    "nst-bench-training/1": _training,
    "nst-bench-export/1": _export,
    "nst-bench-serving/1": _serving,
    "nst-bench-soak/1": _soak,
    "nst-bench-perf-analyzer/1": _perf_analyzer,
}
"""How a document of each schema is shown; those of the others are lists of rows."""

WORDS: dict[str, Callable[[Document], str]] = {"nst-bench-styles/1": several_styles}
"""What a suite says in a page's running text, by schema."""
