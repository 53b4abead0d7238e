"""Triton's ONNX Runtime backend, Python-based, for a Triton that has only its Python backend.

It honours the contract of the stock backend (triton-inference-server/onnxruntime_backend) as far
as a style model uses it: `model.onnx`, the parameters `intra_op_thread_count`,
`inter_op_thread_count`, `execution_mode`, `enable_mem_arena` and `enable_mem_pattern`,
`optimization.graph.level`, and the CPU accelerator `openvino`. One repository, two servers, the
same answers. Beyond it, the parameters `min_side` and `max_pixels` that style models carry are checked
before a request runs. It lives inside Triton's stub process and imports nothing of nst.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

GRAPH_LEVELS = {
    "-1": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "1": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class TritonPythonModel:
    """One instance of one model: an ONNX Runtime session and the batches that go through it."""

    def initialize(self, args):
        """Open the session; a provider that was asked for and not given is an error."""
        config = json.loads(args["model_config"])
        file = config.get("default_model_filename") or "model.onnx"
        path = os.path.join(args["model_repository"], args["model_version"], file)
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        self.settings = {"sess_options": _options(config, parameters), "providers": _providers(config, parameters)}
        self.path = path
        self.min_side = int(parameters.get("min_side", 1))
        self.max_pixels = int(parameters.get("max_pixels", 2**62))
        self.session = self._open()
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests):
        """Run the requests of one execution, those of one shape as one batch; errors go to their request."""
        arrays = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
            for request in requests
        ]
        responses = [self._refusal(tensors[0].shape) for tensors in arrays]
        groups = {}
        for position, tensors in enumerate(arrays):
            if responses[position] is None:
                groups.setdefault(tuple(tensor.shape[1:] for tensor in tensors), []).append(position)
        for positions in groups.values():
            for position, response in zip(positions, self._run([arrays[at] for at in positions])):
                responses[position] = response
        return responses

    def _open(self):
        try:
            session = onnxruntime.InferenceSession(self.path, **self.settings)
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise pb_utils.TritonModelException(f"{self.path}: {error}") from error
        asked, given = self.settings["providers"][0][0], session.get_providers()
        if given[0] != asked:
            raise pb_utils.TritonModelException(f"asked for {asked}, got {', '.join(given)}")
        return session

    def _refusal(self, shape):
        """An error response for a picture `[N, H, W, 3]` beyond the model's limits, else None."""
        if len(shape) != 4:
            return None
        height, width = shape[1:3]
        if min(height, width) < self.min_side:
            reason = f"{self.min_side} pixels and more a side"
        elif height * width > self.max_pixels:
            reason = f"{self.max_pixels / 1e6:.1f} megapixels and less"
        else:
            return None
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{width}x{height}: this model takes {reason}"))

    def _run(self, batch):
        """One response for each request of `batch`, lists of input arrays that differ in axis 0 only."""
        feeds = {
            name: tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
            for name, tensors in zip(self.inputs, zip(*batch))
        }
        try:
            answers = self.session.run(self.outputs, feeds)
        except Exception as error:
            failure = pb_utils.TritonError(f"{self.inputs[0]} {feeds[self.inputs[0]].shape}: {error}")
            self.session = self._open()  # OpenVINO's would fail the next request with this one's shape
            return [pb_utils.InferenceResponse(error=failure) for _ in batch]
        ends = np.cumsum([len(tensors[0]) for tensors in batch])
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, answer[start:end]) for name, answer in zip(self.outputs, answers)]
            )
            for start, end in zip([0, *ends[:-1]], ends)
        ]


def _options(config, parameters):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "1") == "1"
    options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1") == "1"
    if parameters.get("execution_mode", "0") == "1":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    level = str(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level in GRAPH_LEVELS:
        options.graph_optimization_level = GRAPH_LEVELS[level]
    return options


def _providers(config, parameters):
    """The provider of the config's CPU accelerator, or ONNX Runtime's own."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    wanted = [entry["name"] for entry in accelerators.get("cpu_execution_accelerator", [])]
    if not wanted:
        return [("CPUExecutionProvider", {})]
    if wanted != ["openvino"]:
        raise pb_utils.TritonModelException(f"unknown CPU accelerator {', '.join(wanted)}; known: openvino")
    settings = {"device_type": "CPU"}
    if threads := parameters.get("intra_op_thread_count"):
        settings["num_of_threads"] = threads
    return [("OpenVINOExecutionProvider", settings)]
