"""Shared parts of our Python-based backends: tensors, size limits, refusals, errors, parameters and metrics.

The file is copied beside each backend's `model.py` with the package `engines`, runs in Triton's stub process, and
imports nothing of nst.
"""

import threading

import numpy as np
import triton_python_backend_utils as pb_utils
from engines.dlpack import Lent

MIN_SIDE, MAX_SIDE, MAX_PIXELS, PROFILE, MULTIPLE = "min_side", "max_side", "max_pixels", "profile", "multiple"
"""Parameters of a model, as in `nst_core.contract.Parameter`."""

RUN_IMAGES = [1, 2, 4, 8, 16, 32]
"""Upper bounds of the buckets of `nst_run_images`."""


class Refused(Exception):
    """A request that is not run; the caller receives the message."""


class SizeLimits:
    """The image sizes that a model accepts, from its parameters `min_side`, `max_side` and `max_pixels` (pixels)."""

    def __init__(self, parameters):
        """Raises `TritonModelException` for a parameter that is not an integer."""
        self.min_side = max(1, number(parameters, MIN_SIDE, 1))
        self.max_side = number(parameters, MAX_SIDE, 2**31)
        self.max_pixels = number(parameters, MAX_PIXELS, 2**62)

    def check(self, height, width):
        """Raise `Refused` for an image outside the limits, in pixels."""
        if min(height, width) < self.min_side:
            raise Refused(f"{width}x{height}: this model needs at least {self.min_side} pixels per side")
        if max(height, width) > self.max_side:
            raise Refused(f"{width}x{height}: this model accepts at most {self.max_side} pixels per side")
        if height * width > self.max_pixels:
            raise Refused(f"{width}x{height}: this model accepts at most {self.max_pixels / 1e6:.1f} megapixels")


def received(request, name):
    """Return a request's input as a read-only array, without a copy; `Refused` for what must not reach the model.

    Triton's own `as_numpy` and `Tensor(name, array)` are made for NumPy 1: with NumPy 2 they return empty tensors.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise Refused(f"{name} is missing")
    if 0 in tensor.shape():
        raise Refused(f"{name} is empty: {shown(tensor.shape())}")
    array = np.require(np.from_dlpack(tensor), requirements="A")  # a copy if its memory is not aligned
    # Not for noise, which is as large as an image, and for which Triton's warm-up uses random bits.
    if array.dtype.kind == "f" and array.ndim < 4 and not np.isfinite(array).all():
        raise Refused(f"{name} has values that are not finite")
    return array


def response(outputs):
    """Return the response with these arrays by name, which Triton copies."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor.from_dlpack(name, Lent(np.ascontiguousarray(array))) for name, array in outputs.items()]
    )


class Metrics:
    """A model's metrics on Triton's metrics port, in addition to Triton's own metrics for every model.

    Triton 2.51 counts refused and failed requests as `nv_inference_request_success`: its Python backend reports an
    execution as a whole, as failed only if it ends in an exception, and then every caller receives an internal error.
    `nst_requests_total` counts each request by its own outcome.

    An update is a message to Triton and takes some 30 microseconds, so a run makes three.
    """

    def __init__(self, model, version, engine, seconds):
        """`engine` is what runs the model; `seconds` are the upper bounds of the buckets of `nst_run_seconds`."""
        counter, histogram = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.HISTOGRAM
        self.labels = {"model": model, "version": version}
        self._families = []  # they must outlive their metrics
        requests = self.family(
            counter, "nst_requests_total", "Requests by outcome: ok, refused before a run, or failed in it"
        )
        run_seconds = self.family(histogram, "nst_run_seconds", f"Seconds in {engine}, per run")
        images = self.family(histogram, "nst_run_images", f"Images processed together in {engine}, per run")
        self._requests = {
            outcome: requests.Metric(labels={**self.labels, "outcome": outcome})
            for outcome in ("ok", "refused", "failed")
        }
        self._seconds = run_seconds.Metric(labels=self.labels, buckets=seconds)
        self._images = images.Metric(labels=self.labels, buckets=RUN_IMAGES)
        self._lock = threading.Lock()  # two threads that update one metric at once crash Triton

    def family(self, kind, name, description):
        """Create a family of metrics, kept as long as this object."""
        self._families.append(pb_utils.MetricFamily(name=name, description=description, kind=kind))
        return self._families[-1]

    def requests(self, outcome, count=1):
        """Count requests by outcome."""
        if count:
            with self._lock:
                self._requests[outcome].increment(count)

    def ran(self, images, seconds):
        """Record a run."""
        with self._lock:
            self._images.observe(images)
            self._seconds.observe(seconds)


def failure(reason, code):
    """Return an error response to a request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(reason), code))


def shown(shape):
    """Format a shape for a message: `1x64x64x3`."""
    return "x".join(map(str, shape))


def parameters_of(config):
    """Return a config's parameters, texts by name."""
    return {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}


def number(parameters, name, default):
    """Return an integer parameter; raises `TritonModelException` for anything else."""
    try:
        return int(parameters.get(name, default))
    except ValueError as error:
        raise pb_utils.TritonModelException(f"parameter {name} is {parameters[name]!r}; use an integer") from error
