"""The way of a checkpoint through the exporter: load, graph, rewrites, precision, gate, engine, repository."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx as onnx_package

from nst_core import devices
from nst_core.devices import Device
from nst_core.engines import plans
from nst_core.engines.plans import Profile
from nst_core.errors import InputError, NstError
from nst_core.files import STORAGE_FAULTS, atomic_write
from nst_core.packages.onnx_runtime import import_onnxruntime
from nst_export import card, precision, repository, tensorrt
from nst_export import conversion as onnx
from nst_export import rewrites as rewrite
from nst_export import verification as verify
from nst_export.errors import ExportError
from nst_export.modules import Exportable, ServedModel, StatisticsModel, TextureModel, TiledModel
from nst_export.repository import Provider, Serving
from nst_export.verification import Agreement
from nst_trainer.checkpoint import Checkpoint, load

SCHEMA = "nst-verification/2"

REFERENCE = "reference.onnx"
"""Beside an engine for GPUs: the verified FP32 graph that `verify_published` compares it with."""

SUFFIXES = (".pth", ".pt", ".model")
"""What is a checkpoint in a folder. `.model` is how pytorch/examples' trainer calls its files."""

Target = Literal["onnx", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16"]

FILES: dict[Target, str] = {"onnx": plans.GRAPH, "tensorrt": plans.PLAN, "tensorrt-rtx": "model.engine"}


def provider_here() -> Provider:
    """The execution provider of this machine's CPU: OpenVINO where ONNX Runtime has packages with it."""
    return "openvino" if platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin" else "cpu"


def engine_for(device: Device, target: Target | None = None) -> rewrite.Engine:
    """What runs a model on `device`: on a GPU TensorRT, or ONNX Runtime CUDA where an ONNX file is the `target`."""
    if device.gpu is None:
        return "cpu"
    return "gpu" if target == "onnx" else "tensorrt"


@dataclass(frozen=True)
class Plan:
    """What to make of a checkpoint and for whom.

    `provider` runs ONNX files on a CPU. `target` None is what the engine runs: of TensorRT a plan, which the server
    builds at its first start if that cannot be done here, else an ONNX file. `precision` None is FP16 for TensorRT,
    else FP32. `rewrites` None are those of the engine; see `rewrite.FOR`. `profile` are the shapes that TensorRT takes,
    `devices` the compute capabilities (`SM89`) that engines of `tensorrt-rtx` are for.
    """

    target: Target | None = None
    precision: Precision | None = None
    engine: rewrite.Engine = "cpu"
    provider: Provider = field(default_factory=provider_here)
    rewrites: tuple[str, ...] | None = None
    profile: Profile = field(default_factory=lambda: Profile.parse(tensorrt.SHAPES))
    devices: tuple[str, ...] = ()
    tiled: bool = False
    cores: int = 1
    instances: int = 1
    keep: int | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.rewrites or () if name not in rewrite.REWRITES]:
            known = ", ".join(rewrite.REWRITES)
            raise InputError(f"no rewrite is called {unknown[0]!r}; there are {known}, or none")
        for name, others in rewrite.UNSAFE.get(self.engine, {}).items():
            if name in (self.rewrites or ()):
                raise InputError(f"--rewrites {name}: {self.engine} may move the picture with it; use {others}")

    @property
    def makes(self) -> Target:
        """The target, also where none is given."""
        return self.target or ("tensorrt" if self.engine == "tensorrt" else "onnx")

    @property
    def computes(self) -> Precision:
        """The precision, also where none is given."""
        return self.precision or ("fp16" if self.engine == "tensorrt" else "fp32")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The rewrites that are applied; circular padding is always one, since the operator set has none."""
        names = rewrite.FOR[self.engine] if self.rewrites is None else self.rewrites
        return tuple(name for name in rewrite.REWRITES if name in names or name == "wrap")

    @property
    def on_openvino(self) -> bool:
        """Whether OpenVINO will run it."""
        return self.engine == "cpu" and self.provider == "openvino"

    @property
    def limits(self) -> verify.Limits:
        """What the gate on the CPU lets through."""
        return verify.LIMITS[self.computes]

    @property
    def card_limits(self) -> verify.Limits:
        """What the gate on the GPU lets through."""
        return card.LIMITS[self.computes]


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
    repository.check_names(name, ())
    checkpoint = load(path)
    models = exportables(checkpoint, name, tiled=plan.tiled)
    repository.check_names(name, checkpoint.styles)
    _check_target(plan)
    with _scratch() as scratch:
        made = []
        for called, model in models.items():
            say(f"exporting {called} ({_network(checkpoint)})")
            made.append(_Export(called, model, checkpoint, path, plan, scratch / called))
        if plan.on_openvino and "OpenVINO" not in verify.installed():
            say(f"{name} is not run on OpenVINO, which will serve it: ONNX Runtime here has no such execution provider")
        _check(made)
        for one in made:
            one.build()
            one.run_on_gpu()
        return [one.publish(folder) for one in made]


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for what is not published yet; a full disk is an `ExportError`."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno not in STORAGE_FAULTS:
                raise
            raise ExportError(
                f"cannot write to {folder}: {error.strerror}; set TMPDIR to a folder with more space"
            ) from error


def _check_target(plan: Plan) -> None:
    """Raise `ExportError` if what was asked for by name cannot be built here, before minutes are spent."""
    if plan.target not in ("tensorrt", "tensorrt-rtx"):
        return
    try:
        tensorrt.library(plan.target)
        if plan.target == "tensorrt":
            tensorrt.gpu_at_hand()
    except ExportError as error:
        ways = "" if plan.target == "tensorrt-rtx" else "; --for tensorrt leaves the plan to nst-serve's first start"
        raise ExportError(f"--target {plan.target}: {error}{ways}") from error


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
    """One model on its way: its graph in `folder`, what was checked, and the engine if a GPU runs it."""

    def __init__(
        self, name: str, model: Exportable, checkpoint: Checkpoint, source: Path, plan: Plan, folder: Path
    ) -> None:
        self.name, self.model, self.checkpoint, self.plan, self.folder = name, model, checkpoint, plan, folder
        self.profile = plan.profile
        folder.mkdir()
        self.plain, self.file = folder / REFERENCE, folder / plans.GRAPH
        onnx.export(model, self.plain, self._metadata(source))
        proto = onnx_package.load(self.plain)
        verify.check_contract(proto, model)
        self.rewrites = rewrite.rewrite(proto, plan.chosen)
        if plan.computes == "fp16":
            precision.to_half(proto)
        made = {"rewrites": json.dumps(self.rewrites), "precision": plan.computes, "for": plan.engine}
        onnx.write(proto, self.file, made)
        self.graph = proto
        self.checks: list[Agreement] = []
        self.files = {plans.GRAPH: self.file}
        if plan.engine != "cpu":
            self.files[REFERENCE] = self.plain
        self.engine = _Engine(plan, self.profile)
        self.source = {"file": _text(source.name), "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}

    def build(self) -> None:
        """The plan or engine of a TensorRT target, beside the graph."""
        plan, grid = self.plan, self.model.network.multiple
        if plan.makes == "tensorrt-rtx":
            built = self.folder / FILES["tensorrt-rtx"]
            built.write_bytes(tensorrt.build_for(self.file, self.profile, grid, plan.devices))
            self.files = {built.name: built, REFERENCE: self.plain}
            self.engine.built(built)
        elif plan.makes == "tensorrt":
            try:
                built = tensorrt.plan_of(self.folder, self.profile, grid, self.name)
            except NstError as error:
                if plan.target is not None:
                    raise
                self.engine.status = f"not built here: {error}; nst-serve builds it at its first start"
            else:
                self.files |= {plans.PLAN: built, plans.RECORD: built.with_suffix(".json")}
                self.engine.built(built)

    def run_on_gpu(self) -> None:
        """The gate on the GPU at hand, if the model's engine can run here."""
        if self.plan.engine == "cpu" or (self.plan.makes != "onnx" and self.engine.file is None):
            return
        halves = self.model.purpose not in ("style", "texture")
        if reason := "it is one half of a model" if halves else self.engine.cannot_run():
            self.engine.status += f": {reason}"
            return
        network = self.model.network
        self.checks += self.engine.checked(self.file, self.plain, network.multiple, network.styles)

    def publish(self, folder: Path) -> Published:
        """Into the repository, with its config and `verification.json`."""
        document = self._verification()
        report = self.file.with_name("verification.json")
        report.write_text(json.dumps(document, indent=1) + "\n")
        files = self.files | {report.name: report}
        message = None
        if self.plan.makes != "tensorrt-rtx":
            message = repository.config(self.name, self.model.inputs, self.model.output, self._serving())
        return Published(repository.publish(files, self.name, folder, message, keep=self.plan.keep), document)

    def _metadata(self, source: Path) -> dict[str, str]:
        network, training = self.checkpoint.network, self.checkpoint.training
        return {
            "styles": ",".join(self.checkpoint.styles),
            "commit": str(training.get("commit")),
            "checkpoint": _text(source.name),
            "network": f"{network.name} {json.dumps(network.arguments)}",
            "purpose": self.model.purpose,
            "multiple": str(network.multiple),
        }

    def _serving(self) -> Serving:
        plan, network = self.plan, self.model.network
        parameters = {"multiple": str(network.multiple), "purpose": self.model.purpose}
        if isinstance(self.model, TiledModel):
            parameters["overlap"] = str(self.model.overlap)
        return Serving(
            styles=self.checkpoint.styles,
            cores=plan.cores,
            instances=plan.instances,
            multiple=network.multiple,
            engine=plan.engine,
            provider=plan.provider,
            precision=plan.computes,
            file=FILES[plan.makes],
            profile=self.profile if plan.engine == "tensorrt" else None,
            parameters=parameters,
        )

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
            "target": plan.makes,
            "precision": plan.computes,
            "for": plan.engine,
            "execution_provider": plan.provider if plan.engine == "cpu" else None,
            "rewrites": self.rewrites,
            "engine": self.engine.summary() if plan.engine != "cpu" else None,
            "versions": _versions(),
            "limits": asdict(plan.limits),
            "checks": [one.summary() for one in self.checks],
            "passed": all(one.passed for one in self.checks),
        }


class _Engine:
    """What runs a model on GPUs: its file once it is built, and whether it was run and compared.

    `status` says that for a person. An ONNX file has nothing to build.
    """

    def __init__(self, plan: Plan, profile: Profile) -> None:
        self.plan, self.profile = plan, profile
        self.file: Path | None = None
        self.library: str | None = None
        self.status = "not run on a GPU"

    def built(self, file: Path) -> None:
        """Note the engine's file, and what has built it."""
        target: Any = self.plan.makes
        self.file, self.library = file, f"{target} {tensorrt.library(target).__version__}"
        self.status = "built, not run on a GPU"

    def cannot_run(self) -> str | None:
        """Why it does not run on this machine, None if it should."""
        found, missing = devices.gpus()
        if not found:
            return missing
        if self.plan.devices and (own := tensorrt.capability_of(found[0])) not in self.plan.devices:
            return f"it is not for this machine's GPU ({found[0].name}, {own})"
        if self.plan.makes == "onnx" and self.plan.engine == "tensorrt":
            return "ONNX Runtime's TensorRT provider builds its engine in the server"
        return card.missing(self.plan.makes)

    def checked(self, graph: Path, reference: Path, multiple: int, styles: int) -> list[Agreement]:
        """The gate on the GPU; raises `ExportError`."""
        gpu = tensorrt.gpu_at_hand()
        target: Any = self.plan.makes
        file = graph if target == "onnx" else self.file
        assert file is not None
        running = card.cuda_engine(file, gpu) if target == "onnx" else card.tensorrt_engine(file, target, gpu)
        with running as engine:
            checks = card.check(engine, reference, self.profile, multiple, self.plan.card_limits, styles=styles)
        self.status = f"verified with {engine.name}"
        return checks

    def summary(self) -> dict[str, Any]:
        """Plain data for `verification.json`."""
        return {
            "library": self.library,
            "compute_capabilities": list(self.plan.devices),
            "profile": str(self.profile),
            "limits": asdict(self.plan.card_limits),
            "status": self.status,
        }


def _check(made: Sequence[_Export]) -> None:
    """The gate for the ONNX files; the two parts of a tiled model are judged by the picture they make together."""
    parts = {one.model.purpose: one for one in made}
    for one in made:
        if one.model.purpose in ("style", "texture"):
            engines = verify.onnx_engines(one.file, serving=one.plan.on_openvino)
            one.checks += verify.verify(one.model, engines, one.plan.limits)
    if "tiled" in parts:
        plan = parts["tiled"].plan
        engines = verify.paired_engines(parts["statistics"].file, parts["tiled"].file, serving=plan.on_openvino)
        checks = verify.verify(parts["style"].model, engines, plan.limits)
        parts["statistics"].checks += checks
        parts["tiled"].checks += checks


def verify_published(folder: Path) -> dict[str, Any]:
    """Run the engine in a version's `folder` on this machine's GPU and write the figures to its `verification.json`.

    A plan that was left to the server is built, into the user's cache. Raises `ExportError` if there is no engine for
    GPUs, it cannot run here, or it does not agree with its reference.
    """
    report = folder / "verification.json"
    try:
        document: dict[str, Any] = json.loads(report.read_text())
        noted = document["engine"]
        plan = Plan(document["target"], document["precision"], document["for"])
        engine = None
        if noted is not None:
            plan = replace(plan, devices=tuple(noted["compute_capabilities"]))
            engine = _Engine(plan, Profile.parse(noted["profile"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder}: no verification.json of this nst-export: give the folder of a version") from error
    if engine is None:
        raise ExportError(f"{folder} is for a CPU and was verified when it was exported; nothing to run")
    if reason := engine.cannot_run():
        raise ExportError(f"{folder} cannot be run here: {reason}")
    metadata = {one.key: one.value for one in onnx_package.load(folder / REFERENCE).metadata_props}
    multiple, styles = int(metadata["multiple"]), len(document["styles"])
    if plan.makes == "tensorrt":
        engine.built(tensorrt.plan_of(folder, engine.profile, multiple, document["model"]))
    elif plan.makes == "tensorrt-rtx":
        engine.built(folder / FILES["tensorrt-rtx"])
    checks = engine.checked(folder / plans.GRAPH, folder / REFERENCE, multiple, styles)
    document["engine"] = engine.summary()
    document["checks"] += [one.summary() for one in checks]
    with atomic_write(report) as beside:
        beside.write_text(json.dumps(document, indent=1) + "\n")
    return document


def find(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints that `paths`, files and folders, stand for; `InputError` for a folder without any."""
    found: list[Path] = []
    for path in paths:
        inside = [path] if not path.is_dir() else _checkpoints(path)
        if not inside:
            raise InputError(f"{path}: no checkpoint ({', '.join(SUFFIXES)}) in this folder")
        found += inside
    names = [one.stem for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two checkpoints would be served as {twice[0]!a}: export one of them alone with --name")
    return found


def _checkpoints(folder: Path) -> list[Path]:
    """What has a checkpoint's suffix, hidden files left out: other systems leave some beside those that they copy."""
    return sorted(one for one in folder.iterdir() if one.suffix in SUFFIXES and not one.name.startswith("."))


def _text(name: str) -> str:
    """A file's name as text that any file can hold: what is not UTF-8 in it becomes `?`."""
    return name.encode(errors="replace").decode()


def _network(checkpoint: Checkpoint) -> str:
    network = checkpoint.network
    styles = f", {network.styles} styles" if network.styles > 1 else ""
    return f"{network.name}, width {network.arguments['width']:g}{styles}"


def _versions() -> dict[str, str]:
    """Of what made and checked the file. ONNX Runtime comes from one of several distributions."""
    return {one: version(one) for one in ("nst", "torch", "onnx", "onnxscript")} | {
        "onnxruntime": import_onnxruntime().__version__
    }
