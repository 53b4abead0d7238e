"""The cost of several styles in one model: a network of ten styles against the same network of one, in turns.

In-process: the exported graphs on the engine that serves them, in FP32 and in half precision, and both graphs of the
tiled form. Served: both models in one Triton. The model of ten styles stylizes in one of them, and in an interpolation
of two. The weights are random, which does not affect the speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from nst_bench import options
from nst_bench.drawing.tables import columns, pivot, with_ratio
from nst_bench.drawing.words import shown
from nst_bench.engines.baseline import Baseline
from nst_bench.measure import against_first, in_turns
from nst_bench.photographs import sample_photograph
from nst_bench.served.exported import export_checkpoint
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_client import StyleClient
from nst_core.contract import IMAGE, STATISTICS, STYLE_WEIGHTS
from nst_export.graph.conversion import export_onnx, write_onnx
from nst_export.graph.half_precision import to_half
from nst_export.graph.rewrites import DEFAULT_REWRITES, apply_rewrites
from nst_export.modules import Exportable, ServedModel, StatisticsModel, TiledModel
from nst_export.verification.cpu import installed_providers, open_session
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import Installation, find_triton
from nst_server.process.supervisor import run_triton
from nst_trainer.checkpoint import Checkpoint, frozen, load
from nst_trainer.networks import ARCHITECTURES, StyledNetwork

STYLES = 10
ONE, OF_TEN, INTERPOLATED = "a model of one style", "one of ten styles", "two of ten styles, interpolated"
"""What takes turns; the others are compared with the first."""

FORMS: dict[str, tuple[type[Exportable], bool]] = {
    "alone, FP32": (ServedModel, False),
    "alone, FP16": (ServedModel, True),
    "alone, a tile": (TiledModel, False),
    "alone, statistics for the tiles": (StatisticsModel, False),
}
"""What is exported, and whether in half precision, by name."""

FEWEST_ROUNDS, MOST_ROUNDS = 10, 200
"""Rounds per form and size."""


@dataclass(frozen=True)
class StylesEffort(Effort):
    """Sides of the images in pixels, seconds per form and size, and seconds of warm-up per model."""

    sizes: tuple[int, ...]
    seconds: float
    warm_up: float = 0.0

    takes_time = ("seconds", "warm_up")


def measure(
    context: Context[StylesEffort],
    *,
    checkpoint: options.Checkpoint = options.CHECKPOINT,
    triton: options.Triton = options.TRITON,
) -> Document:
    """Measure the cost of several styles in one model.

    Compares a network of ten styles with the same network of one style, in-process and served. Takes about a minute,
    with --full seven.
    """
    installation = find_triton(triton, context.on_progress, device=context.device)
    network = load(checkpoint).network
    arguments = {key: value for key, value in network.arguments.items() if key != "styles"}
    networks = {count: _network(network.name, arguments, count) for count in (1, STYLES)}
    document = {"network": network.name, **arguments, "rows": []}
    for rows in _rows(networks, installation, context):
        document["rows"] += rows
        slowest = max(rows, key=lambda row: float(row["ratio"]))
        at = f"{shown(slowest['form'])}, {slowest['size']} x {slowest['size']}"
        context.on_progress(f"{at}: {slowest['ratio']:.2f} times as long as one style")
        context.keep(document)
    return document


def _network(name: str, arguments: Mapping[str, Any], styles: int) -> StyledNetwork:
    torch.manual_seed(0)
    return frozen(ARCHITECTURES[name](**arguments, styles=styles))


def _rows(
    networks: Mapping[int, StyledNetwork], installation: Installation, context: Context[StylesEffort]
) -> Iterator[list[Document]]:
    device, effort = context.device, context.effort
    if device.gpu is None:
        for form in FORMS:
            yield from _alone(form, networks, effort)
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "model_repository"
        models = {count: Checkpoint(network, _style_names(count)) for count, network in networks.items()}
        names = {count: export_checkpoint(model, repository, device) for count, model in models.items()}
        if device.gpu:
            bare = {what: Baseline(repository / names[count]) for what, count in ((ONE, 1), (OF_TEN, STYLES))}
            for size in effort.sizes:
                pixels = sample_photograph(size, size)
                works = {what: partial(model.stylize, pixels) for what, model in bare.items()}
                yield _race("alone", size, works, effort)
        endpoints = Endpoints.free()
        with run_triton(installation, repository, endpoints, Path(scratch) / "triton.log"):
            yield from _served(endpoints, effort)


def _style_names(count: int) -> tuple[str, ...]:
    """Return the names of a model's styles; no two models share one."""
    return tuple(f"style-{number}" for number in (range(1) if count == 1 else range(1, count + 1)))


def _alone(form: str, networks: Mapping[int, StyledNetwork], effort: StylesEffort) -> Iterator[list[Document]]:
    """Measure a form of the graph on the engine that serves it."""
    made, half = FORMS[form]
    *_, provider = installed_providers().values()
    with tempfile.TemporaryDirectory() as folder:
        models = {count: made(network).eval() for count, network in networks.items()}
        sessions = {
            count: open_session(_exported(model, Path(folder) / f"{count}.onnx", half), provider)
            for count, model in models.items()
        }
    for size in effort.sizes:
        feeds = {what: _feeds(models[count], size, weights) for what, (count, weights) in _turns().items()}
        works = {what: partial(sessions[count].run, None, feeds[what], None) for what, (count, _) in _turns().items()}
        yield _race(form, size, works, effort)


def _turns() -> dict[str, tuple[int, Mapping[int, float]]]:
    """Return what takes turns: the number of styles of its model, and its style weights."""
    return {ONE: (1, {}), OF_TEN: (STYLES, {3: 1.0}), INTERPOLATED: (STYLES, {3: 0.6, 5: 0.4})}


def _exported(model: Exportable, file: Path, half: bool) -> Path:
    export_onnx(model, file, {"multiple": str(model.network.multiple)})
    proto = onnx.load(file)
    apply_rewrites(proto, DEFAULT_REWRITES["cpu"])
    if half:
        to_half(proto)
    write_onnx(proto, file, {})
    return file


def _feeds(model: Exportable, size: int, weights: Mapping[int, float]) -> dict[str, Any]:
    """Return the inputs for one image; the statistics are those of an identity normalisation."""
    feeds: dict[str, Any] = {}
    for spec in model.inputs:
        if spec.name == IMAGE:
            feeds[spec.name] = sample_photograph(size, size)[None]
        elif spec.name == STYLE_WEIGHTS:
            feeds[spec.name] = np.zeros((1, int(spec.axes[1])), np.float32)
            feeds[spec.name][0, list(weights)] = list(weights.values())
        elif spec.name == STATISTICS:
            feeds[spec.name] = np.ones((1, int(spec.axes[1])), np.float32)
    return feeds


def _served(endpoints: Endpoints, effort: StylesEffort) -> Iterator[list[Document]]:
    """Measure both models in one Triton, over gRPC and by shared memory."""
    asked: dict[str, str | dict[str, float]] = {
        ONE: "style-0",
        OF_TEN: "style-4",
        INTERPOLATED: {"style-4": 0.6, "style-6": 0.4},
    }
    for form, shared in (("served, gRPC", False), ("served, shared memory", True)):
        with ExitStack() as stack:
            client = stack.enter_context(StyleClient(endpoints.grpc, timeout=300.0, shared_memory=shared))
            for size in effort.sizes:
                pixels = sample_photograph(size, size)
                works = {what: partial(client.stylize, pixels, style) for what, style in asked.items()}
                yield _race(form, size, works, effort)


def _race(form: str, size: int, works: Mapping[str, Callable[[], object]], effort: StylesEffort) -> list[Document]:
    """Measure warm runs in turns, with the ratio to the first's median."""
    summaries = in_turns(works, effort.seconds, FEWEST_ROUNDS, MOST_ROUNDS, warm_up=effort.warm_up)
    rows = against_first(summaries).items()
    return [{"form": form, "styles": what, "size": size, **row} for what, row in rows]


def tables(document: Document) -> list[str]:
    """Render a model of ten styles against a model of one style."""
    return [
        f"`{document['network']}`: milliseconds, median (95th percentile), and in bold relative to the first column:",
        "",
        *pivot(document["rows"], columns("size | form", "{size}² | {form}"), across="styles", cell=with_ratio),
    ]


def in_words(document: Document) -> str:
    """Render the time of a model of several styles at 512 x 512, for a page's running text."""
    alone = document["rows"][0]["styles"]
    ratios = [row["ratio"] for row in document["rows"] if row["size"] == 512 and row["styles"] != alone]
    return f"{min(ratios):.2f} to {max(ratios):.2f} times as long as a network of one style"


SHORT = StylesEffort((512,), 3.0, 4.0)
FULL = StylesEffort((256, 512, 1024), 12.0, 8.0)
GPU = StylesEffort((256, 512, 1024), 2.0, 1.0)
"""On a GPU, an image takes milliseconds."""

SUITE = Suite(
    name="styles",
    title="Several styles in one model",
    measure=measure,
    tables=tables,
    in_words=in_words,
    effort=SHORT,
    on_cpu={"default": Cost(65, SHORT), "full": Cost(400, FULL)},
    on_gpu={"command": Cost(90, GPU), "full": Cost(90, GPU)},
    rank=40,
)
