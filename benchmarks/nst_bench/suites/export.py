"""What each rewrite of the exported graph saves, on each engine that is installed here.

The same network (random weights: no engine looks at them) exported plainly, with each rewrite alone and with all that
an engine gets; every form first passes the exporter's gate against PyTorch. On a machine with a GPU its engines are
measured: ONNX Runtime CUDA in FP32 and TensorRT in FP16, with the copies from and to main memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch

from nst_bench.machine.description import document_header
from nst_bench.measure import interleaved, summarize
from nst_bench.tables import OURS
from nst_core import devices
from nst_core.contract import IMAGE
from nst_core.devices import Device, Gpu
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

SCHEMA = "nst-bench-export/1"
WIDTHS = (1.0, 0.5, 0.25)
SIZES = (256, 512)

PLAIN, ALL = "plain", "all for the CPU"

NORMS = ("group-norm", "decomposed-norm")
"""Other forms of the normalisation than the graph's own."""

CPU_FORMS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    **{name: (name,) for name in DEFAULT_REWRITES["cpu"] if name != "wrap"},  # no circular padding in these networks
    ALL: DEFAULT_REWRITES["cpu"],
    **{name: (name,) for name in NORMS},
}
"""The rewrites of each form, the first of which the others are compared with."""

CUDA_FORMS = {PLAIN: (), "upsample": ("upsample",), **{name: (name,) for name in NORMS}}

TENSORRT_FORMS: dict[str, tuple[str, ...]] = {
    OURS: DEFAULT_REWRITES["tensorrt"],
    "upsample-windows": (
        "upsample-windows",
        *(name for name in DEFAULT_REWRITES["tensorrt"] if name != "upsample-3x3"),
    ),
    **{name: (*DEFAULT_REWRITES["tensorrt"], name) for name in NORMS},
}

ODD = (1, 333, 501)
"""Batch, height, width of a picture that an engine on the GPU is checked with besides those that are timed."""

Paint = Callable[[Pixels], object]


@dataclass(frozen=True)
class _Engine:
    """An engine for GPUs: its name, its forms and their precision, and what runs a graph."""

    name: str
    target: Literal["onnx", "tensorrt"]
    forms: dict[str, tuple[str, ...]]
    precision: Literal["fp32", "fp16"]

    def missing(self) -> str | None:
        """Why it does not run here."""
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
        """The engine with a graph, for pictures of up to `largest` pixels a side; raises `ExportError`, `PlanError`."""
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


def measure(
    *,
    device: Device | None = None,
    widths: tuple[float, ...] = WIDTHS,
    sizes: tuple[int, ...] = SIZES,
    rounds: int | None = None,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Every form of the networks on pictures of `sizes`^2 pixels, `rounds` warm runs each in turn.

    On a CPU Johnson's network at `widths` on the engines for it, nine rounds; on a GPU the fast network at width 1 on
    those for the GPU, sixty. `device` None is the GPU if there is one. What cannot run has a row with the reason.
    """
    device = device or devices.choose()
    if device.gpu is None:
        rows = [row for width in widths for row in _on_cpu(width, sizes, rounds or 9, on_progress)]
        rows += [_missing(engine, sizes, engine.missing() or device.reason) for engine in GPU_ENGINES]
    else:
        rows = [row for engine in GPU_ENGINES for row in _on_gpu(engine, device.gpu, sizes, rounds or 60, on_progress)]
    return {**document_header(SCHEMA), "rows": rows}


def _on_cpu(
    width: float, sizes: Sequence[int], rounds: int, on_progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    model = _served(Johnson(width=width))
    with tempfile.TemporaryDirectory() as folder:
        files = _files(model, CPU_FORMS, Path(folder))
        for file in files.values():
            verify(model, onnx_engines(file), TOLERANCES["fp32"])
        flop = _arithmetic(files, sizes)
        for engine, provider in installed_providers().items():
            sessions = {form: open_session(file, provider) for form, file in files.items()}
            works: dict[str, Paint] = {
                form: partial(lambda session, picture: session.run(None, {IMAGE: picture}), session)
                for form, session in sessions.items()
            }
            for size in sizes:
                figures = _race(works, size, rounds)
                about = {"engine": engine, "network": Johnson.name, "precision": "fp32", "width": width, "size": size}
                yield from _rows(about, figures, flop)
                ratio = figures[ALL]["ratio"]
                on_progress(f"width {width:g}, {size} x {size}, {engine}: {ratio:.2f} of the plain export's time")


def _on_gpu(
    engine: _Engine, gpu: Gpu, sizes: Sequence[int], rounds: int, on_progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    if reason := engine.missing():
        yield _missing(engine, sizes, reason)
        return
    model = _served(Fast())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = _files(model, engine.forms, Path(folder))
        flop = _arithmetic(files, sizes)
        works: dict[str, Paint] = {}
        for form, file in files.items():
            try:
                works[form] = stack.enter_context(_checked(engine, model, file, sizes, gpu))
                on_progress(f"{engine.name}, {form}: built and checked")
            except (NstError, plans.PlanError) as error:
                yield _missing(engine, sizes, str(error), form)
        for size in sizes if works else ():
            about = {"engine": engine.name, "network": Fast.name, "precision": engine.precision}
            yield from _rows(about | {"width": 1.0, "size": size}, _race(works, size, rounds), flop)


@contextmanager
def _checked(engine: _Engine, model: ServedModel, file: Path, sizes: Sequence[int], gpu: Gpu) -> Iterator[Paint]:
    """What paints with a form of the graph, once it has passed the gate on the GPU; raises as `_Engine.running`."""
    graph = file.with_suffix(f".{engine.precision}.onnx")
    proto = onnx.load(file)
    if engine.precision == "fp16":
        to_half(proto)
    write_onnx(proto, graph, {})
    limits, shapes = GPU_TOLERANCES[engine.precision], [*((1, size, size) for size in sizes), ODD]
    with engine.running(graph, max(*sizes, *ODD), gpu) as running:
        feeds = example_feeds(model.inputs, shapes)
        require_agreement(feeds, lambda feed: run_pytorch(model, feed), [running], limits)
        yield lambda picture: running.run({IMAGE: picture})


def _served(network: Johnson | Fast) -> ServedModel:
    torch.manual_seed(0)
    return ServedModel(frozen(network)).eval()


def _files(model: ServedModel, forms: dict[str, tuple[str, ...]], folder: Path) -> dict[str, Path]:
    """The graph of every form, FP32."""
    plain = folder / "plain.onnx"
    export_onnx(model, plain, {"multiple": str(model.network.multiple)})
    files = {form: folder / f"{number}.onnx" for number, form in enumerate(forms)}
    for form, names in forms.items():
        proto = onnx.load(plain)
        apply_rewrites(proto, names)
        write_onnx(proto, files[form], {})
    return files


def _arithmetic(files: dict[str, Path], sizes: Sequence[int]) -> dict[str, dict[int, int]]:
    """FLOP of the convolutions, by form and size."""
    protos = {form: onnx.load(file) for form, file in files.items()}
    return {form: {size: arithmetic(proto, size) for size in sizes} for form, proto in protos.items()}


def _race(works: dict[str, Paint], size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Warm runs of every form in turn, on one photograph: a summary and the share of the first form's time."""
    picture = photograph_batches([(1, size, size)])[0]
    turns: dict[str, Callable[[], object]] = {form: partial(work, picture) for form, work in works.items()}
    for turn in turns.values():
        for _ in range(3):  # the first picture of a shape is another figure, and the second records a CUDA graph
            turn()
    figures = {form: summarize(seconds) for form, seconds in interleaved(turns, rounds).items()}
    first = next(iter(figures.values()))
    return {form: asdict(one) | {"ratio": one.median / first.median} for form, one in figures.items()}


def _rows(
    about: dict[str, Any], figures: dict[str, dict[str, Any]], flop: dict[str, dict[int, int]]
) -> Iterator[dict[str, Any]]:
    for form, figure in figures.items():
        yield about | {"form": form, "gflop": flop[form][about["size"]] / 1e9} | figure


def _missing(engine: _Engine, sizes: Sequence[int], reason: str, form: str | None = None) -> dict[str, Any]:
    """The row of what was not measured."""
    about = {"engine": engine.name, "network": Fast.name, "precision": engine.precision, "width": 1.0}
    return about | {"size": int(np.max(sizes)), "form": form or next(iter(engine.forms)), "missing": reason}
