"""A model as `nst-export` leaves it in a repository: its config, its newest version, and what it was made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from nst_core.contract import Parameter
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_server.repository.models import newest_version, read_config


@dataclass(frozen=True)
class ExportedModel:
    """The model in `folder`. Raises `InputError` where the repository lacks it."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "config.pbtxt").is_file():
            name, repository = self.folder.name, self.folder.parent
            raise InputError(
                f"{repository} has no model {name!r}; export it first: nst-export {name}.pth -r {repository}"
            )

    @cached_property
    def config(self) -> model_config_pb2.ModelConfig:
        """As its `config.pbtxt` says."""
        config: model_config_pb2.ModelConfig = read_config(self.folder)
        return config

    @property
    def version(self) -> Path:
        """The folder of the newest version, which is served. Raises `InputError` where there is none."""
        newest = newest_version(self.folder)
        if newest is None:
            raise InputError(f"{self.folder} holds no version of the model: export it again")
        return newest

    @property
    def device(self) -> str:
        """`CPU` or `GPU`, whatever its instances run on."""
        kinds = {group.kind for group in self.config.instance_group}
        return "CPU" if kinds <= {model_config_pb2.ModelInstanceGroup.KIND_CPU} else "GPU"

    @property
    def instances(self) -> int:
        """How many of them the server runs."""
        return sum(group.count for group in self.config.instance_group) or 1

    @property
    def precision(self) -> str:
        """`fp32` or `fp16`; FP32 where the config does not say."""
        return self.parameter("precision") or "fp32"

    @property
    def styles(self) -> tuple[str, ...]:
        """In the order of the input `style_weights`."""
        return tuple(self.parameter(Parameter.STYLES).split(","))

    @property
    def cpu_provider(self) -> str:
        """ONNX Runtime's execution provider on a CPU."""
        accelerators = self.config.optimization.execution_accelerators.cpu_execution_accelerator
        openvino = any(accelerator.name == "openvino" for accelerator in accelerators)
        return "OpenVINOExecutionProvider" if openvino else "CPUExecutionProvider"

    @property
    def model_file(self) -> Path:
        """The graph that ONNX Runtime serves."""
        return self.version / "model.onnx"

    @property
    def graph(self) -> Path | None:
        """The graph that is served, or that the engine was built from; None where there is none."""
        return self._first_file("model.onnx", "reference.onnx")

    @property
    def fp32_graph(self) -> Path | None:
        """The graph that is served, or the reference of a half-precision model; None where none is kept."""
        return self.graph if self.precision == "fp32" else self._first_file("reference.onnx")

    def _first_file(self, *names: str) -> Path | None:
        return next((self.version / name for name in names if (self.version / name).is_file()), None)

    def parameter(self, name: str) -> str:
        """A parameter of the config, empty if it is not there."""
        return self.config.parameters[name].string_value if name in self.config.parameters else ""

    def check_source(self, checkpoint: Path) -> None:
        """Raise `InputError` if it was not exported from the file `checkpoint`; where nothing was noted, it passes."""
        note = self.version / "verification.json"
        if not note.is_file() or not checkpoint.is_file():
            return
        source = json.loads(note.read_text())["checkpoint"]["sha256"]
        if source != hashlib.sha256(checkpoint.read_bytes()).hexdigest():
            raise InputError(
                f"{self.version} was not exported from {checkpoint}: "
                f"nst-export {checkpoint} -r {self.folder.parent} brings it up"
            )

    def check_device(self, device: Device) -> None:
        """Raise `InputError`, with both ways out, if it was exported for another device than the one measured."""
        other = self.device.lower()
        if other != device.kind:
            raise InputError(
                f"{self.folder} was exported for the {self.device}, and this run measures the {device.kind.upper()} "
                f"({device.reason}): nst-export --device {device.kind} exports it again, or measure with "
                f"--device {other}"
            )
