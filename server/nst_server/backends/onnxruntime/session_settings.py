"""Convert a model's config to ONNX Runtime's settings: session options, run options, and execution providers.

Unknown accelerators and parameters are errors, and so are providers that this ONNX Runtime lacks. The file is copied
beside `model.py` and imports nothing of nst.
"""

import onnxruntime
import triton_python_backend_utils as pb_utils
from backend_common import number

GRAPH_LEVELS = {
    "-1": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "0": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "1": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

BOOLEANS = {"1": "True", "true": "True", "True": "True", "0": "False", "false": "False", "False": "False"}

OPENVINO = {"cache_dir", "disable_dynamic_shapes", "load_config", "num_of_threads", "num_streams", "precision"}

OPENVINO_CONFIG = '{"CPU": {"CPU_RUNTIME_CACHE_CAPACITY": "500"}}'
"""Number of shapes that OpenVINO remembers per layer; its default of 5000 takes gigabytes if every image has another
size."""

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
"""TensorRT's switches: their names in a config, and in ONNX Runtime."""

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
"""CUDA's settings that may also be model parameters, and the meanings of their numbers."""


def _switch(name, value):
    if value not in BOOLEANS:
        raise pb_utils.TritonModelException(f"parameter {name} is {value!r}; use 1 or 0")
    return BOOLEANS[value]


def _choice(name, value, choices):
    if value not in choices:
        raise pb_utils.TritonModelException(f"parameter {name} is {value!r}; use one of {', '.join(choices)}")
    return choices[value]


def session_options(config, parameters):
    """Return ONNX Runtime's session options from the model's parameters and `optimization.graph.level`."""
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


def run_config(parameters):
    """Return the entries of ONNX Runtime's `RunOptions` for every run."""
    name = "memory.enable_memory_arena_shrinkage"
    return {name: parameters[name]} if name in parameters else {}


def run_options(entries):
    """Return `RunOptions` with these entries; None without any."""
    if not entries:
        return None
    options = onnxruntime.RunOptions()
    for name, value in entries.items():
        options.add_run_config_entry(name, value)
    return options


def providers(config, parameters, kind, device):
    """Return ONNX Runtime's execution providers, with options, for an instance of `kind` (`GPU`, else the CPU).

    They are those of the config's accelerators, in its order, and CUDA for every GPU instance. Raises
    `TritonModelException` for an unknown accelerator or parameter, and for a provider that this ONNX Runtime lacks.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    if kind == "GPU":
        known = {"tensorrt": _tensorrt, "cuda": _cuda}
        wanted = list(accelerators.get("gpu_execution_accelerator", []))
        if all(entry["name"] != "cuda" for entry in wanted):
            wanted.append({"name": "cuda"})  # for what TensorRT does not support, or alone
    else:
        known = {"openvino": _openvino}
        wanted = accelerators.get("cpu_execution_accelerator", [])
    chosen = []
    for entry in wanted:
        if entry["name"] not in known:
            raise pb_utils.TritonModelException(
                f"unknown accelerator {entry['name']!r} of a {kind} instance; known: {', '.join(known)}"
            )
        provider, options = known[entry["name"]](entry.get("parameters", {}), parameters)
        if kind == "GPU":
            options["device_id"] = str(device)
        chosen.append((provider, options))
    available = onnxruntime.get_available_providers()
    for provider, _ in chosen:
        if provider not in available:
            raise pb_utils.TritonModelException(
                f"a {kind} instance of this config needs {provider}, but ONNX Runtime {onnxruntime.__version__} in "
                f"Triton's environment has {', '.join(available)}; install an ONNX Runtime that has it, or change "
                "instance_group and execution_accelerators"
            )
    return chosen or [("CPUExecutionProvider", {})]


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
        from engines import plans  # its default is the working directory

        try:
            folder = plans.cache_folder().with_name("onnxruntime")
            folder.mkdir(parents=True, exist_ok=True)
        except (plans.PlanError, OSError) as error:
            raise pb_utils.TritonModelException(
                f"cannot create a folder for trt_engine_cache_enable: {error}"
            ) from error
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
