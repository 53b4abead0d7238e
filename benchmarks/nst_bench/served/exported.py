"""Models as `nst export` writes them: exporting one, and reading one from a model repository."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tritonclient.grpc import model_config_pb2

from nst_core.contract import Parameter
from nst_core.devices import Device
from nst_core.engines.plans import GRAPH
from nst_core.errors import InputError
from nst_core.shipped import shipped_styles
from nst_export.export_plan import ExportPlan, runtime_for
from nst_export.gpu_engine import REFERENCE
from nst_export.pipeline import export_and_publish
from nst_export.report import REPORT_NAME, read_report
from nst_server.repository.models import CPU, newest_version, read_config
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson


def untrained_checkpoint(width: float) -> Checkpoint:
    """Return Johnson's network of `width` with random weights, which is as fast as a trained one."""
    torch.manual_seed(0)
    return Checkpoint(frozen(Johnson(width=width)), (f"untrained-{width:g}",))


def export_checkpoint(
    checkpoint: Checkpoint, repository: Path, device: Device, *, say: Callable[[str], None] = lambda line: None
) -> str:
    """Export a checkpoint for `device` to `repository`, and return the model's name."""
    name = checkpoint.styles[0]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.pth"
        save(checkpoint, file)
        export_and_publish(file, name, repository, default_export_plan(device), on_progress=say)
    return name


def default_export_plan(device: Device) -> ExportPlan:
    """Return the default plan of `nst export` for the device."""
    return ExportPlan(runtime=runtime_for(device), cores=os.cpu_count() or 1)


@dataclass(frozen=True)
class ExportedModel:
    """The model in `folder`. Raises `InputError` if there is none."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "config.pbtxt").is_file():
            name, repository = self.folder.name, self.folder.parent
            checkpoint = name if name in shipped_styles() else f"{name}.pth"
            raise InputError(f"{repository} has no model {name!r}; run nst export {checkpoint} -r {repository} first")

    @cached_property
    def config(self) -> model_config_pb2.ModelConfig:
        """The content of `config.pbtxt`."""
        return read_config(self.folder)

    @property
    def version(self) -> Path:
        """The folder of the newest version, which is served. Raises `InputError` if there is none."""
        newest = newest_version(self.folder)
        if newest is None:
            raise InputError(f"{self.folder} has no version of the model; export it again with nst export")
        return newest

    @property
    def device(self) -> str:
        """`CPU` or `GPU`, where its instances run."""
        return "CPU" if {group.kind for group in self.config.instance_group} <= {CPU} else "GPU"

    @property
    def precision(self) -> str:
        """`fp32` or `fp16`; `fp32` if the config does not say."""
        return self.parameter("precision") or "fp32"

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles in the order of the input `style_weights`."""
        return tuple(self.parameter(Parameter.STYLES).split(","))

    @property
    def model_file(self) -> Path:
        """The graph that ONNX Runtime serves."""
        return self.version / GRAPH

    @property
    def graph(self) -> Path | None:
        """The graph that is served or that the engine is built from, or None."""
        return self._first_file(GRAPH, REFERENCE)

    @property
    def fp32_graph(self) -> Path | None:
        """The FP32 graph: the served one, or the reference of a half-precision model; None if there is none."""
        return self.graph if self.precision == "fp32" else self._first_file(REFERENCE)

    def _first_file(self, *names: str) -> Path | None:
        return next((self.version / name for name in names if (self.version / name).is_file()), None)

    def parameter(self, name: str) -> str:
        """Return a parameter of the config, or an empty string."""
        return self.config.parameters[name].string_value if name in self.config.parameters else ""

    def check_source(self, checkpoint: Path) -> None:
        """Raise `InputError` if it is known to be exported from another file than `checkpoint`."""
        report = self.version / REPORT_NAME
        if not report.is_file() or not checkpoint.is_file():
            return
        if read_report(report)["checkpoint"]["sha256"] != hashlib.sha256(checkpoint.read_bytes()).hexdigest():
            raise InputError(
                f"{self.version} is not exported from {checkpoint}; "
                f"run nst export {checkpoint} -r {self.folder.parent} first"
            )

    def check_device(self, device: Device) -> None:
        """Raise `InputError` if it is exported for another device than the measured one."""
        other = self.device.lower()
        if other != device.kind:
            raise InputError(
                f"{self.folder} is exported for the {self.device}, but this run measures the {device.kind.upper()} "
                f"({device.reason}); export it again with nst export --device {device.kind}, or measure with "
                f"--device {other}"
            )
