"""An ONNX Runtime backend for Triton, built on Triton's Python backend.

It follows NVIDIA's stock backend (triton-inference-server/onnxruntime_backend) as far as a style model can use it, so
that a model repository gives the same results on both:

- The model is `model.onnx`, or the file in `default_model_filename`, or a folder that contains `model.onnx`.
- A config without inputs or outputs is completed from the graph. If the first axis of every tensor is dynamic, it also
  gets `max_batch_size` 4 (the stock backend's `default-max-batch-size`) and the dynamic batcher.
- Parameters: `intra_op_thread_count`, `inter_op_thread_count`, `execution_mode`, `enable_mem_arena`,
  `enable_mem_pattern`, `memory.enable_memory_arena_shrinkage`, `session.use_device_allocator_for_initializers`; on a
  GPU also `cudnn_conv_algo_search`, `gpu_mem_limit`, `arena_extend_strategy`, `do_copy_in_default_stream`.
- `optimization.graph.level`.
- `optimization.execution_accelerators`: `openvino` on a CPU, `tensorrt` and `cuda` on a GPU, with their parameters.
  An unknown accelerator or parameter is an error.
- Instance groups of `KIND_CPU` and `KIND_GPU`. A GPU instance always has the CUDA provider, also after TensorRT.

An execution provider that the config names and ONNX Runtime lacks is an error; there is no fallback.

Two things differ on a GPU. `cudnn_conv_algo_search` is 1 (heuristic) unless the config says otherwise. And each input
shape, batch included, has its own session (`engines/onnx_cuda.py`), since a session plans its convolutions again
whenever the shape changes; `gpu_mem_limit` applies to each session and to all of them together. With the `tensorrt`
accelerator, one session serves every shape.

Not supported: `--backend-config=onnxruntime,...`, which Triton does not pass to Python-based backends;
`share_session_between_instances`, since every instance is a separate process; and tensors of strings.

In addition:

- The limits `min_side`, `max_side` (pixels per side) and `max_pixels` (pixels per image), which are parameters of style
  models, are checked before a request runs.
- A run has at most `max_pixels` pixels in all its images together, or 512x512 for several images on a CPU. Larger
  batches run in parts.
- A request that fails does not fail the others that Triton batched with it.
- Every model has its own metrics (`nst_*`) on Triton's metrics port.

The file runs inside Triton's stub process with `session_settings.py`, `backend_common.py` and the package `engines`
beside it, and imports nothing of nst.
"""

import json
import math
import os
import time

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it once, at import

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from backend_common import Metrics, Refused, SizeLimits, failure, number, parameters_of, received, response, shown
from session_settings import providers, run_config, run_options, session_options

DEFAULT_MAX_BATCH_SIZE = 4

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float": "TYPE_FP32",
    "double": "TYPE_FP64",
}

CPU_RUN_PIXELS = 512 * 512
"""Maximum pixels of a run of several images on a CPU: beyond it the features leave the caches, and an image of 512x512
in a batch of five took 1.3 times as long as alone."""

RUN_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
"""Upper bounds of the buckets of `nst_run_seconds`."""


class TritonPythonModel:
    """One instance of one model: an ONNX Runtime session and its batches."""

    @staticmethod
    def auto_complete_config(config):
        """Complete a config that lacks inputs or outputs, from the graph, as the stock backend does."""
        given = config.as_dict()
        if given["input"] and given["output"]:
            return config
        path = _file(pb_utils.get_model_dir(), given)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is only inspected
        session = _session(path, {"sess_options": options, "providers": ["CPUExecutionProvider"]})
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if all(tensor.shape and not isinstance(tensor.shape[0], int) for tensor in (*inputs, *outputs)):
            if given["max_batch_size"] == 0:
                config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
            if given["max_batch_size"] > 1 and "sequence_batching" not in given:
                config.set_dynamic_batching()
        elif given["max_batch_size"]:
            raise pb_utils.TritonModelException(
                f"{path}: max_batch_size is {given['max_batch_size']}, but the first axis of some of the "
                "model's tensors is fixed, so it cannot batch; set max_batch_size to 0"
            )
        first = 1 if given["max_batch_size"] else 0
        if not given["input"]:
            for tensor in inputs:
                config.add_input(_described(tensor, first))
        if not given["output"]:
            for tensor in outputs:
                config.add_output(_described(tensor, first))
        return config

    def initialize(self, args):
        """Open the session; raises `TritonModelException` for an execution provider that is not available."""
        config = json.loads(args["model_config"])
        self.path = _file(os.path.join(args["model_repository"], args["model_version"]), config)
        parameters = parameters_of(config)
        self.on_gpu = args["model_instance_kind"] == "GPU"
        self.settings = {
            "sess_options": session_options(config, parameters),
            "providers": providers(config, parameters, args["model_instance_kind"], args["model_instance_device_id"]),
        }
        self.limits = SizeLimits(parameters)
        largest = self.limits.max_pixels
        self.run_pixels = largest if self.on_gpu else min(largest, CPU_RUN_PIXELS)
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        _check_types(config)
        self.joined = {}
        if self.on_gpu:
            self.session = _gpu_sessions(self.path, self.settings, run_config(parameters))
            inputs, outputs = self.session.inputs, self.session.outputs
        else:
            self.session, self.run_options = self.open_session(), run_options(run_config(parameters))
            inputs = [tensor.name for tensor in self.session.get_inputs()]
            outputs = [tensor.name for tensor in self.session.get_outputs()]
        _check_names(self.path, "input", self.inputs, inputs)
        _check_names(self.path, "output", self.outputs, outputs)
        self.metrics = Metrics(args["model_name"], args["model_version"], "ONNX Runtime", RUN_SECONDS)
        reopened = self.metrics.family(
            pb_utils.MetricFamily.COUNTER, "nst_session_reopened_total", "Sessions reopened after a failed run"
        )
        self.reopened = reopened.Metric(labels=self.metrics.labels)

    def execute(self, requests):
        """Run the requests of one execution, those of equal shape as one batch; an error concerns only its request."""
        responses = [None] * len(requests)
        groups = {}
        for position, request in enumerate(requests):
            try:
                tensors = self._tensors(request)
            except Refused as refusal:
                responses[position] = failure(refusal, pb_utils.TritonError.INVALID_ARG)
            else:
                groups.setdefault(tuple(tensor.shape[1:] for tensor in tensors), []).append((position, tensors))
        self.metrics.requests("refused", sum(answer is not None for answer in responses))
        for group in groups.values():
            for batch in self._batches(group):
                answers = self._run([tensors for _, tensors in batch])
                for (position, _), answer in zip(batch, answers):
                    responses[position] = answer
        return responses

    def finalize(self):
        """Release the metrics and close the session."""
        if self.on_gpu:
            self.session.close()
        self.reopened = self.metrics = self.session = None

    def open_session(self):
        """Open a session on the CPU."""
        session = _session(self.path, self.settings)
        asked = [name for name, _ in self.settings["providers"]]
        given = session.get_providers()
        if given[: len(asked)] != asked:
            raise pb_utils.TritonModelException(
                f"requested {', '.join(asked)} from ONNX Runtime, but got {', '.join(given)}"
            )
        return session

    def _reopen(self):
        """Reopen OpenVINO's session after a failed run: it would fail the next request of the same shape.

        On a GPU, `CudaSessions` does this.
        """
        if self.settings["providers"][0][0] != "OpenVINOExecutionProvider":
            return
        try:
            self.session = self.open_session()
        except pb_utils.TritonModelException as error:  # such as a version that was removed while it was served
            pb_utils.Logger.log_error(f"continuing with the failed session: {error}")
        self.reopened.increment(1)

    def _tensors(self, request):
        """Return the arrays of a request in the order of the config; `Refused` for what must not reach the graph."""
        tensors = [received(request, name) for name in self.inputs]
        if tensors[0].ndim == 4:
            self.limits.check(*tensors[0].shape[1:3])
        return tensors

    def _batches(self, group):
        """Split the requests of a group into the runs that `run_pixels` allows, so that each run is copied as one."""
        batches, images = [], 0
        for position, tensors in group:
            count = len(tensors[0])
            if not batches or images + count > self._max_images(tensors[0]):
                batches.append([])
                images = 0
            batches[-1].append((position, tensors))
            images += count
        return batches

    def _max_images(self, array):
        """Return how many images of this size may run together: memory grows with the pixels of a run."""
        return max(1, self.run_pixels // (array.shape[1] * array.shape[2])) if array.ndim == 4 else 2**62

    def _run(self, batch):
        """Return one response for each request of `batch`, lists of input arrays that differ in axis 0 only."""
        feeds = [self._together(position, tensors) for position, tensors in enumerate(zip(*batch))]
        try:
            answers = self._answers(feeds)
        except Exception as reason:  # ONNX Runtime's exceptions have no common root
            self._reopen()
            if len(batch) > 1:  # one request must not fail the others
                return [self._run([tensors])[0] for tensors in batch]
            self.metrics.requests("failed")
            return [failure(f"{self.inputs[0]} {shown(feeds[0].shape)}: {reason}", pb_utils.TritonError.INTERNAL)]
        self.metrics.requests("ok", len(batch))
        ends = np.cumsum([len(tensors[0]) for tensors in batch])
        return [
            response({name: answer[start:end] for name, answer in zip(self.outputs, answers)})
            for start, end in zip([0, *ends[:-1]], ends)
        ]

    def _together(self, position, arrays):
        """Join the arrays of input number `position`, in memory that the next batch reuses."""
        if len(arrays) == 1:
            return arrays[0]
        shape, dtype = (sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype
        size = math.prod(shape) * dtype.itemsize
        if position not in self.joined or self.joined[position].size < size:
            self.joined[position] = np.empty(size, np.uint8)
        return np.concatenate(arrays, out=self.joined[position][:size].view(dtype).reshape(shape))

    def _answers(self, feeds):
        """Return the outputs for `feeds`, in as many runs as `run_pixels` requires."""
        count, maximum = len(feeds[0]), self._max_images(feeds[0])
        if count <= maximum:
            return self._timed(feeds)
        starts = range(0, count, maximum)
        parts = [self._timed([feed[start : start + maximum] for feed in feeds]) for start in starts]
        return [np.concatenate(part) for part in zip(*parts)]

    def _timed(self, feeds):
        started = time.perf_counter()
        named = dict(zip(self.inputs, feeds))
        if self.on_gpu:
            answers = self.session.run(named, self.outputs)
        else:
            answers = self.session.run(self.outputs, named, self.run_options)
        self.metrics.ran(len(feeds[0]), time.perf_counter() - started)
        return answers


def _file(folder, config):
    """Return the path of the model's file in a version's folder."""
    path = os.path.join(folder, config.get("default_model_filename") or "model.onnx")
    return os.path.join(path, "model.onnx") if os.path.isdir(path) else path


def _check_file(path):
    if not os.path.exists(path):
        raise pb_utils.TritonModelException(f"{path}: no such file")


def _gpu_sessions(path, settings, run_entries):
    """Open the sessions of a GPU instance: one per shape, or one for all with TensorRT's dynamic shapes."""
    _check_file(path)
    chosen = settings["providers"]
    options = dict(chosen)["CUDAExecutionProvider"]
    limit = number(options, "gpu_mem_limit", 0)
    single_session = {"sessions": 0} if chosen[0][0] == "TensorrtExecutionProvider" else {}
    try:
        from engines.onnx_cuda import CudaSessions  # not needed by a CPU instance

        return CudaSessions(
            path,
            device=int(options["device_id"]),
            providers=chosen,
            session_options=settings["sess_options"],
            run_config=run_entries,
            memory_limit=limit or None,
            **single_session,
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        raise pb_utils.TritonModelException(f"cannot run {path} on a GPU instance: {error}") from error


def _session(path, settings):
    _check_file(path)
    try:
        return onnxruntime.InferenceSession(path, enable_fallback=0, **settings)  # or it would fall back
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        raise pb_utils.TritonModelException(f"{path}: {error}") from error


def _described(tensor, first):
    """Return the config's entry for a tensor of the graph, without its first axis if Triton batches."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    if kind not in TYPES:
        raise pb_utils.TritonModelException(f"{tensor.name}: Triton has no type for {tensor.type}")
    dims = [axis if isinstance(axis, int) else -1 for axis in tensor.shape[first:]]
    return {"name": tensor.name, "data_type": TYPES[kind], "dims": dims or [1]}


def _check_names(path, kind, configured, names):
    needed = set(names) if kind == "input" else set()  # a config may leave out outputs
    if wrong := (set(configured) - set(names)) | (needed - set(configured)):
        raise pb_utils.TritonModelException(
            f"{kind} {', '.join(sorted(wrong))} does not match: {path} has {', '.join(names)}, but the config "
            f"has {', '.join(configured)}"
        )


def _check_types(config):
    for tensor in (*config["input"], *config["output"]):
        if tensor["data_type"] == "TYPE_STRING":
            raise pb_utils.TritonModelException(f"{tensor['name']} has strings, which this backend does not support")
