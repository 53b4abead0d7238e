"""What our Python-based backends share: tensors, size limits, refusals, errors, parameters and metrics.

The file is copied beside each backend's `model.py` with the package `engines`, runs in Triton's stub process, and
imports nothing of nst.
"""

import threading

import numpy as np
import triton_python_backend_utils as pb_utils
from engines.dlpack import Lent

MIN_SIDE, MAX_SIDE, MAX_PIXELS, PROFILE, MULTIPLE = "min_side", "max_side", "max_pixels", "profile", "multiple"
"""Parameters of a model, as `nst_core.contract.Parameter` has them."""

RUN_IMAGES = [1, 2, 4, 8, 16, 32]
"""Upper bounds of the buckets of `nst_run_images`."""


class Refused(Exception):
    """A request that is not run; the message goes to its caller."""


class SizeLimits:
    """The sizes of images that a model takes, from its parameters `min_side`, `max_side` and `max_pixels` (pixels)."""

    def __init__(self, parameters):
        """Raises `TritonModelException` for a parameter that is no whole number."""
        self.min_side = max(1, number(parameters, MIN_SIDE, 1))
        self.max_side = number(parameters, MAX_SIDE, 2**31)
        self.max_pixels = number(parameters, MAX_PIXELS, 2**62)

    def check(self, height, width):
        """Raise `Refused` for an image beyond the limits, in pixels."""
        if min(height, width) < self.min_side:
            raise Refused(f"{width}x{height}: this model takes {self.min_side} pixels and more a side")
        if max(height, width) > self.max_side:
            raise Refused(f"{width}x{height}: this model takes {self.max_side} pixels and less a side")
        if height * width > self.max_pixels:
            raise Refused(f"{width}x{height}: this model takes {self.max_pixels / 1e6:.1f} megapixels and less")


def received(request, name):
    """A request's input as a read-only array, without a copy; `Refused` for what must not reach the model.

    Triton's own `as_numpy` and `Tensor(name, array)` are made for numpy 1: with numpy 2 they give empty tensors.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise Refused(f"{name} is missing")
    if 0 in tensor.shape():
        raise Refused(f"{name} is empty: {shown(tensor.shape())}")
    array = np.require(np.from_dlpack(tensor), requirements="A")  # a copy if its memory is not aligned
    # Not in noise, which is as large as an image and which Triton warms up with random bits.
    if array.dtype.kind == "f" and array.ndim < 4 and not np.isfinite(array).all():
        raise Refused(f"{name} has values that are not finite")
    return array


def response(outputs):
    """The response with these arrays by their names, which Triton copies."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor.from_dlpack(name, Lent(np.ascontiguousarray(array))) for name, array in outputs.items()]
    )


class Metrics:
    """A model's metrics on Triton's metrics port, beside those that Triton has for every model.

    Triton 2.51 counts requests that are refused or fail as `nv_inference_request_success`: its Python backend reports
    an execution as a whole, as failed only if it ends in an exception, and then every caller gets an internal error.
    `nst_requests_total` counts each request as what it was.

    An update is a message to Triton and takes some 30 microseconds, so a run makes three.
    """

    def __init__(self, model, version, engine, seconds):
        """`engine` is what runs the model; `seconds` are the upper bounds of the buckets of `nst_run_seconds`."""
        counter, histogram = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.HISTOGRAM
        self.labels = {"model": model, "version": version}
        self._families = []  # they must outlive their metrics
        requests = self.family(
            counter, "nst_requests_total", "Requests by outcome: ok, refused before a run, failed in it"
        )
        run_seconds = self.family(histogram, "nst_run_seconds", f"Seconds in {engine}, a run")
        images = self.family(histogram, "nst_run_images", f"Images that went through {engine} together, a run")
        self._requests = {
            outcome: requests.Metric(labels={**self.labels, "outcome": outcome})
            for outcome in ("ok", "refused", "failed")
        }
        self._seconds = run_seconds.Metric(labels=self.labels, buckets=seconds)
        self._images = images.Metric(labels=self.labels, buckets=RUN_IMAGES)
        self._lock = threading.Lock()  # two threads in one metric's update end Triton itself

    def family(self, kind, name, description):
        """A family of metrics, kept as long as this object."""
        self._families.append(pb_utils.MetricFamily(name=name, description=description, kind=kind))
        return self._families[-1]

    def requests(self, outcome, count=1):
        """Count requests by what became of them."""
        if count:
            with self._lock:
                self._requests[outcome].increment(count)

    def ran(self, images, seconds):
        """Note a run."""
        with self._lock:
            self._images.observe(images)
            self._seconds.observe(seconds)


def failure(reason, code):
    """The response to a request that has no other."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(reason), code))


def shown(shape):
    """A shape for a message: `1x64x64x3`."""
    return "x".join(map(str, shape))


def parameters_of(config):
    """A config's parameters, texts by name."""
    return {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}


def number(parameters, name, default):
    """A parameter that is a whole number; raises `TritonModelException` for anything else."""
    try:
        return int(parameters.get(name, default))
    except ValueError as error:
        raise pb_utils.TritonModelException(f"parameter {name} is {parameters[name]!r}: give a whole number") from error
