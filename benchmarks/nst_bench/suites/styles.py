"""What several styles in one model cost: a network of ten styles against the same network of one, in turns.

Alone: the graphs as `nst-export` writes them for this device, on the engine that serves them, in FP32 and in half
precision, and the two halves of the tiled form. Served: both models in one Triton. A model of ten styles stylizes in
one of them and in a mix. The weights are random, which no engine looks at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from nst_bench.engines.bare import BareModel
from nst_bench.machine.description import document_header
from nst_bench.measure import REST, interleaved, summarize, timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.export import export_checkpoint
from nst_client import StyleClient
from nst_core.contract import IMAGE, STATISTICS, STYLE_WEIGHTS
from nst_core.devices import Device
from nst_export.graph.conversion import export_onnx, write_onnx
from nst_export.graph.half_precision import to_half
from nst_export.graph.rewrites import DEFAULT_REWRITES, apply_rewrites
from nst_export.modules import Exportable, ServedModel, StatisticsModel, TiledModel
from nst_export.verification.cpu import installed_providers, open_session
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import Installation
from nst_server.process.supervisor import run_triton
from nst_trainer.checkpoint import Checkpoint, frozen
from nst_trainer.networks import ARCHITECTURES, StyledNetwork

SCHEMA = "nst-bench-styles/1"

STYLES = 10
ONE, OF_TEN, MIX = "a model of one style", "one of ten styles", "a mix of ten styles"
"""What takes turns; the first is what the others are compared with."""

FORMS: dict[str, tuple[type[Exportable], bool]] = {
    "alone, FP32": (ServedModel, False),
    "alone, FP16": (ServedModel, True),
    "alone, a tile": (TiledModel, False),
    "alone, statistics for the tiles": (StatisticsModel, False),
}
"""By name: what is exported, and whether in half precision."""

FEWEST, MOST = 10, 200
"""Rounds of a form and size."""


@dataclass(frozen=True)
class Effort:
    """Sides of the images in pixels, the seconds for one form at one of them, and those that warm up each model."""

    sizes: tuple[int, ...]
    seconds: float
    warm_up: float = 0.0

    def scaled(self, share: float) -> Effort:
        """For a share of the time."""
        return self if share >= 1.0 else replace(self, seconds=share * self.seconds, warm_up=share * self.warm_up)


SHORT = Effort((512,), 3.0, 4.0)
FULL = Effort((256, 512, 1024), 12.0, 8.0)
CARD = Effort((256, 512, 1024), 2.0, 1.0)
"""On a GPU, where an image takes milliseconds."""


def measure(
    checkpoint: Checkpoint,
    installation: Installation,
    device: Device,
    *,
    effort: Effort = FULL,
    on_progress: Callable[[str], None] = lambda note: None,
    keep: Callable[[dict[str, Any]], None] = lambda document: None,
) -> dict[str, Any]:
    """The network of `checkpoint` with one style and with ten, alone and served; a document.

    `keep` gets the document after every form.
    """
    network = checkpoint.network
    arguments = {key: value for key, value in network.arguments.items() if key != "styles"}
    networks = {count: _network(network.name, arguments, count) for count in (1, STYLES)}
    document = {**document_header(SCHEMA), "network": network.name, **arguments, "rows": []}
    for rows in _rows(networks, installation, device, effort):
        document["rows"] += rows
        slowest = max(rows, key=lambda row: float(row["ratio"]))
        on_progress(f"{slowest['form']}, {slowest['size']} x {slowest['size']}: {slowest['ratio']:.2f} times as long")
        keep(document)
    return document


def _network(name: str, arguments: Mapping[str, Any], styles: int) -> StyledNetwork:
    torch.manual_seed(0)
    return frozen(ARCHITECTURES[name](**arguments, styles=styles))


def _rows(
    networks: Mapping[int, StyledNetwork], installation: Installation, device: Device, effort: Effort
) -> Iterator[list[dict[str, Any]]]:
    if device.gpu is None:
        for form in FORMS:
            yield from _alone(form, networks, effort)
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "model_repository"
        one, several = (
            export_checkpoint(
                Checkpoint(network, tuple(f"style-{number}" for number in _numbers(count))), repository, device
            )
            for count, network in networks.items()
        )
        if device.gpu:
            bare = {what: BareModel(repository / model) for what, model in ((ONE, one), (OF_TEN, several))}
            for size in effort.sizes:
                pixels = sample_photograph(size, size)
                works = {what: partial(engine.stylize, pixels) for what, engine in bare.items()}
                yield _race("alone", size, works, effort)
        endpoints = Endpoints.free()
        with run_triton(installation, repository, endpoints, Path(scratch) / "triton.log"):
            yield from _served(endpoints, effort)


def _numbers(count: int) -> range:
    """Of a model's styles: no two models have one of the same name."""
    return range(1) if count == 1 else range(1, count + 1)


def _alone(form: str, networks: Mapping[int, StyledNetwork], effort: Effort) -> Iterator[list[dict[str, Any]]]:
    """A form of the graph on the engine that serves it."""
    made, half = FORMS[form]
    *_, provider = installed_providers().values()
    with tempfile.TemporaryDirectory() as folder:
        models = {count: made(network).eval() for count, network in networks.items()}
        sessions = {
            count: open_session(_exported(model, Path(folder) / f"{count}.onnx", half), provider)
            for count, model in models.items()
        }
    for size in effort.sizes:
        feeds = {what: _feeds(models[count], size, shares) for what, (count, shares) in _turns().items()}
        works = {what: partial(sessions[count].run, None, feeds[what], None) for what, (count, _) in _turns().items()}
        yield _race(form, size, works, effort)


def _turns() -> dict[str, tuple[int, Mapping[int, float]]]:
    """What takes turns: how many styles its model has, and the shares of those that it is asked for."""
    return {ONE: (1, {}), OF_TEN: (STYLES, {3: 1.0}), MIX: (STYLES, {3: 0.6, 5: 0.4})}


def _exported(model: Exportable, file: Path, half: bool) -> Path:
    export_onnx(model, file, {"multiple": str(model.network.multiple)})
    proto = onnx.load(file)
    apply_rewrites(proto, DEFAULT_REWRITES["cpu"])
    if half:
        to_half(proto)
    write_onnx(proto, file, {})
    return file


def _feeds(model: Exportable, size: int, shares: Mapping[int, float]) -> dict[str, Any]:
    """Its inputs for one image; the statistics are those of a normalisation that changes nothing."""
    feeds: dict[str, Any] = {}
    for spec in model.inputs:
        if spec.name == IMAGE:
            feeds[spec.name] = sample_photograph(size, size)[None]
        elif spec.name == STYLE_WEIGHTS:
            weights = np.zeros((1, int(spec.axes[1])), np.float32)
            weights[0, list(shares)] = list(shares.values())
            feeds[spec.name] = weights
        elif spec.name == STATISTICS:
            feeds[spec.name] = np.ones((1, int(spec.axes[1])), np.float32)
    return feeds


def _served(endpoints: Endpoints, effort: Effort) -> Iterator[list[dict[str, Any]]]:
    """Both models in one Triton, over gRPC and by shared memory."""
    asked: dict[str, str | dict[str, float]] = {
        ONE: "style-0",
        OF_TEN: "style-4",
        MIX: {"style-4": 0.6, "style-6": 0.4},
    }
    for form, shared in (("served, gRPC", False), ("served, shared memory", True)):
        with ExitStack() as stack:
            client = stack.enter_context(StyleClient(endpoints.grpc, timeout=300.0, shared_memory=shared))
            for size in effort.sizes:
                pixels = sample_photograph(size, size)
                works = {what: partial(client.stylize, pixels, style) for what, style in asked.items()}
                yield _race(form, size, works, effort)


def _warm(work: Callable[[], object], seconds: float) -> None:
    """Run at least three times: the first image of a shape is another figure, and the second records a CUDA graph.

    And for so long: in its first seconds the second model of a server was seen to take a sixth longer.
    """
    taken, runs = 0.0, 0
    while runs < 3 or taken < seconds:
        taken, runs = taken + timed(work), runs + 1


def _race(form: str, size: int, works: Mapping[str, Callable[[], object]], effort: Effort) -> list[dict[str, Any]]:
    """Warm runs in turns; each row with its ratio to the first's median."""
    for work in works.values():
        _warm(work, effort.warm_up)
    turn = timed(lambda: [work() for work in works.values()]) + REST * len(works)
    rounds = min(MOST, max(FEWEST, round(effort.seconds / turn)))
    summaries = {what: summarize(seconds) for what, seconds in interleaved(works, rounds, rest=REST).items()}
    first = summaries[ONE].median
    return [
        {"form": form, "styles": what, "size": size, **asdict(summary), "ratio": summary.median / first}
        for what, summary in summaries.items()
    ]
