"""The configuration of a served model, `config.pbtxt`, as Triton's own `ModelConfig` message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from tritonclient.grpc import model_config_pb2

from nst_core.contract import STATISTICS, STYLE_WEIGHTS, Parameter
from nst_core.engines.plans import Profile
from nst_export.graph.rewrites import Runtime
from nst_export.modules import TensorSpec

MAXIMUM_BATCH = 8
MAXIMUM_PIXELS = 4096 * 2160
"""Maximum pixels of a served model: a 4K frame, which needs 4.8 GiB with OpenVINO at width 1, and 8.5 GiB with ONNX
Runtime's own provider."""

WARM_SIZES = ((256, 256), (512, 512))
"""(height, width) of the warm-up requests before the model is ready, if the model accepts them."""

TYPES = {torch.uint8: model_config_pb2.TYPE_UINT8, torch.float32: model_config_pb2.TYPE_FP32}

HEURISTIC_SEARCH = "1"
"""Value of `cudnn_conv_algo_search`; by default NVIDIA's backend tries every algorithm for every new shape, which takes
ten times as long."""

Provider = Literal["openvino", "cpu"]
"""ONNX Runtime's execution provider on a CPU: OpenVINO, or its own."""


@dataclass(frozen=True)
class ServingOptions:
    """How a model is served. instances x threads = cores, so that the instances do not compete for cores.

    `runtime` runs it, on a CPU with ONNX Runtime's execution `provider`. `file` is `model.onnx`, or `model.plan` for
    the backend `tensorrt`, NVIDIA's or nst's. `profile` has the shapes that TensorRT accepts, which determine the
    limits. `parameters` are for clients, besides the styles and the limits.
    """

    styles: tuple[str, ...]
    cores: int
    instances: int = 1
    multiple: int = 4
    maximum_batch: int = MAXIMUM_BATCH
    maximum_pixels: int = MAXIMUM_PIXELS
    runtime: Runtime = "cpu"
    provider: Provider = "openvino"
    precision: Literal["fp32", "fp16"] = "fp32"
    file: str = "model.onnx"
    profile: Profile | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """Threads per instance."""
        return max(1, self.cores // self.instances)

    @property
    def batch(self) -> int:
        """Maximum batch size."""
        return self.profile.maximum[0] if self.profile else self.maximum_batch

    @property
    def limits(self) -> dict[str, str]:
        """The accepted sizes, as parameters of the configuration."""
        if self.profile is None:
            return {Parameter.MIN_SIDE: "1", Parameter.MAX_PIXELS: str(self.maximum_pixels)}
        _, height, width = self.profile.maximum
        return {
            Parameter.MIN_SIDE: str(max(self.profile.minimum[1:])),
            Parameter.MAX_SIDE: str(max(height, width)),
            Parameter.MAX_PIXELS: str(height * width),
        }

    def takes(self, height: int, width: int) -> bool:
        """Return whether the model accepts an image of this size."""
        if self.profile and self.profile.holds((self.profile.minimum[0], height, width))[1:] != (height, width):
            return False
        return height * width <= self.maximum_pixels


def model_config(
    name: str, inputs: Sequence[TensorSpec], output: TensorSpec, serving: ServingOptions
) -> model_config_pb2.ModelConfig:
    """Create a model's configuration: its tensors, batching, instances, accelerators, limits and warm-up."""
    backend = "onnxruntime" if serving.file.endswith(".onnx") else "tensorrt"
    message = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=serving.batch)
    for spec in inputs:
        message.input.add(name=spec.name, data_type=TYPES[spec.dtype], dims=_dims(spec))
    message.output.add(name=output.name, data_type=TYPES[output.dtype], dims=_dims(output))
    # Only TensorRT gains from dynamic batching. A CPU stylizes a batch no faster than its images one after the other,
    # with several times the memory, and the first answer is as late as the last; ONNX Runtime CUDA plans its
    # convolutions again for every batch size.
    if serving.runtime == "tensorrt":
        message.dynamic_batching.SetInParent()  # batches waiting requests, without waiting for more
    _add_instances(message, inputs, serving)
    parameters: dict[str, str] = {
        Parameter.STYLES: ",".join(serving.styles),
        **serving.limits,
        "precision": serving.precision,
        **({Parameter.PROFILE: str(serving.profile)} if serving.profile else {}),
        **serving.parameters,
    }
    for key, value in parameters.items():
        message.parameters[key].string_value = value
    for height, width in WARM_SIZES:
        if serving.takes(height, width):
            _add_warmup(message, inputs, height, width, serving.multiple)
    return message


def _add_instances(
    message: model_config_pb2.ModelConfig, inputs: Sequence[TensorSpec], serving: ServingOptions
) -> None:
    """Add the instance group on the CPU or the GPU, and the execution accelerator."""
    if serving.runtime == "cpu":
        message.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=serving.instances)
        message.parameters["intra_op_thread_count"].string_value = str(serving.threads)
        if serving.provider == "openvino":
            message.optimization.execution_accelerators.cpu_execution_accelerator.add(name="openvino")
        return
    message.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=serving.instances)
    if message.backend == "tensorrt":
        return
    message.parameters["cudnn_conv_algo_search"].string_value = HEURISTIC_SEARCH
    accelerators = message.optimization.execution_accelerators
    if serving.runtime == "tensorrt":
        tensorrt = accelerators.gpu_execution_accelerator.add(name="tensorrt")
        for key, value in _tensorrt_provider_parameters(inputs, serving).items():
            tensorrt.parameters[key] = value
    else:
        accelerators.gpu_execution_accelerator.add(name="cuda")


def _tensorrt_provider_parameters(inputs: Sequence[TensorSpec], serving: ServingOptions) -> dict[str, str]:
    """Return parameters of ONNX Runtime's TensorRT provider; without them it builds an engine for each new shape.

    It caches the engine in the server's working directory, or in the config's `trt_engine_cache_path`.
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
    """Return the dimensions without the batch, as Triton has them; -1 is any."""
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
