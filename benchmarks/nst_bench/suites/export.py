"""The effect of each graph rewrite of the export, on each installed engine.

The same network with random weights (they do not affect the speed) is exported without rewrites, with each rewrite
alone, and with all rewrites for an engine; every form first passes the exporter's check against PyTorch. On a GPU,
ONNX Runtime CUDA in FP32 and TensorRT in FP16 are measured, including the copies from and to main memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from nst_bench.drawing.tables import columns, pivot, with_ratio
from nst_bench.drawing.words import shown
from nst_bench.measure import against_first, in_turns
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_core import devices
from nst_core.contract import IMAGE
from nst_core.devices import Gpu
from nst_core.engines import building, plans
from nst_core.errors import NstError
from nst_core.images import Pixels
from nst_export.graph.conversion import export_onnx, write_onnx
from nst_export.graph.half_precision import to_half
from nst_export.graph.rewrites import DEFAULT_REWRITES, apply_rewrites
from nst_export.inspection import arithmetic
from nst_export.modules import ServedModel
from nst_export.tensorrt import import_tensorrt, require_gpu
from nst_export.verification.agreement import TOLERANCES, Engine, require_agreement
from nst_export.verification.cpu import installed_providers, onnx_engines, open_session
from nst_export.verification.examples import example_feeds, photograph_batches
from nst_export.verification.gpu import GPU_TOLERANCES, cuda_engine, missing_packages, tensorrt_engine
from nst_export.verification.pytorch import run_pytorch, verify
from nst_trainer.checkpoint import frozen
from nst_trainer.networks import Fast, Johnson

PLAIN, ALL = "plain", "all for the CPU"
FOR_TENSORRT = "for TensorRT"

NORMS = ("group-norm", "decomposed-norm")
"""Alternative forms of the normalisation."""

CPU_FORMS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    **{name: (name,) for name in DEFAULT_REWRITES["cpu"] if name != "wrap"},  # no circular padding in these networks
    ALL: DEFAULT_REWRITES["cpu"],
    **{name: (name,) for name in NORMS},
}
"""The rewrites of each form; the others are compared with the first."""

CUDA_FORMS = {PLAIN: (), "upsample": ("upsample",), **{name: (name,) for name in NORMS}}

TENSORRT_FORMS: dict[str, tuple[str, ...]] = {
    FOR_TENSORRT: DEFAULT_REWRITES["tensorrt"],
    "upsample-windows": (
        "upsample-windows",
        *(name for name in DEFAULT_REWRITES["tensorrt"] if name != "upsample-3x3"),
    ),
    **{name: (*DEFAULT_REWRITES["tensorrt"], name) for name in NORMS},
}

ODD = (1, 333, 501)
"""Batch, height, width of an additional image that an engine on the GPU is checked with."""

Run = Callable[[Pixels], object]


@dataclass(frozen=True)
class _Engine:
    """An engine for GPUs: its name, its forms, and their precision."""

    name: str
    target: Literal["onnx", "tensorrt"]
    forms: dict[str, tuple[str, ...]]
    precision: Literal["fp32", "fp16"]

    def missing(self) -> str | None:
        """Return why it does not run here, or None."""
        found, reason = devices.gpus()
        if not found:
            return reason
        try:
            require_gpu()
            if self.target == "tensorrt":
                import_tensorrt("tensorrt")
        except NstError as error:
            return str(error)
        return missing_packages(self.target)

    @contextmanager
    def running(self, graph: Path, largest: int, gpu: Gpu) -> Iterator[Engine]:
        """Yield the engine with a graph, for sides of up to `largest` pixels. Raises `ExportError`, `PlanError`."""
        if self.target == "onnx":
            with cuda_engine(graph, gpu) as engine:
                yield engine
            return
        profile = plans.Profile.parse(f"64x64/{largest}x{largest}/{largest}x{largest}")
        plan = building.build(graph.read_bytes(), profile, Fast.multiple, library=import_tensorrt("tensorrt"))
        with tensorrt_engine(plan, "tensorrt", gpu) as engine:
            yield engine


GPU_ENGINES = (
    _Engine("TensorRT", "tensorrt", TENSORRT_FORMS, "fp16"),
    _Engine("ONNX Runtime CUDA", "onnx", CUDA_FORMS, "fp32"),
)


@dataclass(frozen=True)
class ExportEffort(Effort):
    """`rounds` of warm runs on images of `sizes`^2 pixels; `widths` of Johnson's network on a CPU."""

    rounds: int = 9
    widths: tuple[float, ...] = (1.0, 0.5, 0.25)
    sizes: tuple[int, ...] = (256, 512)


def measure(context: Context[ExportEffort]) -> Document:
    """Measure the effect of each graph rewrite of the export.

    Runs every form of the graph on each installed engine.
    """
    # Johnson's network on the engines for CPUs, the fast network at width 1 on those for GPUs. An engine that cannot
    # run has a row with the reason.
    if context.device.gpu is None:
        rows = [row for width in context.effort.widths for row in _on_cpu(width, context)]
        rows += [_missing(engine, context, engine.missing() or context.device.reason) for engine in GPU_ENGINES]
    else:
        rows = [row for engine in GPU_ENGINES for row in _on_gpu(engine, context.device.gpu, context)]
    return {"rows": rows}


def _on_cpu(width: float, context: Context[ExportEffort]) -> Iterator[Document]:
    model, effort = _served(Johnson(width=width)), context.effort
    with tempfile.TemporaryDirectory() as folder:
        files = _files(model, CPU_FORMS, Path(folder))
        for file in files.values():
            verify(model, onnx_engines(file), TOLERANCES["fp32"])
        flop = _arithmetic(files, effort.sizes)
        for engine, provider in installed_providers().items():
            works: dict[str, Run] = {
                form: partial(_run_session, open_session(file, provider)) for form, file in files.items()
            }
            for size in effort.sizes:
                figures = _race(works, size, effort.rounds)
                about = {"engine": engine, "network": Johnson.name, "precision": "fp32", "width": width, "size": size}
                yield from _rows(about, figures, flop)
                share = f"all rewrites take {figures[ALL]['ratio']:.2f} of the time without rewrites"
                context.on_progress(f"width {width:g}, {size} x {size}, {engine}: {share}")


def _run_session(session: Any, image: Pixels) -> object:
    """Run the session."""
    return session.run(None, {IMAGE: image})


def _on_gpu(engine: _Engine, gpu: Gpu, context: Context[ExportEffort]) -> Iterator[Document]:
    if reason := engine.missing():
        yield _missing(engine, context, reason)
        return
    model, sizes = _served(Fast()), context.effort.sizes
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = _files(model, engine.forms, Path(folder))
        flop = _arithmetic(files, sizes)
        works: dict[str, Run] = {}
        for form, file in files.items():
            try:
                works[form] = stack.enter_context(_checked(engine, model, file, sizes, gpu))
                context.on_progress(f"{engine.name}, {form}: built and checked")
            except (NstError, plans.PlanError) as error:
                yield _missing(engine, context, str(error), form)
        for size in sizes if works else ():
            about = {"engine": engine.name, "network": Fast.name, "precision": engine.precision}
            figures = _race(works, size, context.effort.rounds)
            yield from _rows(about | {"width": 1.0, "size": size}, figures, flop)


@contextmanager
def _checked(engine: _Engine, model: ServedModel, file: Path, sizes: Sequence[int], gpu: Gpu) -> Iterator[Run]:
    """Yield what runs a form of the graph, checked on the GPU. Raises as `_Engine.running`."""
    graph = file.with_suffix(f".{engine.precision}.onnx")
    proto = onnx.load(file)
    if engine.precision == "fp16":
        to_half(proto)
    write_onnx(proto, graph, {})
    limits, shapes = GPU_TOLERANCES[engine.precision], [*((1, size, size) for size in sizes), ODD]
    with engine.running(graph, max(*sizes, *ODD), gpu) as running:
        feeds = example_feeds(model.inputs, shapes)
        require_agreement(feeds, lambda feed: run_pytorch(model, feed), [running], limits)
        yield lambda image: running.run({IMAGE: image})


def _served(network: Johnson | Fast) -> ServedModel:
    torch.manual_seed(0)
    return ServedModel(frozen(network)).eval()


def _files(model: ServedModel, forms: dict[str, tuple[str, ...]], folder: Path) -> dict[str, Path]:
    """Export the graph of every form in FP32."""
    plain = folder / "plain.onnx"
    export_onnx(model, plain, {"multiple": str(model.network.multiple)})
    files = {form: folder / f"{number}.onnx" for number, form in enumerate(forms)}
    for form, names in forms.items():
        proto = onnx.load(plain)
        apply_rewrites(proto, names)
        write_onnx(proto, files[form], {})
    return files


def _arithmetic(files: dict[str, Path], sizes: Sequence[int]) -> dict[str, dict[int, int]]:
    """Return the FLOP of the convolutions by form and size."""
    protos = {form: onnx.load(file) for form, file in files.items()}
    return {form: {size: arithmetic(proto, size) for size in sizes} for form, proto in protos.items()}


def _race(works: dict[str, Run], size: int, rounds: int) -> dict[str, Document]:
    """Measure warm runs of every form in turn; the ratio is to the first form."""
    image = photograph_batches([(1, size, size)])[0]
    turns: dict[str, Callable[[], object]] = {form: partial(work, image) for form, work in works.items()}
    return against_first(in_turns(turns, 0.0, rounds, rounds))


def _rows(about: Document, figures: dict[str, Document], flop: dict[str, dict[int, int]]) -> Iterator[Document]:
    for form, figure in figures.items():
        yield about | {"form": form, "gflop": flop[form][about["size"]] / 1e9} | figure


def _missing(engine: _Engine, context: Context[ExportEffort], reason: str, form: str | None = None) -> Document:
    """Return the row of a form that was not measured."""
    about = {"engine": engine.name, "network": Fast.name, "precision": engine.precision, "width": 1.0}
    return about | {"size": max(context.effort.sizes), "form": form or next(iter(engine.forms)), "missing": reason}


def tables(document: Document) -> list[str]:
    """Render the effect of the rewrites; older documents have only one network."""
    rows = [row for row in document["rows"] if "missing" not in row]
    lines = []
    if rows:
        network = columns("network | width", "{network}, {precision} | {width:g}")
        largest = max(row["size"] for row in rows)
        lines += [
            "Warm runs in milliseconds, median (95th percentile), and in bold relative to the first form; *plain* is "
            "the graph without rewrites:",
            "",
            *pivot(rows, {"engine": "{engine}", **network, "size": "{size}²"}, across="form", cell=with_ratio),
            "",
            f"GFLOP of the convolutions at {largest}², on any engine:",
            "",
            *pivot([row for row in rows if row["size"] == largest], network, across="form", cell="{gflop:.1f}"),
        ]
        if any(row["form"] == FOR_TENSORRT for row in rows):
            first = f"its times are relative to *{shown(FOR_TENSORRT)}*"
            lines += ["", f"TensorRT cannot build the plain graph for dynamic sides; {first}."]
    missing = [row for row in document["rows"] if "missing" in row]
    reasons = dict.fromkeys(f"{row['engine']}, {shown(row['form'])}: {row['missing']}" for row in missing)
    return [*lines, *(["", f"Not measured: {'; '.join(reasons)}."] if reasons else [])]


SUITE = Suite(
    name="export",
    title="Graph rewrites",
    measure=measure,
    tables=tables,
    effort=ExportEffort(),
    on_cpu={"full": Cost(350, ExportEffort())},
    on_gpu=dict.fromkeys(("command", "default", "full"), Cost(120, ExportEffort(rounds=60))),
    rank=130,
)
