"""Triton's TensorRT backend, Python-based, for a Triton that has only its Python backend.

It follows NVIDIA's stock backend (triton-inference-server/tensorrt_backend) as far as a style model can use it, so that
a model repository gives the same results on both:

- the plan `model.plan` (or `default_model_filename`) in the version's folder;
- a config without inputs or outputs is completed from the plan, with the profile's maximum batch as `max_batch_size`
  and the dynamic batcher if that is more than one;
- instance groups of `KIND_GPU` on the GPU that Triton gives them, or `KIND_MODEL` on the first;
- `optimization.cuda.busy_wait_events`.

Not supported: `--backend-config=tensorrt,...`, which Triton does not pass to Python-based backends. It uses the first
optimization profile, and always CUDA graphs.

In addition:

- If the version's folder has no `model.plan`, the plan for its `model.onnx` comes from the user's cache, where it is
  built if necessary from the parameters `profile` and `multiple`. A `model.plan` whose `plan.json` names another GPU or
  TensorRT is refused.
- The limits `min_side`, `max_side` and `max_pixels`, which are parameters of style models, are checked before a request
  runs.
- Requests of equal shape run as one batch, others concurrently; while one batch computes, the next is copied in and the
  last is answered.
- The shapes of `model_warmup` have their CUDA graphs when the model is ready.
- A request that fails does not fail the others.
- Every model has its own metrics (`nst_*`) on Triton's metrics port.

The file runs in Triton's stub process with `backend_common.py` and the package `engines` beside it, and imports nothing
of nst.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from backend_common import (
    MULTIPLE,
    PROFILE,
    Metrics,
    Refused,
    SizeLimits,
    failure,
    number,
    parameters_of,
    received,
    response,
    shown,
)
from engines import building, cuda, plans
from engines.tensorrt import TensorRTEngine

CONTEXTS = 3
"""Maximum concurrent batches: the first is answered, the second computes, the third is copied in. More wait in Triton's
queue, where they become larger batches."""

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}

RUN_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
"""Upper bounds of the buckets of `nst_run_seconds`."""


class TritonPythonModel:
    """One instance of one model: an engine and its batches."""

    @staticmethod
    def auto_complete_config(config):
        """Complete a config that lacks inputs or outputs, from the plan, as the stock backend does."""
        given = config.as_dict()
        if given["input"] and given["output"]:
            return config
        engine = _engine(Path(pb_utils.get_model_dir()), given, device=0, contexts=0)
        inputs = [engine.tensors[name] for name in engine.inputs]
        if given["max_batch_size"] == 0 and engine.maximum[0] > 1:
            config.set_max_batch_size(engine.maximum[0])
            if "sequence_batching" not in given:
                config.set_dynamic_batching()
        first = 1 if config.as_dict()["max_batch_size"] else 0
        if not given["input"]:
            for tensor in inputs:
                config.add_input(_described(tensor, first))
        if not given["output"]:
            config.add_output(_described(engine.tensors[engine.output], first))
        engine.close()
        return config

    def initialize(self, args):
        """Open the plan and record the CUDA graphs of the shapes in the config's warm-up."""
        config = json.loads(args["model_config"])
        parameters = parameters_of(config)
        kind = args["model_instance_kind"]
        if kind == "CPU":
            raise pb_utils.TritonModelException("TensorRT runs on NVIDIA GPUs: set KIND_GPU in instance_group")
        self.limits = SizeLimits(parameters)
        folder = Path(args["model_repository"]) / args["model_version"]
        device = int(args["model_instance_device_id"]) if kind == "GPU" else 0
        self.engine = _engine(folder, config, device=device, contexts=CONTEXTS)
        _check_names("input", self.engine.inputs, config)
        _check_names("output", (self.engine.output,), config)
        if config["max_batch_size"] > self.engine.maximum[0]:
            raise pb_utils.TritonModelException(
                f"max_batch_size is {config['max_batch_size']}, but the plan accepts batches of at most "
                f"{self.engine.maximum[0]}; lower max_batch_size, or build the plan with a larger profile"
            )
        self._warm(config)
        self.workers = ThreadPoolExecutor(CONTEXTS)  # a thread for every concurrent batch
        self.metrics = Metrics(args["model_name"], args["model_version"], "TensorRT, copies included", RUN_SECONDS)

    def execute(self, requests):
        """Start the requests of one execution, those of equal shape as one batch; threads answer them.

        Triton starts the next execution when this returns, so batches overlap. It blocks while the maximum number of
        batches is in progress.
        """
        groups = {}
        for request in requests:
            sender = request.get_response_sender()
            try:
                feeds = self._feeds(request)
            except Refused as refusal:
                _answer(sender, failure(refusal, pb_utils.TritonError.INVALID_ARG))
                self.metrics.requests("refused")
            else:
                shape = tuple(array.shape[1:] for array in feeds.values())
                groups.setdefault(shape, []).append((sender, feeds))
        for group in groups.values():
            for batch in self._batches(group):
                self._start(batch)

    def finalize(self):
        """Answer what is in progress, and release the engine and the metrics."""
        self.workers.shutdown()
        self.engine.close()
        self.engine = self.metrics = None

    def _warm(self, config):
        for sample in config.get("model_warmup", []):
            batch = (max(1, sample["batch_size"]),) if config["max_batch_size"] else ()
            feeds = {
                name: np.zeros((*batch, *map(int, sample["inputs"][name]["dims"])), self.engine.tensors[name].dtype)
                for name in self.engine.inputs
                if name in sample["inputs"]
            }
            try:
                self.engine.warm(feeds)
            except (ValueError, RuntimeError) as error:
                raise pb_utils.TritonModelException(f"model_warmup {sample['name']!r}: {error}") from error
        if self.engine.graphs_fail:
            pb_utils.Logger.log_warn(f"continuing without CUDA graphs: {self.engine.graphs_fail}")

    def _feeds(self, request):
        """Return the arrays of a request by name; `Refused` for what must not reach the plan."""
        feeds = {name: received(request, name) for name in self.engine.inputs}
        first = feeds[self.engine.inputs[0]]
        if first.ndim == 4:
            self.limits.check(*first.shape[1:3])
        try:
            self.engine.shapes(feeds)
        except ValueError as error:
            raise Refused(error) from error
        return feeds

    def _batches(self, group):
        """Split requests of one shape into batches that the plan accepts, each within `max_pixels`."""
        first = group[0][1][self.engine.inputs[0]]
        maximum = self.engine.maximum[0]
        if first.ndim == 4:
            maximum = min(maximum, max(1, self.limits.max_pixels // (first.shape[1] * first.shape[2])))
        batches, images = [], 0
        for sender, feeds in group:
            count = len(feeds[self.engine.inputs[0]])
            if not batches or images + count > maximum:
                batches.append([])
                images = 0
            batches[-1].append((sender, feeds))
            images += count
        return batches

    def _start(self, batch):
        """Copy a batch to the GPU and start it; each of its requests is answered, whatever happens."""
        try:
            pending = self.engine.submit({name: [feeds[name] for _, feeds in batch] for name in self.engine.inputs})
        except Exception as error:  # such as too little memory for all of them together
            if len(batch) > 1:
                for request in batch:
                    self._start([request])
            else:
                self._fail(*batch[0], error)
            return
        counts = [(sender, len(feeds[self.engine.inputs[0]])) for sender, feeds in batch]
        self.workers.submit(self._finish, pending, counts, time.perf_counter())

    def _finish(self, pending, counts, started):
        """Answer a batch when it is done, directly from the engine's memory; `counts` are senders and images."""
        with pending:
            try:
                answer = pending.wait()
            except Exception as error:
                self._finish_alone(pending, counts, error)
                return
            seconds = time.perf_counter() - started
            for sender, part in _parts(answer, counts):
                self._send(sender, part)
        self.metrics.requests("ok", len(counts))
        self.metrics.ran(sum(count for _, count in counts), seconds)

    def _finish_alone(self, pending, counts, error):
        """Run the requests of a failed batch one by one, so that one cannot fail the others."""
        feeds = {name: array.copy() for name, array in pending.feeds.items()}
        start = 0
        for sender, count in counts:
            own = {name: array[start : start + count] for name, array in feeds.items()}
            start += count
            if len(counts) == 1:
                self._fail(sender, own, error)
                return
            started = time.perf_counter()
            try:
                pending.restart(own)
                answer = pending.wait()
            except Exception as reason:
                self._fail(sender, own, reason)
            else:
                seconds = time.perf_counter() - started
                self._send(sender, answer)
                self.metrics.requests("ok")
                self.metrics.ran(count, seconds)

    def _send(self, sender, answer):
        _answer(sender, response({self.engine.output: answer}))

    def _fail(self, sender, feeds, error):
        name = self.engine.inputs[0]
        reason = f"{name} {shown(feeds[name].shape)}: {error}"
        _answer(sender, failure(reason, pb_utils.TritonError.INTERNAL))
        self.metrics.requests("failed")


def _answer(sender, response):
    """Send the only response to a request; log a failure, such as a caller that has gone."""
    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:
        pb_utils.Logger.log_error(f"could not answer a request: {error}")


def _parts(answer, counts):
    """Yield every sender with its images of a batch's output."""
    start = 0
    for sender, count in counts:
        yield sender, answer[start : start + count]
        start += count


def _engine(folder, config, *, device, contexts):
    """Open the engine for a version's folder, and build its plan if necessary; raises `TritonModelException`."""
    try:
        cuda.use(device)
        return TensorRTEngine(
            _plan(folder, config, device),
            device=device,
            contexts=contexts,
            busy_wait=config.get("optimization", {}).get("cuda", {}).get("busy_wait_events", False),
        )
    except (plans.PlanError, ValueError, OSError, ImportError, cuda.CudaError) as error:
        raise pb_utils.TritonModelException(str(error)) from error


def _plan(folder, config, device):
    """Return the plan's file: what the config names, else the version's own, the cache's, or a new plan."""
    name = config.get("default_model_filename") or plans.PLAN
    if name != plans.PLAN:
        if not (folder / name).is_file():
            raise plans.PlanError(f"{folder / name}: no such file")
        return folder / name
    parameters = parameters_of(config)
    if PROFILE not in parameters:
        if not (folder / plans.PLAN).is_file():
            raise plans.PlanError(
                f"{folder / plans.PLAN}: no such file, and there is no parameter profile to build it from"
            )
        return folder / plans.PLAN
    gpu, capability = cuda.card(device)
    return building.ensure(
        folder,
        plans.Profile.parse(parameters[PROFILE]),
        number(parameters, MULTIPLE, 1),
        library=plans.import_tensorrt(),
        gpu=gpu,
        compute_capability=capability,
        on_progress=_LogProgress(f"building the plan for {folder}"),
    )


class _LogProgress:
    """Write progress to Triton's log, a line for every tenth."""

    def __init__(self, what):
        self._what, self._tenth = what, -1

    def __call__(self, done, note):
        if int(done * 10) > self._tenth:
            self._tenth = int(done * 10)
            pb_utils.Logger.log_info(f"{self._what}: {done:.0%} ({note})")


def _described(tensor, first):
    """Return the config's entry for a tensor of the plan, without its first axis if Triton batches."""
    return {"name": tensor.name, "data_type": TYPES[tensor.dtype.name], "dims": list(tensor.shape[first:]) or [1]}


def _check_names(kind, names, config):
    configured = [tensor["name"] for tensor in config[kind]]
    if wrong := set(configured) ^ set(names):
        raise pb_utils.TritonModelException(
            f"{kind} {', '.join(sorted(wrong))} does not match: the plan has {', '.join(names)}, but the config has "
            f"{', '.join(configured)}"
        )
