"""The engine of a model for GPUs, which may be built and verified on this machine or later."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from nst_core import devices
from nst_core.engines import plans
from nst_core.engines.building import ProgressOf, unwatched
from nst_core.engines.plans import Profile
from nst_core.files import atomic_write
from nst_export.errors import ExportError
from nst_export.export_plan import FILES, ExportPlan
from nst_export.report import REPORT_NAME, read_report, report_text
from nst_export.tensorrt import build_plan, compute_capability_name, import_tensorrt, require_gpu
from nst_export.verification.agreement import Agreement
from nst_export.verification.gpu import cuda_engine, missing_packages, tensorrt_engine, verify_on_gpu

REFERENCE = "reference.onnx"
"""The verified FP32 graph, with which `verify_published` compares an engine for GPUs."""


class GpuEngine:
    """The engine of `plan`: its file once it is built, and in `status` whether it was run and compared.

    An ONNX file needs no building.
    """

    def __init__(self, plan: ExportPlan) -> None:
        self.plan = plan
        self.file: Path | None = None
        self.library: str | None = None
        self.status = "not run on a GPU"

    def set_built(self, file: Path) -> None:
        """Set the engine's file, and the library that built it."""
        target = self.plan.resolved_target
        assert target != "onnx"
        self.file, self.library = file, f"{target} {import_tensorrt(target).__version__}"
        self.status = "built, not run on a GPU"

    def why_not_run(self) -> str | None:
        """Return why it cannot run on this machine; None if it can."""
        gpus, reason = devices.gpus()
        if not gpus:
            return reason
        capabilities, own = self.plan.compute_capabilities, compute_capability_name(gpus[0])
        if capabilities and own not in capabilities:
            return f"it is not for this machine's GPU ({gpus[0].name}, {own})"
        if self.plan.resolved_target == "onnx" and self.plan.runtime == "tensorrt":
            return "ONNX Runtime's TensorRT provider builds its engine in the server"
        return missing_packages(self.plan.resolved_target)

    def verify(self, graph: Path, reference: Path, multiple: int, styles: int) -> list[Agreement]:
        """Run the engine, or the ONNX file `graph`, on this machine's GPU, and compare it with `reference`.

        Raises `ExportError`.
        """
        gpu, plan = require_gpu(), self.plan
        if plan.resolved_target == "onnx":
            running = cuda_engine(graph, gpu)
        else:
            assert self.file is not None
            running = tensorrt_engine(self.file, plan.resolved_target, gpu)
        with running as engine:
            checks = verify_on_gpu(engine, reference, plan.profile, multiple, plan.gpu_tolerance, styles=styles)
        self.status = f"verified with {engine.name}"
        return checks

    def summary(self) -> dict[str, Any]:
        """Return plain data for `verification.json`."""
        return {
            "library": self.library,
            "compute_capabilities": list(self.plan.compute_capabilities),
            "profile": str(self.plan.profile),
            "tolerance": asdict(self.plan.gpu_tolerance),
            "status": self.status,
        }


def verify_published(folder: Path, *, progress_of: ProgressOf = unwatched) -> dict[str, Any]:
    """Run the engine in a version's `folder` on this machine's GPU, and add the results to its `verification.json`.

    A plan that was left to the server is built into the user's cache; `progress_of` shows that. Raises `ExportError` if
    the version has no engine for GPUs, it cannot run here, or it differs from its reference.
    """
    report = folder / REPORT_NAME
    document, engine = _read(report)
    if engine is None:
        raise ExportError(f"{folder} is for a CPU and was verified at export; give a version for GPUs")
    if reason := engine.why_not_run():
        raise ExportError(f"{folder} cannot run on this machine: {reason}")
    metadata = {entry.key: entry.value for entry in onnx.load(folder / REFERENCE).metadata_props}
    multiple, styles = int(metadata["multiple"]), len(document["styles"])
    if engine.plan.resolved_target == "tensorrt":
        engine.set_built(build_plan(folder, engine.plan.profile, multiple, document["model"], progress_of))
    elif engine.plan.resolved_target == "tensorrt-rtx":
        engine.set_built(folder / FILES["tensorrt-rtx"])
    checks = engine.verify(folder / plans.GRAPH, folder / REFERENCE, multiple, styles)
    document["engine"] = engine.summary()
    document["checks"] += [check.summary() for check in checks]
    with atomic_write(report) as beside:
        beside.write_text(report_text(document))
    return document


def _read(report: Path) -> tuple[dict[str, Any], GpuEngine | None]:
    """Return the document, and the engine that it describes if it is for GPUs."""
    try:
        document = read_report(report)
        plan = ExportPlan(document["target"], document["precision"], document["for"])
        engine = document["engine"]
        if engine is None:
            return document, None
        capabilities = tuple(engine["compute_capabilities"])
        plan = replace(plan, compute_capabilities=capabilities, profile=Profile.parse(engine["profile"]))
        return document, GpuEngine(plan)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{report.parent} has no verification.json of this version of nst; give a version's folder, such as "
            "model_repository/starry-night/1"
        ) from error
