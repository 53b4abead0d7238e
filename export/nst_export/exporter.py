"""The way of a checkpoint through the exporter: load, graph, rewrites, precision, gate, engine, repository."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx as onnx_package
import onnxruntime

from nst_core.errors import InputError
from nst_core.files import written_whole
from nst_export import onnx, precision, repository, rewrite, tensorrt, verify
from nst_export.errors import ExportError
from nst_export.repository import Serving
from nst_export.served import Exportable, ServedModel, StatisticsModel, TextureModel, TiledModel
from nst_export.verify import Agreement
from nst_trainer.checkpoint import Checkpoint, load

SCHEMA = "nst-verification/1"

REFERENCE = "reference.onnx"
"""Beside an engine: the verified FP32 graph that `verify_published` compares it with."""

Target = Literal["onnx", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16"]

FILES: dict[Target, str] = {"onnx": "model.onnx", "tensorrt": "model.plan", "tensorrt-rtx": "model.engine"}


@dataclass(frozen=True)
class Plan:
    """What to make of a checkpoint and for whom. `rewrites` None are those of the engine; see `rewrite.FOR`."""

    target: Target = "onnx"
    precision: Precision = "fp32"
    engine: rewrite.Engine = "cpu"
    rewrites: tuple[str, ...] | None = None
    profile: tensorrt.Profile = field(default_factory=lambda: tensorrt.Profile.parse("64x64/512x512/4x1920x1920"))
    devices: tuple[str, ...] = ()
    tiled: bool = False
    cores: int = 1
    instances: int = 1
    keep: int | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.rewrites or () if name not in rewrite.REWRITES]:
            known = ", ".join(rewrite.REWRITES)
            raise InputError(f"no rewrite is called {unknown[0]!r}; there are {known}, or none")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The rewrites that are applied; circular padding is always one, since the operator set has none."""
        names = rewrite.FOR[self.engine] if self.rewrites is None else self.rewrites
        return tuple(name for name in rewrite.REWRITES if name in names or name == "wrap")

    @property
    def limits(self) -> verify.Limits:
        """What the gate lets through."""
        return verify.LIMITS[self.precision]


@dataclass(frozen=True)
class Published:
    """A model in the repository: its folder, and the document that `verification.json` holds."""

    folder: Path
    verification: dict[str, Any]


def export(
    path: Path, name: str, folder: Path, plan: Plan, *, say: Callable[[str], None] = lambda line: None
) -> list[Published]:
    """Export the checkpoint at `path` as `name` into the repository `folder`; every model that was published.

    Nothing is published unless all of them pass. Raises `CheckpointError` and `ExportError`.
    """
    checkpoint = load(path)
    models = exportables(checkpoint, name, tiled=plan.tiled)
    repository.check_names(name, checkpoint.styles)
    if plan.target != "onnx":
        tensorrt.library(plan.target)
    with tempfile.TemporaryDirectory() as scratch:
        made = []
        for called, model in models.items():
            say(f"exporting {called} ({_network(checkpoint)})")
            made.append(_Export(called, model, checkpoint, path, plan, Path(scratch) / called))
        _check(made)
        for one in made:
            one.build()
        return [one.publish(folder) for one in made]


def exportables(checkpoint: Checkpoint, name: str, *, tiled: bool) -> dict[str, Exportable]:
    """The modules that a checkpoint is served as, by their models' names."""
    network = checkpoint.network
    if network.arguments.get("texture"):
        if tiled:
            raise ExportError(f"{name} makes textures, which tile as they are: leave --tiled out")
        return {name: TextureModel(network)}
    models: dict[str, Exportable] = {name: ServedModel(network)}
    if tiled:
        models |= {f"{name}_statistics": StatisticsModel(network), f"{name}_tiled": TiledModel(network)}
    return models


class _Export:
    """One model on its way: its graph in `folder`, what was checked, and the engine if one is asked for."""

    def __init__(
        self, name: str, model: Exportable, checkpoint: Checkpoint, source: Path, plan: Plan, folder: Path
    ) -> None:
        self.name, self.model, self.checkpoint, self.plan = name, model, checkpoint, plan
        folder.mkdir()
        self.plain, self.file = folder / REFERENCE, folder / "model.onnx"
        onnx.export(model, self.plain, self._metadata(source))
        proto = onnx_package.load(self.plain)
        verify.check_contract(proto, model)
        self.rewrites = rewrite.rewrite(proto, plan.chosen)
        if plan.precision == "fp16":
            precision.to_half(proto)
        made = {"rewrites": json.dumps(self.rewrites), "precision": plan.precision, "for": plan.engine}
        onnx.write(proto, self.file, made)
        self.graph = proto
        self.checks: list[Agreement] = []
        self.files = {FILES["onnx"]: self.file}
        self.engine: dict[str, Any] | None = None
        self.source = {"file": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}

    def build(self) -> None:
        """The engine of a TensorRT target; run and compared where a GPU is, else built only."""
        plan = self.plan
        if plan.target == "onnx":
            return
        cache = Path.home() / ".cache" / "nst"
        grid = self.model.network.multiple
        built, self.engine = tensorrt.build(
            *(self.file, plan.target, plan.profile, grid), devices=plan.devices, cache=cache
        )
        engine = self.file.with_name(FILES[plan.target])
        engine.write_bytes(built)
        self.files = {engine.name: engine, REFERENCE: self.plain}
        if self.model.purpose not in ("style", "texture"):
            self.engine["status"] = "built, not run: it is one half of a model"
        elif reason := tensorrt.cannot_run(plan.devices):
            self.engine["status"] = f"built, not run: {reason}"
        else:
            self.checks += _against_reference(built, plan.target, plan.profile, self.plain, grid, plan.limits)
            self.engine["status"] = "verified"

    def publish(self, folder: Path) -> Published:
        """Into the repository, with its config and `verification.json`."""
        document = self._verification()
        report = self.file.with_name("verification.json")
        report.write_text(json.dumps(document, indent=1) + "\n")
        files = self.files | {report.name: report}
        message = None
        if self.plan.target != "tensorrt-rtx":
            message = repository.config(self.name, self.model.inputs, self.model.output, self._serving())
        return Published(repository.publish(files, self.name, folder, message, keep=self.plan.keep), document)

    def _metadata(self, source: Path) -> dict[str, str]:
        network, training = self.checkpoint.network, self.checkpoint.training
        return {
            "styles": ",".join(self.checkpoint.styles),
            "commit": str(training.get("commit")),
            "checkpoint": source.name,
            "network": f"{network.name} {json.dumps(network.arguments)}",
            "purpose": self.model.purpose,
            "multiple": str(network.multiple),
            "min_side": str(network.min_side),
        }

    def _serving(self) -> Serving:
        plan, network = self.plan, self.model.network
        parameters = {"multiple": str(network.multiple), "purpose": self.model.purpose}
        if isinstance(self.model, TiledModel):
            parameters["overlap"] = str(self.model.overlap)
        common: dict[str, Any] = {
            "styles": self.checkpoint.styles,
            "cores": plan.cores,
            "instances": plan.instances,
            "multiple": network.multiple,
            "engine": plan.engine,
            "precision": plan.precision,
            "file": FILES[plan.target],
            "parameters": parameters,
        }
        if plan.target == "onnx":
            return Serving(min_side=network.min_side, **common)
        n, height, width = plan.profile.maximum
        smallest = max(network.min_side, *plan.profile.minimum[1:])
        return Serving(min_side=smallest, max_batch=n, max_pixels=height * width, **common)

    def _verification(self) -> dict[str, Any]:
        plan, network = self.plan, self.model.network
        return {
            "schema": SCHEMA,
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "model": self.name,
            "purpose": self.model.purpose,
            "checkpoint": self.source,
            "network": {"name": network.name, **network.arguments},
            "styles": list(self.checkpoint.styles),
            "target": plan.target,
            "precision": plan.precision,
            "for": plan.engine,
            "rewrites": self.rewrites,
            "engine": self.engine,
            "versions": _versions(),
            "limits": {"levels": plan.limits.levels, "psnr": plan.limits.psnr},
            "checks": [one.summary() for one in self.checks],
            "passed": all(one.passed for one in self.checks),
        }


def _check(made: Sequence[_Export]) -> None:
    """The gate for the ONNX files; the two parts of a tiled model are judged by the picture they make together."""
    parts = {one.model.purpose: one for one in made}
    for one in made:
        if one.model.purpose in ("style", "texture"):
            engines = verify.onnx_engines(one.file)
            one.checks += verify.verify(one.model, engines, one.plan.limits)
    if "tiled" in parts:
        engines = verify.paired_engines(parts["statistics"].file, parts["tiled"].file)
        checks = verify.verify(parts["style"].model, engines, parts["tiled"].plan.limits)
        parts["statistics"].checks += checks
        parts["tiled"].checks += checks


def _against_reference(
    engine: bytes,
    target: tensorrt.Target,
    profile: tensorrt.Profile,
    reference: Path,
    multiple: int,
    limits: verify.Limits,
) -> list[Agreement]:
    """Compare an engine on this GPU with its verified FP32 graph, on sizes that the engine takes."""
    proto = onnx_package.load(reference)
    inputs = onnx.tensors(proto)
    shapes = [profile.holds(shape) for shape in (*verify.SHAPES, profile.minimum, profile.optimum)]
    if all(spec.name != "image" for spec in inputs):
        shapes = [verify.on_grid(shape, multiple) for shape in shapes]
    truth = verify.session(reference, "CPUExecutionProvider")
    return verify.agreements(
        verify.examples(inputs, list(dict.fromkeys(shapes))),
        lambda feed: truth.run(None, feed)[0],
        [tensorrt.running(engine, target)],
        limits,
    )


def verify_published(folder: Path) -> dict[str, Any]:
    """Run the engine in a version's `folder` on this machine's GPU and write the figures to its `verification.json`.

    Raises `ExportError` if there is no engine, it cannot run here, or it does not agree with its reference.
    """
    report = folder / "verification.json"
    try:
        document: dict[str, Any] = json.loads(report.read_text())
        target: Target = document["target"]
        limits, engine = verify.Limits(**document["limits"]), document["engine"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder}: no verification.json of nst-export: give the folder of a version") from error
    if target == "onnx" or engine is None:
        raise ExportError(f"{folder} holds an ONNX file, which was verified when it was exported; nothing to run")
    profile = tensorrt.Profile(*(tuple(shape) for shape in engine["shapes"]))
    metadata = {one.key: one.value for one in onnx_package.load(folder / REFERENCE).metadata_props}
    built = (folder / FILES[target]).read_bytes()
    checks = _against_reference(built, target, profile, folder / REFERENCE, int(metadata["multiple"]), limits)
    engine["status"] = "verified"
    document["checks"] += [one.summary() for one in checks]
    with written_whole(report) as beside:
        beside.write_text(json.dumps(document, indent=1) + "\n")
    return document


def find(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints that `paths`, files and folders, stand for; `InputError` for a folder without any."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.pth")) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: no checkpoint (.pth) in this folder")
        found += inside
    names = [one.stem for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two checkpoints would be served as {twice[0]}: export one of them alone with --name")
    return found


def _network(checkpoint: Checkpoint) -> str:
    network = checkpoint.network
    styles = f", {network.styles} styles" if network.styles > 1 else ""
    return f"{network.name}, width {network.arguments['width']:g}{styles}"


def _versions() -> dict[str, str]:
    """Of what made and checked the file. ONNX Runtime comes from one of several distributions."""
    return {one: version(one) for one in ("nst", "torch", "onnx", "onnxscript")} | {
        "onnxruntime": onnxruntime.__version__
    }
