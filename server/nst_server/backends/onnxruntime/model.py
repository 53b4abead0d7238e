"""An ONNX Runtime backend for Triton, built on Triton's Python backend.

It follows the contract of NVIDIA's stock backend (triton-inference-server/onnxruntime_backend) as far as a style model
can use it, so that one model repository gives the same answers on both:

- The model is `model.onnx`, or the file that `default_model_filename` names, or a folder with `model.onnx` in it.
- A config without inputs or outputs is completed from the graph. If the first axis of every tensor is open, it also
  gets `max_batch_size` 4 (the stock backend's `default-max-batch-size`) and the dynamic batcher.
- Parameters: `intra_op_thread_count`, `inter_op_thread_count`, `execution_mode`, `enable_mem_arena`,
  `enable_mem_pattern`, `memory.enable_memory_arena_shrinkage`, `session.use_device_allocator_for_initializers`; on a
  GPU also `cudnn_conv_algo_search`, `gpu_mem_limit`, `arena_extend_strategy`, `do_copy_in_default_stream`.
- `optimization.graph.level`.
- `optimization.execution_accelerators`: `openvino` on a CPU, `tensorrt` and `cuda` on a GPU, with their parameters.
  An unknown accelerator or parameter is an error.
- Instance groups of `KIND_CPU` and `KIND_GPU`. A GPU instance always has the CUDA provider, also behind TensorRT.

An execution provider that the config asks for and ONNX Runtime lacks is an error; nothing falls back.

Two things differ on a GPU. `cudnn_conv_algo_search` is 1 (heuristic) unless the config says otherwise. And each input
shape, batch included, has a session of its own (`engines/onnx_cuda.py`), since a session plans its convolutions again
whenever the shape changes; `gpu_mem_limit` holds for each session and for all of them together. With the `tensorrt`
accelerator one session serves every shape.

Not supported: `--backend-config=onnxruntime,...`, which Triton does not pass to Python-based backends;
`share_session_between_instances`, since every instance is a process of its own; and tensors of strings.

In addition to the contract:

- The limits `min_side`, `max_side` (pixels a side) and `max_pixels` (pixels of an image), which style models carry as
  parameters, are checked before a request runs.
- A run has at most `max_pixels` pixels in all its images together, and on a CPU, if it has several images, at most
  512x512. Larger batches run in parts.
- A request that fails does not fail the others that Triton batched with it.
- Every model has metrics of its own (`nst_*`) on Triton's metrics port.

The file runs inside Triton's stub process with `backend_common.py` and the package `engines` beside it, and imports
nothing of nst.
"""

import json
import math
import os
import time

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it once, when it is imported

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from backend_common import Limits, Metrics, Refused, failure, number, parameters_of, received, response, shown

DEFAULT_MAX_BATCH_SIZE = 4

GRAPH_LEVELS = {
    "-1": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "0": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "1": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

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

BOOLEANS = {"1": "True", "true": "True", "True": "True", "0": "False", "false": "False", "False": "False"}

OPENVINO = {"cache_dir", "disable_dynamic_shapes", "load_config", "num_of_threads", "num_streams", "precision"}

OPENVINO_CONFIG = '{"CPU": {"CPU_RUNTIME_CACHE_CAPACITY": "500"}}'
"""OpenVINO remembers so many shapes of each layer; its own 5000 take gigabytes where every picture has another size."""

TENSORRT_BOOLEANS = {
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
    "trt_build_heuristics_enable": "trt_build_heuristics_enable",
    "trt_context_memory_sharing_enable": "trt_context_memory_sharing_enable",
    "trt_cuda_graph_enable": "trt_cuda_graph_enable",
    "trt_detailed_build_log": "trt_detailed_build_log",
    "trt_dla_enable": "trt_dla_enable",
    "trt_dump_ep_context_model": "trt_dump_ep_context_model",
    "trt_dump_subgraphs": "trt_dump_subgraphs",
    "trt_engine_cache_enable": "trt_engine_cache_enable",
    "trt_force_sequential_engine_build": "trt_force_sequential_engine_build",
    "trt_force_timing_cache": "trt_force_timing_cache",
    "trt_layer_norm_fp32_fallback": "trt_layer_norm_fp32_fallback",
    "trt_sparsity_enable": "trt_sparsity_enable",
    "trt_timing_cache_enable": "trt_timing_cache_enable",
}
"""TensorRT's switches: what they are called in a config, and what ONNX Runtime calls them."""

TENSORRT = {
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "trt_auxiliary_streams": "trt_auxiliary_streams",
    "trt_builder_optimization_level": "trt_builder_optimization_level",
    "trt_dla_core": "trt_dla_core",
    "trt_engine_cache_path": "trt_engine_cache_path",
    "trt_engine_cache_prefix": "trt_engine_cache_prefix",
    "trt_ep_context_embed_mode": "trt_ep_context_embed_mode",
    "trt_ep_context_file_path": "trt_ep_context_file_path",
    "trt_extra_plugin_lib_paths": "trt_extra_plugin_lib_paths",
    "trt_max_partition_iterations": "trt_max_partition_iterations",
    "trt_min_subgraph_size": "trt_min_subgraph_size",
    "trt_profile_max_shapes": "trt_profile_max_shapes",
    "trt_profile_min_shapes": "trt_profile_min_shapes",
    "trt_profile_opt_shapes": "trt_profile_opt_shapes",
    "trt_tactic_sources": "trt_tactic_sources",
    "trt_timing_cache_path": "trt_timing_cache_path",
}

PRECISIONS = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "True"},
    "BF16": {"trt_bf16_enable": "True"},
    "INT8": {"trt_int8_enable": "True"},
}

CUDA = {
    "arena_extend_strategy",
    "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream",
    "enable_cuda_graph",
    "enable_skip_layer_norm_strict_mode",
    "fuse_conv_bias",
    "gpu_mem_limit",
    "prefer_nhwc",
    "sdpa_kernel",
    "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms",
    "tunable_op_tuning_enable",
    "use_ep_level_unified_stream",
    "use_tf32",
}

CUDA_PARAMETERS = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": {"0": "0", "1": "1"},
    "gpu_mem_limit": None,
}
"""CUDA's settings that may also stand among the model's parameters, and what their numbers mean."""

CPU_RUN_PIXELS = 512 * 512
"""A run of more than one picture has no more pixels than this on a CPU: beyond, its features leave the caches, and a
picture of 512x512 in a batch of five took 1.3 times as long as alone."""

SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
"""Upper bounds of the buckets of `nst_run_seconds`."""


class TritonPythonModel:
    """One instance of one model: an ONNX Runtime session and the batches that go through it."""

    @staticmethod
    def auto_complete_config(config):
        """Complete a config that lacks inputs or outputs, from the graph, as the stock backend does."""
        given = config.as_dict()
        if given["input"] and given["output"]:
            return config
        path = _file(pb_utils.get_model_dir(), given)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # only read
        session = _session(path, {"sess_options": options, "providers": ["CPUExecutionProvider"]})
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if all(tensor.shape and not isinstance(tensor.shape[0], int) for tensor in (*inputs, *outputs)):
            if given["max_batch_size"] == 0:
                config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
            if given["max_batch_size"] > 1 and "sequence_batching" not in given:
                config.set_dynamic_batching()
        elif given["max_batch_size"]:
            raise pb_utils.TritonModelException(
                f"{path}: max_batch_size is {given['max_batch_size']}, and the model has tensors whose first axis "
                "is fixed: it cannot batch"
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
        """Open the session; an execution provider that the config asks for and does not get is an error."""
        config = json.loads(args["model_config"])
        self.path = _file(os.path.join(args["model_repository"], args["model_version"]), config)
        parameters = parameters_of(config)
        self.on_gpu = args["model_instance_kind"] == "GPU"
        self.settings = {
            "sess_options": _options(config, parameters),
            "providers": _providers(config, parameters, args["model_instance_kind"], args["model_instance_device_id"]),
        }
        self.limits = Limits(parameters)
        largest = self.limits.max_pixels
        self.run_pixels = largest if self.on_gpu else min(largest, CPU_RUN_PIXELS)
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        _check_types(config)
        self.joined = {}
        if self.on_gpu:
            self.session = _gpu_sessions(self.path, self.settings, _run_config(parameters))
            inputs, outputs = self.session.inputs, self.session.outputs
        else:
            self.session, self.run_options = self._open(), _run_options(_run_config(parameters))
            inputs = [tensor.name for tensor in self.session.get_inputs()]
            outputs = [tensor.name for tensor in self.session.get_outputs()]
        _check_names(self.path, "input", self.inputs, inputs)
        _check_names(self.path, "output", self.outputs, outputs)
        self.metrics = Metrics(args["model_name"], args["model_version"], "ONNX Runtime", SECONDS)
        reopened = self.metrics.family(
            pb_utils.MetricFamily.COUNTER, "nst_session_reopened_total", "Sessions opened anew after a failed run"
        )
        self.reopened = reopened.Metric(labels=self.metrics.labels)

    def execute(self, requests):
        """Run the requests of one execution, those of one shape as one batch; errors go to their request."""
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
        """Give up the metrics and close the session."""
        if self.on_gpu:
            self.session.close()
        self.reopened = self.metrics = self.session = None

    def _open(self):
        """A session on the CPU."""
        session = _session(self.path, self.settings)
        asked = [name for name, _ in self.settings["providers"]]
        given = session.get_providers()
        if given[: len(asked)] != asked:
            raise pb_utils.TritonModelException(f"asked ONNX Runtime for {', '.join(asked)}, got {', '.join(given)}")
        return session

    def _reopen(self):
        """Open OpenVINO's session anew after a failed run: it would fail the next request with the shape of this one.

        On a GPU the sessions see to that by themselves.
        """
        if self.settings["providers"][0][0] != "OpenVINOExecutionProvider":
            return
        try:
            self.session = self._open()
        except pb_utils.TritonModelException as error:  # such as a version that was removed while it is served
            pb_utils.Logger.log_error(f"going on with the session that failed: {error}")
        self.reopened.increment(1)

    def _tensors(self, request):
        """The arrays of a request in the order of the config; `Refused` for what must not reach the graph."""
        tensors = [received(request, name) for name in self.inputs]
        if tensors[0].ndim == 4:
            self.limits.check(*tensors[0].shape[1:3])
        return tensors

    def _batches(self, group):
        """The requests of a group in as many runs as `run_pixels` asks for: what runs together is copied together."""
        batches, pictures = [], 0
        for position, tensors in group:
            count = len(tensors[0])
            if not batches or pictures + count > self._most(tensors[0]):
                batches.append([])
                pictures = 0
            batches[-1].append((position, tensors))
            pictures += count
        return batches

    def _most(self, array):
        """How many pictures like these may run together: memory grows with the pixels of a run."""
        return max(1, self.run_pixels // (array.shape[1] * array.shape[2])) if array.ndim == 4 else 2**62

    def _run(self, batch):
        """One response for each request of `batch`, lists of input arrays that differ in axis 0 only."""
        feeds = [self._together(position, tensors) for position, tensors in enumerate(zip(*batch))]
        try:
            answers = self._answers(feeds)
        except Exception as reason:  # ONNX Runtime's exceptions have no common root
            self._reopen()
            if len(batch) > 1:  # one request's fault is not the others'
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
        """The arrays of input number `position` as one, in memory that the next batch uses again."""
        if len(arrays) == 1:
            return arrays[0]
        shape, dtype = (sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype
        size = math.prod(shape) * dtype.itemsize
        if position not in self.joined or self.joined[position].size < size:
            self.joined[position] = np.empty(size, np.uint8)
        return np.concatenate(arrays, out=self.joined[position][:size].view(dtype).reshape(shape))

    def _answers(self, feeds):
        """The outputs for `feeds`, in as many runs as `run_pixels` asks for."""
        count, most = len(feeds[0]), self._most(feeds[0])
        if count <= most:
            return self._timed(feeds)
        parts = [self._timed([feed[at : at + most] for feed in feeds]) for at in range(0, count, most)]
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
    """The model's file in a version's folder."""
    path = os.path.join(folder, config.get("default_model_filename") or "model.onnx")
    return os.path.join(path, "model.onnx") if os.path.isdir(path) else path


def _check_file(path):
    if not os.path.exists(path):
        raise pb_utils.TritonModelException(f"{path}: no such file")


def _gpu_sessions(path, settings, run_config):
    """The sessions of a GPU instance, one a shape; with TensorRT, whose engines have dynamic shapes, one for all."""
    _check_file(path)
    providers = settings["providers"]
    options = dict(providers)["CUDAExecutionProvider"]
    limit = number(options, "gpu_mem_limit", 0)
    dynamic = providers[0][0] == "TensorrtExecutionProvider"
    try:
        from engines.onnx_cuda import CudaSessions  # a CPU instance does without

        return CudaSessions(
            path,
            device=int(options["device_id"]),
            providers=providers,
            session_options=settings["sess_options"],
            run_config=run_config,
            memory_limit=limit or None,
            **({"sessions": 0} if dynamic else {}),
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        raise pb_utils.TritonModelException(f"a GPU instance cannot run {path}: {error}") from error


def _session(path, settings):
    _check_file(path)
    try:
        return onnxruntime.InferenceSession(path, enable_fallback=0, **settings)  # or it would go on elsewhere
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        raise pb_utils.TritonModelException(f"{path}: {error}") from error


def _described(tensor, first):
    """An entry of the config for a tensor of the graph, without its first axis if Triton batches."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    if kind not in TYPES:
        raise pb_utils.TritonModelException(f"{tensor.name}: Triton has no type for {tensor.type}")
    dims = [axis if isinstance(axis, int) else -1 for axis in tensor.shape[first:]]
    return {"name": tensor.name, "data_type": TYPES[kind], "dims": dims or [1]}


def _check_names(path, kind, configured, names):
    needed = set(names) if kind == "input" else set()  # a config may leave out outputs
    if wrong := (set(configured) - set(names)) | (needed - set(configured)):
        raise pb_utils.TritonModelException(
            f"{kind} {', '.join(sorted(wrong))} is not in both: {path} has {', '.join(names)}, and the config "
            f"{', '.join(configured)}"
        )


def _check_types(config):
    for tensor in (*config["input"], *config["output"]):
        if tensor["data_type"] == "TYPE_STRING":
            raise pb_utils.TritonModelException(f"{tensor['name']} is of strings, which this backend does not take")


def _switch(name, value):
    if value not in BOOLEANS:
        raise pb_utils.TritonModelException(f"parameter {name} is {value!r}: give 1 or 0")
    return BOOLEANS[value]


def _choice(name, value, choices):
    if value not in choices:
        raise pb_utils.TritonModelException(f"parameter {name} is {value!r}: choose of {', '.join(choices)}")
    return choices[value]


def _options(config, parameters):
    """ONNX Runtime's session options from the model's parameters and `optimization.graph.level`."""
    modes = {"0": onnxruntime.ExecutionMode.ORT_SEQUENTIAL, "1": onnxruntime.ExecutionMode.ORT_PARALLEL}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = number(parameters, "intra_op_thread_count", 0)
    options.inter_op_num_threads = number(parameters, "inter_op_thread_count", 0)
    options.enable_cpu_mem_arena = _switch("enable_mem_arena", parameters.get("enable_mem_arena", "1")) == "True"
    options.enable_mem_pattern = _switch("enable_mem_pattern", parameters.get("enable_mem_pattern", "1")) == "True"
    options.execution_mode = _choice("execution_mode", parameters.get("execution_mode", "0"), modes)
    level = str(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = _choice("optimization.graph.level", level, GRAPH_LEVELS)
    name = "session.use_device_allocator_for_initializers"
    if name in parameters:
        options.add_session_config_entry(name, parameters[name])
    return options


def _run_config(parameters):
    """The entries of ONNX Runtime's `RunOptions` that hold for every run."""
    name = "memory.enable_memory_arena_shrinkage"
    return {name: parameters[name]} if name in parameters else {}


def _run_options(run_config):
    if not run_config:
        return None
    options = onnxruntime.RunOptions()
    for name, value in run_config.items():
        options.add_run_config_entry(name, value)
    return options


def _providers(config, parameters, kind, device):
    """ONNX Runtime's providers, with their options, for an instance of `kind` (`GPU`, else the CPU).

    They are those of the config's accelerators, in its order, and CUDA for every GPU instance. Raises
    `TritonModelException` for an unknown accelerator or parameter, and for what this ONNX Runtime lacks.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    if kind == "GPU":
        known = {"tensorrt": _tensorrt, "cuda": _cuda}
        wanted = list(accelerators.get("gpu_execution_accelerator", []))
        if all(entry["name"] != "cuda" for entry in wanted):
            wanted.append({"name": "cuda"})  # for what TensorRT does not take, or alone
    else:
        known = {"openvino": _openvino}
        wanted = accelerators.get("cpu_execution_accelerator", [])
    providers = []
    for entry in wanted:
        if entry["name"] not in known:
            raise pb_utils.TritonModelException(
                f"unknown accelerator {entry['name']!r} of a {kind} instance; known: {', '.join(known)}"
            )
        provider, options = known[entry["name"]](entry.get("parameters", {}), parameters)
        if kind == "GPU":
            options["device_id"] = str(device)
        providers.append((provider, options))
    available = onnxruntime.get_available_providers()
    for provider, _ in providers:
        if provider not in available:
            raise pb_utils.TritonModelException(
                f"a {kind} instance of this config needs {provider}, and ONNX Runtime {onnxruntime.__version__} in "
                f"Triton's environment has {', '.join(available)}: install the ONNX Runtime that has it, or change "
                "instance_group and execution_accelerators"
            )
    return providers or [("CPUExecutionProvider", {})]


def _known(accelerator, given, known):
    """Refuse parameters that the accelerator does not have."""
    if unknown := sorted(set(given) - set(known)):
        raise pb_utils.TritonModelException(
            f"unknown parameter {', '.join(unknown)} of the accelerator {accelerator}; "
            f"known: {', '.join(sorted(known))}"
        )


def _openvino(given, parameters):
    _known("openvino", given, OPENVINO)
    options = {"device_type": "CPU", "load_config": OPENVINO_CONFIG}
    if threads := number(parameters, "intra_op_thread_count", 0):
        options["num_of_threads"] = str(threads)
    return "OpenVINOExecutionProvider", {**options, **given}


def _tensorrt(given, parameters):
    _known("tensorrt", given, {*TENSORRT, *TENSORRT_BOOLEANS, "precision_mode"})
    options = dict(_choice("precision_mode", given.get("precision_mode", "FP32"), PRECISIONS))
    for name, value in given.items():
        if name in TENSORRT_BOOLEANS:
            options[TENSORRT_BOOLEANS[name]] = _switch(name, value)
        elif name in TENSORRT:
            options[TENSORRT[name]] = value
    if options.get("trt_engine_cache_enable") == "True" and "trt_engine_cache_path" not in options:
        from engines import plans  # its own default is the working directory

        try:
            folder = plans.cache_folder().with_name("onnxruntime")
            folder.mkdir(parents=True, exist_ok=True)
        except (plans.PlanError, OSError) as error:
            raise pb_utils.TritonModelException(f"no folder for trt_engine_cache_enable: {error}") from error
        options["trt_engine_cache_path"] = str(folder)
    return "TensorrtExecutionProvider", options


def _cuda(given, parameters):
    _known("cuda", given, CUDA)
    options = {
        name: parameters[name] if choices is None else _choice(name, parameters[name], choices)
        for name, choices in CUDA_PARAMETERS.items()
        if name in parameters
    }
    return "CUDAExecutionProvider", {**options, **given}
