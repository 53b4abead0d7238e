"""Triton's model repository (contract 3): versions and configs, written beside and renamed.

The config is built and read with Triton's own `ModelConfig` message, never as a string.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_core.errors import InputError
from nst_core.files import written_whole
from nst_export.served import INPUT, OUTPUT, STYLE_WEIGHTS
from nst_export.verify import ExportError

MAX_BATCH = 8
MAX_PIXELS = 4096 * 2160
"""Largest picture that the served model takes, pixels: a 4K frame, which needs 4.8 GiB through OpenVINO at
width 1 and 8.5 GiB through ONNX Runtime's own provider."""

WARM_SIZES = ((256, 256), (512, 512))
"""(height, width) that are warm before the model counts as ready."""


@dataclass(frozen=True)
class Serving:
    """How a model is to be served. instances x threads = cores, or the instances fight over them."""

    styles: tuple[str, ...]
    cores: int
    instances: int = 1
    min_side: int = 16

    @property
    def threads(self) -> int:
        """Threads of one instance."""
        return max(1, self.cores // self.instances)


def config(name: str, serving: Serving) -> model_config_pb2.ModelConfig:
    """The `config.pbtxt` of a style model as a message: contract 1's tensors, batching, warm-up."""
    message = model_config_pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=MAX_BATCH)
    message.input.add(name=INPUT, data_type=model_config_pb2.TYPE_UINT8, dims=[-1, -1, 3])
    if len(serving.styles) > 1:
        message.input.add(name=STYLE_WEIGHTS, data_type=model_config_pb2.TYPE_FP32, dims=[len(serving.styles)])
    message.output.add(name=OUTPUT, data_type=model_config_pb2.TYPE_UINT8, dims=[-1, -1, 3])
    message.dynamic_batching.SetInParent()  # take what waits as one batch; wait for nobody
    message.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=serving.instances)
    message.optimization.execution_accelerators.cpu_execution_accelerator.add(name="openvino")
    message.parameters["intra_op_thread_count"].string_value = str(serving.threads)
    message.parameters["styles"].string_value = ",".join(serving.styles)
    message.parameters["min_side"].string_value = str(serving.min_side)
    message.parameters["max_pixels"].string_value = str(MAX_PIXELS)
    for height, width in WARM_SIZES:
        warmup = message.model_warmup.add(name=f"{height}x{width}", batch_size=1)
        warmup.inputs[INPUT].data_type = model_config_pb2.TYPE_UINT8
        warmup.inputs[INPUT].dims.extend([height, width, 3])
        warmup.inputs[INPUT].random_data = True
        if len(serving.styles) > 1:
            warmup.inputs[STYLE_WEIGHTS].data_type = model_config_pb2.TYPE_FP32
            warmup.inputs[STYLE_WEIGHTS].dims.append(len(serving.styles))
            warmup.inputs[STYLE_WEIGHTS].zero_data = True
    return message


def publish(model: Path, name: str, repository: Path, serving: Serving) -> Path:
    """Put the verified ONNX file `model` into the repository as the next version; return its folder.

    Raises `ExportError` for a name that Triton would not take or a repository that cannot be
    written; nothing is half-published then.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ExportError(f"{name!r} is no name for a served model: use letters, digits, '-', '_' and '.'")
    if bad := [style for style in serving.styles if re.search(r"[,:]", style)]:
        raise ExportError(f"{bad[0]!r} is no name for a style: it has ',' or ':', which separate styles and weights")
    text = text_format.MessageToString(config(name, serving))
    target = repository / name
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _staged(repository) as stage:
            version = str(next_version(target))
            (stage / name / version).mkdir(parents=True)
            shutil.copyfile(model, stage / name / version / "model.onnx")
            (stage / name / "config.pbtxt").write_text(text)
            if target.exists():
                with written_whole(target / "config.pbtxt") as beside:
                    beside.write_text(text)
                (stage / name / version).rename(target / version)
            else:
                (stage / name).rename(target)
    except (OSError, InputError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"cannot publish {name} in {repository}: {reason}") from error
    return target / version


def next_version(folder: Path) -> int:
    """One above the highest version there is; 1 for a new model."""
    versions = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.exists() else []
    return max(versions, default=0) + 1


@contextmanager
def _staged(repository: Path) -> Iterator[Path]:
    """A folder beside the repository (Triton takes every folder in it for a model), removed after."""
    stage = Path(tempfile.mkdtemp(dir=repository.parent, prefix=f".{repository.name}-"))
    stage.chmod(0o755)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
