"""The TensorRT backend's own logic, outside of Triton and on a fake GPU: batches, refusals, failures, shutting down."""

import importlib
import importlib.util
import json
import sys
import threading
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import nst_server
from nst_core import engines as shared
from nst_core.engines.plans import Profile

from ..fakes import FakeGpu, fake_gpu
from . import graphs

FILE = Path(nst_server.__file__).parent / "backends" / "tensorrt" / "model.py"
PROFILE = "8x8/32x32/4x64x64"


class Refusal(Exception):
    """In place of `TritonModelException`."""


class TritonError(tuple[str, str]):
    """In place of `pb_utils.TritonError`: code and message."""

    INTERNAL, INVALID_ARG = "INTERNAL", "INVALID_ARG"

    def __new__(cls, message: str, code: str) -> "TritonError":
        return super().__new__(cls, (code, message))


class Tensor:
    """In place of `pb_utils.Tensor`."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name: str, given: Any) -> "Tensor":
        return cls(name, np.from_dlpack(given).copy())

    def name(self) -> str:
        return self._name

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class Response:
    """In place of `pb_utils.InferenceResponse`."""

    def __init__(self, tensors: list[Tensor] | None = None, error: Any = None) -> None:
        self.tensors, self.error = tensors, error


class Request:
    """A request and, once it is there, its answer: an array, or the error's code and message."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self._tensors = [Tensor(name, array) for name, array in arrays.items()]
        self.answers: list[Any] = []
        self.answered = threading.Event()

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def get_response_sender(self) -> "Request":
        return self

    def send(self, response: Response, flags: int) -> None:
        assert flags == 1
        self.answers.append(response.error or response.tensors[0].array)
        self.answered.set()

    @property
    def answer(self) -> Any:
        assert self.answered.wait(30)
        (answer,) = self.answers
        return answer


class MetricFamily:
    """In place of `pb_utils.MetricFamily`; the sums of all metrics are in `seen`."""

    COUNTER, HISTOGRAM = "counter", "histogram"
    seen: ClassVar[defaultdict[str, float]] = defaultdict(float)

    def __init__(self, name: str, description: str, kind: str) -> None:
        self._name = name

    def Metric(self, labels: dict[str, str], **_: Any) -> Any:  # noqa: N802
        name = f"{self._name}:{labels['outcome']}" if "outcome" in labels else self._name

        def add(value: float) -> None:
            MetricFamily.seen[name] += 1 if "outcome" not in labels else value
            MetricFamily.seen[f"{name}_sum"] += value

        return types.SimpleNamespace(increment=add, observe=add)


class Config:
    """In place of Triton's `ModelConfig` of a completion."""

    def __init__(self, **given: Any) -> None:
        self.given = {"input": [], "output": [], "max_batch_size": 0, **given}

    def as_dict(self) -> dict[str, Any]:
        return self.given

    def set_max_batch_size(self, size: int) -> None:
        self.given["max_batch_size"] = size

    def set_dynamic_batching(self) -> None:
        self.given["dynamic_batching"] = {}

    def add_input(self, entry: dict[str, Any]) -> None:
        self.given["input"].append(entry)

    def add_output(self, entry: dict[str, Any]) -> None:
        self.given["output"].append(entry)


@pytest.fixture
def fake() -> Iterator[FakeGpu]:
    with fake_gpu() as gpu:
        yield gpu


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def backend(
    fake: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> Iterator[types.ModuleType]:
    """The backend's module with the package `engines` beside it, as an installation has them."""
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(Path(shared.__path__[0]).parent))
    monkeypatch.syspath_prepend(str(FILE.parents[1]))
    monkeypatch.delitem(sys.modules, "backend_common", raising=False)  # it has imported another test's Triton
    log = types.SimpleNamespace(log_info=logged.append, log_warn=logged.append, log_error=logged.append)
    utils = types.ModuleType("triton_python_backend_utils")
    MetricFamily.seen.clear()
    utils.__dict__.update(
        TritonModelException=Refusal,
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=TritonError,
        MetricFamily=MetricFamily,
        Logger=log,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        get_input_tensor_by_name=lambda request, name: next(
            (tensor for tensor in request.inputs() if tensor.name() == name), None
        ),
        get_model_dir=lambda: str(tmp_path / "model" / "1"),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    spec = importlib.util.spec_from_file_location("backend", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("engines", "backend_common")]:
            del sys.modules[name]


Loaded = Callable[..., Any]


@pytest.fixture
def loaded(backend: Any, tmp_path: Path, fake: FakeGpu) -> Iterator[Loaded]:
    """Instances of a model that is loaded, finalized at the end, when nothing may be left on the device."""
    models: list[Any] = []

    def load(graph: Callable[[Path], None] = graphs.inverted, kind: str = "GPU", **changes: Any) -> Any:
        version = tmp_path / "model" / "1"
        if not (version / "model.onnx").exists():
            graph(version / "model.onnx")
        parameters = {"profile": PROFILE, "multiple": "1", **changes.pop("parameters", {})}
        inputs = ["image", "style_weights"] if graph is graphs.weighted else ["image"]
        config = {
            "max_batch_size": 4,
            "input": [{"name": name} for name in inputs],
            "output": [{"name": "stylized"}],
            "parameters": {name: {"string_value": value} for name, value in parameters.items() if value is not None},
            **changes,
        }
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(tmp_path / "model"),
                "model_version": "1",
                "model_name": "model",
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
            }
        )
        models.append(model)
        return model

    yield load
    for model in models:
        if model.engine is not None:
            model.finalize()
    assert fake.runtime.in_use() == 0


def images(height: int = 16, width: int = 24, count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (count, height, width, 3)).astype(np.uint8)


def test_requests_of_one_shape_run_together_and_others_beside_them(loaded: Loaded, fake: FakeGpu) -> None:
    model = loaded()
    given = [images(seed=0), images(16, 25, seed=1), images(seed=2), images(16, 25, 2, seed=3)]
    requests = [Request(image=image) for image in given]
    model.execute(requests)
    for request, image in zip(requests, given, strict=True):
        assert np.array_equal(request.answer, 255 - image)
    model.finalize()
    assert fake.tensorrt.counts["runs"] == 2
    assert MetricFamily.seen["nst_requests_total:ok"] == 4
    assert (MetricFamily.seen["nst_run_images"], MetricFamily.seen["nst_run_images_sum"]) == (2, 5)


def test_a_batch_is_no_larger_than_the_plan_and_the_pixels_allow(loaded: Loaded, fake: FakeGpu) -> None:
    model = loaded()
    requests = [Request(image=images(count=count)) for count in (3, 1, 1, 4)]
    model.execute(requests)
    assert all(np.array_equal(request.answer, 255 - request.inputs()[0].array) for request in requests)
    model.finalize()
    assert fake.tensorrt.counts["runs"] == 3  # 3 + 1, 1, 4
    few = loaded(parameters={"max_pixels": str(2 * 16 * 24)})
    requests = [Request(image=images()) for _ in range(5)]
    few.execute(requests)
    assert all(np.array_equal(request.answer, 255 - request.inputs()[0].array) for request in requests)
    few.finalize()
    assert fake.tensorrt.counts["runs"] == 3 + 3


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": images(9, 24)}, "24x9: this model needs at least 10 pixels per side"),
        ({"image": images(16, 49)}, "49x16: this model accepts at most 48 pixels per side"),
        ({"image": images(48, 48)}, "48x48: this model accepts at most 0.0 megapixels"),
        ({"image": images(0, 24)}, "image is empty: 1x0x24x3"),
        ({"image": images().astype(np.float32)}, "image is float32, but the plan needs uint8"),
        ({"image": images(count=5)}, "image 5x16x24x3 is outside the plan's shapes"),
        ({}, "image is missing"),
    ],
)
def test_a_request_that_may_not_run_is_refused_and_the_others_run(
    loaded: Loaded, arrays: dict[str, np.ndarray], words: str
) -> None:
    model = loaded(parameters={"min_side": "10", "max_side": "48", "max_pixels": "2000"})
    good, bad, other = Request(image=images()), Request(**arrays), Request(image=images(seed=1))
    model.execute([good, bad, other])
    assert bad.answer[0] == "INVALID_ARG" and words in bad.answer[1]
    assert np.array_equal(good.answer, 255 - images())
    assert np.array_equal(other.answer, 255 - images(seed=1))
    assert MetricFamily.seen["nst_requests_total:refused"] == 1


def test_weights_that_are_not_finite_are_refused(loaded: Loaded) -> None:
    model = loaded(graphs.weighted)
    bad = Request(image=images(), style_weights=np.array([[np.nan, 1]], np.float32))
    good = Request(image=images(), style_weights=np.array([[1, 0]], np.float32))
    model.execute([bad, good])
    assert bad.answer == ("INVALID_ARG", "style_weights has values that are not finite")
    assert np.array_equal(good.answer, images())


def test_one_request_that_fails_in_the_network_does_not_fail_its_batch(loaded: Loaded) -> None:
    model = loaded(graphs.picky)
    bad = images(seed=1)
    bad[0, 5, 7, 1] = graphs.LEVELS
    requests = [Request(image=images()), Request(image=bad), Request(image=images(count=2, seed=2))]
    model.execute(requests)
    assert np.array_equal(requests[0].answer, images())
    assert requests[1].answer[0] == "INTERNAL" and "image 1x16x24x3: cudaErrorLaunchFailure" in requests[1].answer[1]
    assert np.array_equal(requests[2].answer, images(count=2, seed=2))
    alone = Request(image=bad)
    model.execute([alone])
    assert alone.answer[0] == "INTERNAL"
    model.finalize()
    assert MetricFamily.seen["nst_requests_total:failed_sum"] == 2
    assert MetricFamily.seen["nst_requests_total:ok_sum"] == 2


def test_many_failing_batches_at_once_come_to_an_end(loaded: Loaded) -> None:
    """Each runs its requests again one by one, in the context that it has: none waits for another's."""
    model = loaded(graphs.picky)
    requests = []
    for number in range(60):
        image = images(8 + number % 5, 16, seed=number)
        if number % 3:
            image[0, 0, 0, 0] = graphs.LEVELS
        requests.append(Request(image=image))
    for start in range(0, 60, 10):
        model.execute(requests[start : start + 10])
    for number, request in enumerate(requests):
        if number % 3:
            assert request.answer[0] == "INTERNAL"
        else:
            assert np.array_equal(request.answer, request.inputs()[0].array)


def test_a_batch_too_large_for_the_memory_that_is_left_runs_one_by_one(loaded: Loaded, fake: FakeGpu) -> None:
    model = loaded()
    fake.runtime.fail("cudaMalloc")
    requests = [Request(image=images(seed=seed)) for seed in range(3)]
    model.execute(requests)
    assert all(np.array_equal(request.answer, 255 - request.inputs()[0].array) for request in requests)
    fake.runtime.fail("cudaMalloc", times=9)
    alone = Request(image=images(64, 64, 4))
    model.execute([alone])
    assert alone.answer[0] == "INTERNAL" and "cudaErrorMemoryAllocation" in alone.answer[1]
    fake.runtime.fail_no_more()


def test_a_caller_that_has_gone_is_logged_and_no_more(loaded: Loaded, logged: list[str]) -> None:
    model = loaded()
    gone, there = Request(image=images()), Request(image=images(seed=1))

    def fail(response: Response, flags: int) -> None:
        raise RuntimeError("nobody there")

    gone.send = fail  # type: ignore[method-assign]
    model.execute([gone, there])
    assert np.array_equal(there.answer, 255 - images(seed=1))
    model.finalize()
    assert any("could not answer a request: nobody there" in line for line in logged)


def test_what_is_under_way_is_answered_before_the_end(loaded: Loaded) -> None:
    model = loaded()
    requests = [Request(image=images(8 + number, 16)) for number in range(20)]
    model.execute(requests)
    model.finalize()
    assert all(len(request.answers) == 1 for request in requests)
    assert MetricFamily.seen["nst_requests_total:ok_sum"] == 20


def test_warm_shapes_are_replayed_from_the_first_request_on(loaded: Loaded, fake: FakeGpu) -> None:
    tensors = {"image": {"dims": ["16", "24", "3"]}, "style_weights": {"dims": ["2"]}}
    model = loaded(graphs.weighted, model_warmup=[{"name": "16x24", "batch_size": 1, "inputs": tensors}])
    before, launches = fake.runtime.counts["allocations"], fake.runtime.counts["cudaGraphLaunch"]
    for seed in range(3):
        request = Request(image=images(seed=seed), style_weights=np.array([[1, 0]], np.float32))
        model.execute([request])
        assert np.array_equal(request.answer, images(seed=seed))
    assert fake.runtime.counts["cudaGraphLaunch"] == launches + 3
    assert fake.runtime.counts["allocations"] == before


def test_without_cuda_graphs_it_goes_on_and_says_so(loaded: Loaded, fake: FakeGpu, logged: list[str]) -> None:
    fake.runtime.fail("cudaStreamBeginCapture")
    loaded(model_warmup=[{"name": "a", "batch_size": 1, "inputs": {"image": {"dims": ["16", "24", "3"]}}}])
    assert any("continuing without CUDA graphs: cudaErrorMemoryAllocation" in line for line in logged)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "CPU"}, "TensorRT runs on NVIDIA GPUs: set KIND_GPU"),
        ({"max_batch_size": 5}, "max_batch_size is 5, but the plan accepts batches of at most 4"),
        ({"input": [{"name": "pixels"}]}, "input image, pixels does not match: the plan has image"),
        ({"output": [{"name": "pixels"}]}, "output pixels, stylized does not match"),
        ({"parameters": {"min_side": "few"}}, "parameter min_side is 'few'; use an integer"),
        ({"parameters": {"multiple": "few"}}, "parameter multiple is 'few'"),
        ({"parameters": {"profile": "large"}}, "'large' is not a shape; give min/opt/max"),
        (
            {"parameters": {"profile": None}},
            "model.plan: no such file, and there is no parameter profile to build it from",
        ),
        ({"default_model_filename": "other.plan"}, "other.plan: no such file"),
        (
            {"model_warmup": [{"name": "a", "batch_size": 9, "inputs": {"image": {"dims": ["16", "24", "3"]}}}]},
            "model_warmup 'a': image 9x16x24x3 is outside",
        ),
    ],
)
def test_a_model_that_cannot_be_served_says_why(loaded: Loaded, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal) as caught:
        loaded(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_for_another_gpu_is_refused(loaded: Loaded, backend: Any, tmp_path: Path) -> None:
    version = tmp_path / "model" / "1"
    graphs.inverted(version / "model.onnx")
    key = backend.plans.key_of(version / "model.onnx", Profile.parse(PROFILE), "NVIDIA L4", "8.9", "10.99.0.1")
    (version / "model.plan").write_bytes(b"plan")
    (version / "plan.json").write_text(key.record(b"plan"))
    with pytest.raises(Refusal, match=r"GPU NVIDIA L4, but here NVIDIA Fake GPU.*export the model again here"):
        loaded()


def test_a_plan_of_any_name_is_opened_and_one_is_built_at_most_once(
    loaded: Loaded, fake: FakeGpu, tmp_path: Path, logged: list[str]
) -> None:
    loaded().finalize()
    loaded().finalize()
    assert fake.tensorrt.counts["builds"] == 1
    assert any("building the plan for" in line and "100%" in line for line in logged)
    (plan,) = (tmp_path / "cache" / "plans").glob("*.plan")
    (tmp_path / "model" / "1" / "own.plan").write_bytes(plan.read_bytes())
    (tmp_path / "model" / "1" / "model.onnx").write_bytes(b"another graph")
    model = loaded(default_model_filename="own.plan", kind="MODEL", parameters={"profile": None})
    request = Request(image=images())
    model.execute([request])
    assert np.array_equal(request.answer, 255 - images())


def test_a_config_is_completed_from_the_plan(backend: Any, tmp_path: Path, fake: FakeGpu) -> None:
    graphs.weighted(tmp_path / "model" / "1" / "model.onnx")
    parameters = {name: {"string_value": value} for name, value in {"profile": PROFILE, "multiple": "1"}.items()}
    config = backend.TritonPythonModel.auto_complete_config(Config(parameters=parameters)).given
    assert config["max_batch_size"] == 4 and config["dynamic_batching"] == {}
    assert config["input"] == [
        {"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]},
        {"name": "style_weights", "data_type": "TYPE_FP32", "dims": [2]},
    ]
    assert config["output"] == [{"name": "stylized", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}]
    assert fake.runtime.in_use() == 0
    complete = Config(input=[{"name": "image"}], output=[{"name": "stylized"}])
    assert backend.TritonPythonModel.auto_complete_config(complete) is complete  # nothing is opened for it


def test_busy_waiting_is_as_the_config_says(loaded: Loaded) -> None:
    assert not loaded().engine.busy_wait
    assert loaded(optimization={"cuda": {"busy_wait_events": True}}).engine.busy_wait
