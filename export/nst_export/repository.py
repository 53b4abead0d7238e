"""Triton's model repository (contract 3): versions and configs, written beside and renamed.

The config is made from the exported graph, and written and read with Triton's own `ModelConfig` message, never as
a string.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_core.engines.plans import Profile
from nst_core.errors import InputError
from nst_core.files import atomic_write
from nst_export.errors import ExportError
from nst_export.modules import STATISTICS, STYLE_WEIGHTS, TensorSpec
from nst_export.rewrites import Engine

MAX_BATCH = 8
MAX_PIXELS = 4096 * 2160
"""Largest picture that the served model takes, pixels: a 4K frame, which needs 4.8 GiB through OpenVINO at
width 1 and 8.5 GiB through ONNX Runtime's own provider."""

WARM_SIZES = ((256, 256), (512, 512))
"""(height, width) that are warm before the model counts as ready, if the model takes them."""

TYPES = {torch.uint8: model_config_pb2.TYPE_UINT8, torch.float32: model_config_pb2.TYPE_FP32}

HEURISTIC = "1"
"""Of `cudnn_conv_algo_search`: NVIDIA's backend else tries every algorithm for every new shape, which takes ten times
as long."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A model's name, which stands in file names, URLs and command lines."""

Provider = Literal["openvino", "cpu"]
"""ONNX Runtime's execution provider on a CPU: OpenVINO's, or its own."""


@dataclass(frozen=True)
class Serving:
    """How a model is to be served. instances x threads = cores, or the instances fight over them.

    `engine` is what runs it, on a CPU with ONNX Runtime's execution `provider`; `file` is `model.onnx`, or `model.plan`
    for the backend `tensorrt`, NVIDIA's or ours. `profile` are the shapes that TensorRT takes, which bound the limits.
    `parameters` are for clients, besides the styles and the limits.
    """

    styles: tuple[str, ...]
    cores: int
    instances: int = 1
    multiple: int = 4
    max_batch: int = MAX_BATCH
    max_pixels: int = MAX_PIXELS
    engine: Engine = "cpu"
    provider: Provider = "openvino"
    precision: Literal["fp32", "fp16"] = "fp32"
    file: str = "model.onnx"
    profile: Profile | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """Threads of one instance."""
        return max(1, self.cores // self.instances)

    @property
    def batch(self) -> int:
        """The largest batch."""
        return self.profile.maximum[0] if self.profile else self.max_batch

    @property
    def limits(self) -> dict[str, str]:
        """The sizes that are taken, by the names of the config's parameters."""
        if self.profile is None:
            return {"min_side": "1", "max_pixels": str(self.max_pixels)}
        _, height, width = self.profile.maximum
        return {
            "min_side": str(max(self.profile.minimum[1:])),
            "max_side": str(max(height, width)),
            "max_pixels": str(height * width),
        }

    def takes(self, height: int, width: int) -> bool:
        """Whether a picture of this size can be painted."""
        if self.profile and self.profile.holds((self.profile.minimum[0], height, width))[1:] != (height, width):
            return False
        return height * width <= self.max_pixels


def config(
    name: str, inputs: Sequence[TensorSpec], output: TensorSpec, serving: Serving
) -> model_config_pb2.ModelConfig:
    """The `config.pbtxt` of a model as a message: its tensors, batching, instances, engine, limits and warm-up."""
    backend = "onnxruntime" if serving.file.endswith(".onnx") else "tensorrt"
    message = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=serving.batch)
    for spec in inputs:
        message.input.add(name=spec.name, data_type=TYPES[spec.dtype], dims=_dims(spec))
    message.output.add(name=output.name, data_type=TYPES[output.dtype], dims=_dims(output))
    # Joined requests pay on TensorRT alone. A CPU paints a batch no faster than its images one by one, in several times
    # the memory and with the first answer as late as the last; ONNX Runtime CUDA plans anew for every size of a batch.
    if serving.engine == "tensorrt":
        message.dynamic_batching.SetInParent()  # take what waits as one batch; wait for nobody
    _place(message, inputs, serving)
    parameters = {
        "styles": ",".join(serving.styles),
        **serving.limits,
        "precision": serving.precision,
        **({"profile": str(serving.profile)} if serving.profile else {}),
        **serving.parameters,
    }
    for key, value in parameters.items():
        message.parameters[key].string_value = value
    for height, width in WARM_SIZES:
        if serving.takes(height, width):
            _add_warmup(message, inputs, height, width, serving.multiple)
    return message


def _place(message: model_config_pb2.ModelConfig, inputs: Sequence[TensorSpec], serving: Serving) -> None:
    """Instances on the CPU's cores or on the GPU, and what runs the graph there."""
    if serving.engine == "cpu":
        message.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=serving.instances)
        message.parameters["intra_op_thread_count"].string_value = str(serving.threads)
        if serving.provider == "openvino":
            message.optimization.execution_accelerators.cpu_execution_accelerator.add(name="openvino")
        return
    message.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=serving.instances)
    if message.backend == "tensorrt":
        return
    message.parameters["cudnn_conv_algo_search"].string_value = HEURISTIC
    accelerators = message.optimization.execution_accelerators
    if serving.engine == "tensorrt":
        tensorrt = accelerators.gpu_execution_accelerator.add(name="tensorrt")
        for key, value in _provider_parameters(inputs, serving).items():
            tensorrt.parameters[key] = value
    else:
        accelerators.gpu_execution_accelerator.add(name="cuda")


def _provider_parameters(inputs: Sequence[TensorSpec], serving: Serving) -> dict[str, str]:
    """For ONNX Runtime's TensorRT provider, which else builds an engine for each new shape.

    The engine is kept where the server's process runs, or where `trt_engine_cache_path` in the config says.
    """
    parameters = {"precision_mode": serving.precision.upper(), "trt_engine_cache_enable": "true"}
    if serving.profile is None:
        return parameters
    tensors = [(spec.name, serving.profile.shapes(spec.axes, serving.multiple)) for spec in inputs]
    for position, bound in enumerate(("min", "opt", "max")):
        shown = (f"{name}:{'x'.join(map(str, shapes[position]))}" for name, shapes in tensors)
        parameters[f"trt_profile_{bound}_shapes"] = ",".join(shown)
    return parameters


def _dims(spec: TensorSpec) -> list[int]:
    """The sizes that Triton wants, without the batch; -1 is any."""
    return [axis if isinstance(axis, int) else -1 for axis in spec.axes[1:]]


def _add_warmup(
    message: model_config_pb2.ModelConfig, inputs: Sequence[TensorSpec], height: int, width: int, multiple: int
) -> None:
    warmup = message.model_warmup.add(name=f"{height}x{width}", batch_size=1)
    sides = {"H": height, "W": width, "h": height // multiple, "w": width // multiple}
    for spec in inputs:
        tensor = warmup.inputs[spec.name]
        tensor.data_type = TYPES[spec.dtype]
        tensor.dims.extend(
            axis if isinstance(axis, int) else int(axis[:-1] or 1) * sides[axis[-1]] for axis in spec.axes[1:]
        )
        if spec.name in (STYLE_WEIGHTS, STATISTICS):
            tensor.zero_data = True
        else:
            tensor.random_data = True


def check_names(name: str, styles: Sequence[str]) -> None:
    """Raise `ExportError` for a name that Triton would not take, or one of a style that clients could not write."""
    if not NAME.fullmatch(name):
        raise ExportError(
            f"{name!a} is no name for a served model: give another with --name, of ASCII letters, digits, '_', '-' "
            "and '.', not '-' or '.' first"
        )
    if bad := [style for style in styles if re.search(r"[,:]", style) or not style.isprintable() or not style.strip()]:
        raise ExportError(
            f"{bad[0]!a} is no name for a style: ',' and ':' separate styles and weights, and it must be printable"
        )


def publish(
    files: Mapping[str, Path],
    name: str,
    repository: Path,
    message: model_config_pb2.ModelConfig | None,
    *,
    keep: int | None = None,
) -> Path:
    """Put `files`, by the names they get, into the repository as the next version; return its folder.

    `message` is None where no Triton reads the folder. With `keep` only so many older versions stay. Raises
    `ExportError` for a repository that cannot be written; nothing is half-published then.
    """
    target = repository / name
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _staged(repository) as stage:
            version = str(next_version(target))
            (stage / name / version).mkdir(parents=True)
            for called, file in files.items():
                with atomic_write(stage / name / version / called) as beside:
                    shutil.copyfile(file, beside)
            text = None if message is None else text_format.MessageToString(message)
            if text is not None:
                with atomic_write(stage / name / "config.pbtxt") as beside:
                    beside.write_text(text)
            if target.exists():
                # The version first: a Triton that polls in between serves it with the old config, which a new
                # export seldom changes; the other way round it would open the old version with the new one.
                (stage / name / version).rename(target / version)
                if text is not None and _text(target / "config.pbtxt") != text:
                    with atomic_write(target / "config.pbtxt") as beside:
                        beside.write_text(text)
            else:
                (stage / name).rename(target)
            if keep is not None:
                _remove_older(target, int(version), keep, stage)
    except (OSError, InputError) as error:
        reason = next((said for one in (error, error.__cause__) if (said := getattr(one, "strerror", None))), error)
        raise ExportError(f"cannot publish {name} in {repository}: {reason}") from error
    return target / version


def versions(folder: Path) -> list[int]:
    """The versions of a model, oldest first; none for a folder that is not there."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.exists() else []


def next_version(folder: Path) -> int:
    """One above the highest version there is; 1 for a new model."""
    return max(versions(folder), default=0) + 1


def _remove_older(target: Path, version: int, keep: int, stage: Path) -> None:
    """Leave `keep` versions before `version`; a removed one leaves by a rename, whole at once."""
    older = [one for one in versions(target) if one < version]
    for one in older[: max(0, len(older) - keep)]:
        (target / str(one)).rename(stage / f"old-{one}")


def _text(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None


@contextmanager
def _staged(repository: Path) -> Iterator[Path]:
    """A folder from which whole models are renamed into the repository, removed after.

    It is beside the repository, since Triton takes every folder in it for a model. It is in it, hidden, where the
    repository is a file system of its own, such as a container's volume.
    """
    parent = repository.resolve().parent
    beside = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    stage = Path(tempfile.mkdtemp(dir=parent if beside else repository, prefix=f".{repository.name}-"))
    stage.chmod(0o755)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
