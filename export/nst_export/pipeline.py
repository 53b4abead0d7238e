"""The export of a checkpoint: prepare its graphs, verify them, build its engine, publish."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from nst_core.contract import Parameter, Purpose
from nst_core.engines import plans
from nst_core.engines.building import ProgressOf, unwatched
from nst_core.errors import NstError
from nst_core.files import STORAGE_FAULTS
from nst_core.packages.onnx_runtime import import_onnxruntime
from nst_export.checkpoints import served_modules
from nst_export.errors import ExportError
from nst_export.export_plan import FILES, ExportPlan
from nst_export.gpu_engine import REFERENCE, GpuEngine
from nst_export.graph.conversion import export_onnx, write_onnx
from nst_export.graph.half_precision import to_half
from nst_export.graph.rewrites import apply_rewrites
from nst_export.modules import Exportable, TiledModel
from nst_export.report import REPORT_NAME, SCHEMA, report_text
from nst_export.repository.model_config import ServingOptions, model_config
from nst_export.repository.publishing import check_names, publish_version
from nst_export.tensorrt import build_plan, build_rtx_engine
from nst_export.verification.agreement import Agreement
from nst_export.verification.cpu import OPENVINO, installed_providers, onnx_engines, tiled_engines
from nst_export.verification.pytorch import check_contract, verify
from nst_trainer.checkpoint import Checkpoint, load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A published model: the folder of its version, and the content of its `verification.json`."""

    folder: Path
    verification: dict[str, Any]


def export_and_publish(
    path: Path,
    name: str,
    repository: Path,
    plan: ExportPlan,
    *,
    on_progress: Callable[[str], None] = lambda message: None,
    progress_of: ProgressOf = unwatched,
) -> list[Published]:
    """Export the checkpoint at `path` as `name` into `repository`, and return every published model.

    Nothing is published unless all of them pass. `on_progress` gets a line for each step, and `progress_of` shows the
    building of TensorRT plans. Raises `CheckpointError` and `ExportError`.
    """
    check_names(name, ())
    checkpoint = load(path)
    modules = served_modules(checkpoint, name, tiled=plan.tiled)
    check_names(name, checkpoint.styles)
    plan.check_target()
    with _temporary_folder() as folder:
        exports = []
        for model, module in modules.items():
            on_progress(f"exporting {model} ({_description(checkpoint)})")
            exports.append(_ModelExport(model, module, checkpoint, path, plan, folder / model))
        if plan.on_openvino and OPENVINO not in installed_providers():
            on_progress(f"{name} is verified without OpenVINO, which will serve it: this ONNX Runtime does not have it")
        _verify_on_cpu(exports, plan)
        for export in exports:
            export.build_engine(progress_of)
            export.verify_engine()
        return [export.publish(repository) for export in exports]


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a temporary folder for the files before they are published; a full disk raises `ExportError`."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno not in STORAGE_FAULTS:
                raise
            raise ExportError(
                f"cannot write to {folder}: {error.strerror}; set TMPDIR to a folder with more space"
            ) from error


def _verify_on_cpu(exports: Sequence[_ModelExport], plan: ExportPlan) -> None:
    """Verify the ONNX files; the two parts of a tiled model are judged by the image that they compute together."""
    by_purpose = {export.module.purpose: export for export in exports}
    for export in exports:
        if export.is_whole:
            engines = onnx_engines(export.graph, openvino=plan.on_openvino)
            export.checks += verify(export.module, engines, plan.tolerance)
    if Purpose.TILED in by_purpose:
        statistics, tiled = by_purpose[Purpose.STATISTICS], by_purpose[Purpose.TILED]
        engines = tiled_engines(statistics.graph, tiled.graph, openvino=plan.on_openvino)
        checks = verify(by_purpose[Purpose.STYLE].module, engines, plan.tolerance)
        statistics.checks += checks
        tiled.checks += checks


class _ModelExport:
    """The export of one model: its files in `folder`, its checks, and its engine if a GPU runs it."""

    def __init__(
        self, name: str, module: Exportable, checkpoint: Checkpoint, source: Path, plan: ExportPlan, folder: Path
    ) -> None:
        self.name, self.module, self.checkpoint, self.plan, self.folder = name, module, checkpoint, plan, folder
        folder.mkdir()
        self.reference, self.graph = folder / REFERENCE, folder / plans.GRAPH
        self.rewrites = self._write_graphs(source)
        self.files = {plans.GRAPH: self.graph}
        if plan.runtime != "cpu":
            self.files[REFERENCE] = self.reference
        self.checks: list[Agreement] = []
        self.engine = GpuEngine(plan)
        self.source = {"file": _text(source.name), "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole model, not a part of a tiled model."""
        return self.module.purpose in (Purpose.STYLE, Purpose.TEXTURE)

    def _write_graphs(self, source: Path) -> dict[str, int]:
        """Write the plain graph and the served graph; return how many places each rewrite changed."""
        plan = self.plan
        export_onnx(self.module, self.reference, self._metadata(source))
        proto = onnx.load(self.reference)
        check_contract(proto, self.module)
        counts = apply_rewrites(proto, plan.resolved_rewrites)
        done = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"
        log.info("%s: %s for %s, rewrites: %s", self.name, plan.resolved_precision, plan.runtime, done)
        if plan.resolved_precision == "fp16":
            to_half(proto)
        metadata = {"rewrites": json.dumps(counts), "precision": plan.resolved_precision, "for": plan.runtime}
        write_onnx(proto, self.graph, metadata)
        return counts

    def build_engine(self, progress_of: ProgressOf) -> None:
        """Build the plan or the engine of a TensorRT target, beside the graph."""
        plan, multiple = self.plan, self.module.network.multiple
        if plan.resolved_target == "tensorrt-rtx":
            built = self.folder / FILES["tensorrt-rtx"]
            built.write_bytes(build_rtx_engine(self.graph, plan.profile, multiple, plan.compute_capabilities))
            self.files = {built.name: built, REFERENCE: self.reference}
            self.engine.set_built(built)
        elif plan.resolved_target == "tensorrt":
            try:
                built = build_plan(self.folder, plan.profile, multiple, self.name, progress_of)
            except NstError as error:
                if plan.target is not None:
                    raise
                self.engine.status = f"not built here: {error}; nst serve builds it at its first start"
            else:
                self.files |= {plans.PLAN: built, plans.RECORD: built.with_suffix(".json")}
                self.engine.set_built(built)

    def verify_engine(self) -> None:
        """Run the engine on this machine's GPU and compare it, if that is possible."""
        if self.plan.runtime == "cpu" or (self.plan.resolved_target != "onnx" and self.engine.file is None):
            return
        if reason := self.engine.why_not_run() if self.is_whole else "it is one part of a tiled model":
            self.engine.status += f": {reason}"
            return
        network = self.module.network
        self.checks += self.engine.verify(self.graph, self.reference, network.multiple, network.styles)

    def publish(self, repository: Path) -> Published:
        """Publish it in the repository, with its configuration and `verification.json`."""
        document = self._report()
        report = self.folder / REPORT_NAME
        report.write_text(report_text(document))
        config = None
        if self.plan.resolved_target != "tensorrt-rtx":
            config = model_config(self.name, self.module.inputs, self.module.output, self._serving_options())
        files = self.files | {report.name: report}
        return Published(publish_version(files, self.name, repository, config, keep=self.plan.keep), document)

    def _metadata(self, source: Path) -> dict[str, str]:
        network, training = self.checkpoint.network, self.checkpoint.training
        return {
            "styles": ",".join(self.checkpoint.styles),
            "commit": str(training.get("commit")),
            "checkpoint": _text(source.name),
            "network": f"{network.name} {json.dumps(network.arguments)}",
            "purpose": self.module.purpose,
            "multiple": str(network.multiple),
        }

    def _serving_options(self) -> ServingOptions:
        plan, multiple = self.plan, self.module.network.multiple
        parameters: dict[str, str] = {Parameter.MULTIPLE: str(multiple), Parameter.PURPOSE: self.module.purpose}
        if isinstance(self.module, TiledModel):
            parameters[Parameter.OVERLAP] = str(self.module.overlap)
        return ServingOptions(
            styles=self.checkpoint.styles,
            cores=plan.cores,
            instances=plan.instances,
            multiple=multiple,
            runtime=plan.runtime,
            provider=plan.provider,
            precision=plan.resolved_precision,
            file=FILES[plan.resolved_target],
            profile=plan.profile if plan.runtime == "tensorrt" else None,
            parameters=parameters,
        )

    def _report(self) -> dict[str, Any]:
        plan, network = self.plan, self.module.network
        return {
            "schema": SCHEMA,
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "model": self.name,
            "purpose": self.module.purpose,
            "checkpoint": self.source,
            "network": {"name": network.name, **network.arguments},
            "styles": list(self.checkpoint.styles),
            "target": plan.resolved_target,
            "precision": plan.resolved_precision,
            "for": plan.runtime,
            "execution_provider": plan.provider if plan.runtime == "cpu" else None,
            "rewrites": self.rewrites,
            "engine": self.engine.summary() if plan.runtime != "cpu" else None,
            "versions": _versions(),
            "tolerance": asdict(plan.tolerance),
            "checks": [check.summary() for check in self.checks],
            "passed": all(check.passed for check in self.checks),
        }


def _text(name: str) -> str:
    """Return a file's name as valid text: bytes that are not UTF-8 become `?`."""
    return name.encode(errors="replace").decode()


def _description(checkpoint: Checkpoint) -> str:
    network = checkpoint.network
    styles = f", {network.styles} styles" if network.styles > 1 else ""
    return f"{network.name}, width {network.arguments['width']:g}{styles}"


def _versions() -> dict[str, str]:
    """Return the versions of the packages that made and checked the file. Several distributions have ONNX Runtime."""
    packages = {package: version(package) for package in ("nst", "torch", "onnx", "onnxscript")}
    return packages | {"onnxruntime": import_onnxruntime().__version__}
