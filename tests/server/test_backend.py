"""The Python-based ONNX Runtime backend in a real Triton, and what it makes of configs, batches and bad requests."""

import importlib.util
import json
import sys
import threading
import types
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

import nst_server
from nst_core import engines
from nst_core.contract import Parameter
from nst_core.engines import dlpack
from nst_core.engines.onnx_cuda import CudaSessions
from nst_server.control import Control
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.installation.triton import Installation
from nst_server.process.supervisor import run_triton

from ..core.host_cuda import HostCuda
from . import graphs

STYLE = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "image" data_type: TYPE_UINT8 dims: [-1, -1, 3] }
output { name: "stylized" data_type: TYPE_UINT8 dims: [-1, -1, 3] }
"""
PARAMETER = 'parameters { key: "%s" value: { string_value: "%s" } }\n'
OPENVINO = 'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" %s } } }\n'
CPU = "instance_group { kind: KIND_CPU count: 1 }\n"
TUNED = {
    "intra_op_thread_count": "1",
    "inter_op_thread_count": "1",
    "execution_mode": "1",
    "enable_mem_arena": "1",
    "enable_mem_pattern": "0",
    "memory.enable_memory_arena_shrinkage": "cpu:0",
    "session.use_device_allocator_for_initializers": "1",
}

CONFIGS = {
    "limited": STYLE + CPU + PARAMETER % ("min_side", "16") + PARAMETER % ("max_pixels", "4096"),
    "narrow": STYLE + CPU + PARAMETER % ("max_side", "48"),
    "crowded": STYLE + CPU + "dynamic_batching { max_queue_delay_microseconds: 2000 }",
    "picky": STYLE + CPU + "dynamic_batching { preferred_batch_size: [3] max_queue_delay_microseconds: 2000000 }",
    "tuned": STYLE + CPU + "".join(PARAMETER % pair for pair in TUNED.items()) + "optimization { graph { level: 2 } }",
    "openvino": STYLE + CPU + OPENVINO % 'parameters { key: "num_streams" value: "1" }',
    # not served
    "gpu": STYLE + "instance_group { kind: KIND_GPU }",
    "nonsense": STYLE + CPU + OPENVINO % 'parameters { key: "nonsense" value: "1" }',
    "accelerator": STYLE + CPU + OPENVINO.replace("openvino", "abacus") % "",
    "mode": STYLE + CPU + PARAMETER % ("execution_mode", "7"),
    "threads": STYLE + CPU + PARAMETER % ("intra_op_thread_count", "many"),
    "names": STYLE.replace('"image"', '"pixels"') + CPU,
    "batch": "max_batch_size: 4",
    "file": STYLE + CPU + 'default_model_filename: "other.onnx"',
    "strings": STYLE.replace("UINT8", "STRING").replace("-1, -1, 3", "-1") + CPU,
}
REASONS = {
    "gpu": "KIND_GPU but no GPUs are available",
    "nonsense": "unknown parameter nonsense of the accelerator openvino",
    "accelerator": "unknown accelerator 'abacus'",
    "mode": "execution_mode is '7'; use one of 0, 1",
    "threads": "intra_op_thread_count is 'many'; use an integer",
    "names": "input image, pixels does not match",
    "batch": "it cannot batch",
    "file": "other.onnx: no such file",
    "broken": "model.onnx",
    "strings": "image has strings, which this backend does not support",
    "texts": "image: Triton has no type for tensor(string)",
}


@dataclass
class Server:
    """A running Triton: its client, its control, and its messages."""

    client: grpc.InferenceServerClient
    control: Control
    endpoints: Endpoints
    messages: list[str]

    def infer(self, model: str, **arrays: np.ndarray) -> np.ndarray:
        """The answer as a copy; NVIDIA's client frees its own."""
        kinds = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}
        inputs = []
        for name, values in arrays.items():
            inputs.append(grpc.InferInput(name, list(values.shape), kinds[values.dtype]))
            inputs[-1].set_data_from_numpy(values)
        return np.array(self.client.infer(model, inputs).as_numpy("stylized"))

    def config(self, model: str) -> Any:
        return self.client.get_model_config(model).config

    def lines(self) -> list[str]:
        """All that Triton's metrics port says."""
        with urllib.request.urlopen(self.endpoints.metrics) as answer:
            text: str = answer.read().decode()
        return text.splitlines()

    def metric(self, name: str, model: str) -> float:
        """A metric that Triton has for every model."""
        (line,) = [line for line in self.lines() if line.startswith(f'{name}{{model="{model}"')]
        return float(line.rpartition(" ")[2])

    def metrics(self, model: str) -> dict[str, float]:
        """The model's own metrics without their labels, the requests by outcome."""
        values = {}
        for line in self.lines():
            if line.startswith("nst_") and f'model="{model}"' in line and "bucket" not in line:
                name, _, rest = line.partition("{")
                labels, _, value = rest.rpartition("} ")
                outcome = labels.partition('outcome="')[2].partition('"')[0]
                values[f"{name}:{outcome}" if outcome else name] = float(value)
        return values


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, installation: Installation) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("backend")
    repository = folder / "repository"
    for name, config in CONFIGS.items():
        (graphs.picky if name == "picky" else graphs.inverted)(repository / name / "1" / "model.onnx")
        (repository / name / "config.pbtxt").write_text(config)
    graphs.inverted(repository / "batch" / "1" / "model.onnx", batch=1)
    graphs.inverted(repository / "starry" / "1" / "model.onnx", batch=1)
    graphs.weighted(repository / "bare" / "1" / "model.onnx")
    graphs.weighted(repository / "empty" / "1" / "model.onnx")
    (repository / "empty" / "config.pbtxt").write_text("")
    graphs.typed(repository / "typed" / "1" / "model.onnx")
    graphs.texts(repository / "texts" / "1" / "model.onnx")
    graphs.texts(repository / "strings" / "1" / "model.onnx")
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_text("no model")
    endpoints = Endpoints.free()
    messages: list[str] = []
    running = run_triton(installation, repository, endpoints, folder / "log", on_error=messages.append)
    with running, grpc.InferenceServerClient(endpoints.grpc.removeprefix("grpc://")) as client:
        yield Server(client, Control(endpoints.control), endpoints, messages)


def images(count: int = 1, height: int = 24, width: int = 40, top: int = 100) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, top, (count, height, width, 3))
    return values.astype(np.uint8)


@pytest.mark.parametrize("model", ["bare", "empty"])
def test_a_config_is_completed_from_the_graph(server: Server, model: str) -> None:
    config = server.config(model)
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [
        ("image", [-1, -1, 3]),
        ("style_weights", [2]),
    ]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("stylized", [-1, -1, 3])]
    assert config.instance_group[0].count == 2  # as the stock backend has it without a GPU
    weights = np.array([[0.5, 0.0], [1.0, 0.0]], np.float32)
    answer = server.infer(model, image=images(2), style_weights=weights)
    assert np.array_equal(answer, np.stack([images(2)[0] // 2, images(2)[1]]))


def test_a_graph_that_cannot_batch_is_served_whole(server: Server) -> None:
    config = server.config("starry")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [1, -1, -1, 3]
    assert np.array_equal(server.infer("starry", image=images()), 255 - images())


def test_tensors_of_every_type_come_and_go_as_they_are(server: Server) -> None:
    sent = {name: np.arange(6).reshape(2, 3).astype(triton_to_np_dtype(name)) for name in graphs.TYPES}
    inputs = [grpc.InferInput(name, [2, 3], name) for name in sent]
    for each, values in zip(inputs, sent.values(), strict=True):
        each.set_data_from_numpy(values)
    answer = server.client.infer("typed", inputs)
    for name, values in sent.items():
        got = answer.as_numpy(f"same_{name}")
        assert got.dtype == values.dtype and np.array_equal(got, values), name


@pytest.mark.parametrize("model", ["tuned", "openvino", "limited"])
def test_every_known_setting_is_taken(server: Server, model: str) -> None:
    assert np.array_equal(server.infer(model, image=images(3)), 255 - images(3))


@pytest.mark.parametrize("model", sorted(REASONS))
def test_a_model_that_cannot_be_served_is_named_with_the_reason(server: Server, model: str) -> None:
    (version,) = [found for found in server.control.models() if found.name == model]
    assert not version.ready
    assert REASONS[model] in version.describe()
    (line,) = [line for line in server.messages if line.startswith(f"{model} ")]
    assert REASONS[model] in line
    assert "\n" not in line and "TritonModelException" not in line and "At:" not in line


GOOD = np.array([[0.5, 0.5]], np.float32)
HOSTILE = [
    ("limited", {"image": images(height=15)}, "40x15: this model needs at least 16 pixels per side"),
    ("limited", {"image": images(height=128, width=33)}, "33x128: this model accepts at most 0.0 megapixels"),
    ("narrow", {"image": images(height=49)}, "40x49: this model accepts at most 48 pixels per side"),
    ("narrow", {"image": images(width=49)}, "49x24: this model accepts at most 48 pixels per side"),
    ("limited", {"image": np.zeros((1, 0, 40, 3), np.uint8)}, "image is empty: 1x0x40x3"),
    ("limited", {"image": images()[0]}, "unexpected shape|batch"),
    ("limited", {"image": images()[None]}, "unexpected shape"),
    ("limited", {"image": np.zeros((1, 24, 40, 4), np.uint8)}, "unexpected shape"),
    ("limited", {"image": images(9)}, "batch-size must be <= 8"),
    ("limited", {"image": images(0)}, "byte size mismatch|batch-size"),
    ("limited", {"image": images().astype(np.float32)}, "data-type"),
    ("bare", {"image": images()}, r"expected 2 inputs but got 1|\[.style_weights.\]"),
    ("bare", {"image": images(), "style_weights": GOOD * np.float32(np.nan)}, "style_weights has values that are"),
    ("bare", {"image": images(), "style_weights": GOOD * np.float32(np.inf)}, "style_weights has values that are"),
    ("bare", {"image": images(), "style_weights": np.ones((1, 3), np.float32)}, "unexpected shape"),
    ("bare", {"image": images(2), "style_weights": GOOD}, "batch"),
]


@pytest.mark.parametrize("position", range(len(HOSTILE)))
def test_a_bad_request_gets_an_error_and_the_next_one_works(server: Server, position: int) -> None:
    model, arrays, words = HOSTILE[position]
    with pytest.raises(InferenceServerException, match=words):
        server.infer(model, **arrays)
    if model in ("limited", "narrow"):
        assert np.array_equal(server.infer(model, image=images(height=48)), 255 - images(height=48))
    else:
        assert np.array_equal(server.infer("bare", image=images(), style_weights=GOOD), images() // 2)


def test_a_large_batch_goes_in_runs_of_no_more_pixels_than_one_image_may_have(server: Server) -> None:
    before = server.metrics("limited")
    batch = images(5, 40, 50)  # 2,000 of 4,096 pixels each
    assert np.array_equal(server.infer("limited", image=batch), 255 - batch)
    after = server.metrics("limited")
    assert after["nst_run_images_count"] - before["nst_run_images_count"] == 3
    assert after["nst_run_images_sum"] - before["nst_run_images_sum"] == 5


def call_together(server: Server, batch: list[np.ndarray], model: str = "picky") -> list[np.ndarray | Exception]:
    """The answers to requests that are sent at once, three of which `picky` waits for and runs as one batch."""
    answers: list[Any] = [None] * len(batch)

    def call(position: int) -> None:
        try:
            answers[position] = server.infer(model, image=batch[position])
        except InferenceServerException as error:
            answers[position] = error

    threads = [threading.Thread(target=call, args=(position,)) for position in range(len(batch))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_requests_of_one_shape_are_one_run(server: Server) -> None:
    before = server.metrics("picky")
    batch = [images() + np.uint8(number) for number in range(3)]
    for answer, wanted in zip(call_together(server, batch), batch, strict=True):
        assert np.array_equal(answer, wanted)  # each caller gets their own
    after = server.metrics("picky")
    assert after["nst_run_images_sum"] - before["nst_run_images_sum"] == 3
    assert after["nst_run_images_count"] - before["nst_run_images_count"] == 1
    assert after["nst_requests_total:ok"] - before["nst_requests_total:ok"] == 3


def test_many_callers_of_several_sizes_and_batches_each_get_their_own(server: Server) -> None:
    """Inputs are put together in memory that the next batch uses again."""
    wrong: list[str] = []

    def call(number: int) -> None:
        values = np.random.default_rng(number)
        for turn in range(30):
            shape = (1 + (number + turn) % 3, 64 + 32 * (turn % 2), 96, 3)
            batch = values.integers(0, 256, shape, np.uint8)
            if not np.array_equal(server.infer("crowded", image=batch), 255 - batch):
                wrong.append(f"{number}: {shape}")

    before = server.metrics("crowded")
    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    after = server.metrics("crowded")
    assert after["nst_requests_total:ok"] - before["nst_requests_total:ok"] == 240
    assert after["nst_run_images_count"] - before["nst_run_images_count"] < 240  # some ran together


def test_a_request_that_fails_in_the_graph_does_not_fail_its_batch(server: Server) -> None:
    before = server.metrics("picky")
    bad = images()
    bad[0, 5, 7, 1] = graphs.LEVELS
    answers = call_together(server, [images(), bad, images() + np.uint8(1)])
    assert np.array_equal(answers[0], images())
    assert isinstance(answers[1], InferenceServerException)
    assert "image 1x24x40x3" in str(answers[1])
    assert np.array_equal(answers[2], images() + np.uint8(1))
    after = server.metrics("picky")
    assert after["nst_requests_total:failed"] - before["nst_requests_total:failed"] == 1
    assert after["nst_requests_total:ok"] - before["nst_requests_total:ok"] == 2
    assert server.client.get_inference_statistics("picky").model_stats[0].execution_count >= 1


def test_metrics_count_what_was_asked(server: Server) -> None:
    before = server.metrics("limited")
    server.infer("limited", image=images(2))
    with pytest.raises(InferenceServerException):
        server.infer("limited", image=images(height=3))
    after = server.metrics("limited")
    change = {name: after[name] - before[name] for name in after}
    assert change.pop("nst_run_seconds_sum") > 0
    assert change == {
        "nst_requests_total:ok": 1,
        "nst_requests_total:refused": 1,
        "nst_requests_total:failed": 0,
        "nst_session_reopened_total": 0,
        "nst_run_images_count": 1,
        "nst_run_images_sum": 2,
        "nst_run_seconds_count": 1,
    }


def test_requests_are_counted_as_what_they_were_alone_and_in_a_batch(server: Server) -> None:
    """Triton has them all as successes; what is left without ours that are not is right."""

    def counted(model: str) -> tuple[float, float]:
        own = server.metrics(model)
        bad = own["nst_requests_total:refused"] + own["nst_requests_total:failed"]
        return server.metric("nv_inference_request_success", model) - bad, bad

    def change(model: str, *batch: np.ndarray) -> tuple[float, float]:
        before = counted(model)
        call_together(server, list(batch), model)
        after = counted(model)
        return after[0] - before[0], after[1] - before[1]

    bad = np.full_like(images(), graphs.LEVELS)
    assert change("limited", images()) == (1, 0)
    assert change("limited", images(height=3)) == (0, 1)
    assert change("picky", images(), bad, images()) == (2, 1)
    assert change("picky", bad, bad, bad) == (0, 3)


def test_a_model_is_unloaded_and_loaded_again(server: Server) -> None:
    for _ in range(2):
        server.control.unload("tuned")
        with pytest.raises(InferenceServerException):
            server.infer("tuned", image=images())
        (loaded,) = server.control.load("tuned")
        assert (loaded.name, loaded.version) == ("tuned", "1")
        assert np.array_equal(server.infer("tuned", image=images()), 255 - images())
        assert server.metrics("tuned")["nst_requests_total:ok"] == 1


def test_loading_what_cannot_be_loaded_says_why(server: Server) -> None:
    for name, words in (("nonsense", "unknown parameter nonsense"), ("nobody", "no model 'nobody' in the repository")):
        with pytest.raises(ServerError, match=words):
            server.control.load(name)
    with pytest.raises(ServerError, match="no model 'broken' is loaded"):
        server.control.unload("broken")


@dataclass
class FakeTensor:
    """A tensor of Triton's; what it gives and takes goes through DLPack."""

    name: str
    array: np.ndarray

    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __dlpack__(self, **_: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    @classmethod
    def from_dlpack(cls, name: str, lent: Any) -> "FakeTensor":
        return cls(name, np.from_dlpack(lent))


class FakeMetric:
    """A metric of Triton's, and the family that makes it; nobody reads it."""

    COUNTER, HISTOGRAM = "counter", "histogram"

    def __init__(self, **_: Any) -> None:
        self.Metric = FakeMetric if _ else None

    def increment(self, value: float) -> None: ...

    def observe(self, value: float) -> None: ...


@dataclass
class FakeError:
    """An error of Triton's."""

    message: str
    code: str

    INVALID_ARG = "invalid argument"
    INTERNAL = "internal"


@dataclass
class FakeResponse:
    """An answer of Triton's."""

    output_tensors: Any = ()
    error: FakeError | None = None


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The backend's module outside of Triton, for what needs a GPU: here is none to run it on.

    A request is a dictionary of arrays.
    """
    utils: Any = types.ModuleType("triton_python_backend_utils")
    utils.TritonModelException = type("TritonModelException", (Exception,), {})
    utils.get_input_tensor_by_name = lambda request, name: FakeTensor(name, request[name]) if name in request else None
    utils.Tensor, utils.InferenceResponse, utils.TritonError = FakeTensor, FakeResponse, FakeError
    utils.MetricFamily = FakeMetric
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    backends = Path(nst_server.__file__).parent / "backends"
    monkeypatch.syspath_prepend(str(backends))
    monkeypatch.setitem(sys.modules, "engines", engines)
    monkeypatch.setitem(sys.modules, "engines.dlpack", dlpack)
    monkeypatch.syspath_prepend(str(backends / "onnxruntime"))
    for name in ("backend_common", "session_settings"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # it has imported another test's Triton
    file = backends / "onnxruntime" / "model.py"
    spec = importlib.util.spec_from_file_location("backend", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@dataclass
class Gpu:
    """GPU instances of the backend, with main memory in place of the GPU's, and what they were opened with."""

    backend: Any
    opened: list[tuple[CudaSessions, dict[str, Any]]]

    def instance(self, file: Path, config: dict[str, Any] | None = None, **parameters: str) -> Any:
        image = {"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}
        texts = {name: {"string_value": value} for name, value in parameters.items()}
        described = {"parameters": texts, "input": [image], "output": [{**image, "name": "stylized"}], **(config or {})}
        model = self.backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(described),
                "model_repository": str(file.parent.parent),
                "model_version": file.parent.name,
                "model_name": "style",
                "model_instance_kind": "GPU",
                "model_instance_device_id": "1",
            }
        )
        return model


@pytest.fixture
def gpu(backend: Any, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    opened: list[tuple[CudaSessions, dict[str, Any]]] = []

    def on_the_host(path: str, *, providers: Any, **options: Any) -> CudaSessions:
        sessions = CudaSessions(path, providers=[("CPUExecutionProvider", {})], cuda=HostCuda(), **options)
        opened.append((sessions, {"providers": providers, **options}))
        return sessions

    module: Any = types.ModuleType("engines.onnx_cuda")
    module.CudaSessions = on_the_host
    monkeypatch.setitem(sys.modules, "engines", engines)
    monkeypatch.setitem(sys.modules, "engines.onnx_cuda", module)
    monkeypatch.setattr(backend.onnxruntime, "get_available_providers", lambda: PROVIDERS)
    return Gpu(backend, opened)


def answered(model: Any, *requests: np.ndarray) -> list[np.ndarray | str]:
    """The image, or the error's message, for each request."""
    responses = model.execute([{"image": values} for values in requests])
    return [each.error.message if each.error else each.output_tensors[0].array for each in responses]


def test_a_gpu_instance_has_a_session_for_each_shape(gpu: Gpu, tmp_path: Path) -> None:
    graphs.inverted(tmp_path / "1" / "model.onnx")
    model = gpu.instance(tmp_path / "1" / "model.onnx", gpu_mem_limit="123456", cudnn_conv_algo_search="0")
    requests = [images(), images(2), images(height=30), images(1, 24, 41)]
    for answer, values in zip(answered(model, *requests), requests, strict=True):
        assert np.array_equal(answer, 255 - values)
    ((sessions, options),) = gpu.opened
    assert sessions.shapes == (((4, 24, 40, 3),), ((1, 30, 40, 3),), ((1, 24, 41, 3),))  # three of one size, padded
    assert (options["device"], options["memory_limit"], options["run_config"]) == (1, 123456, {})
    assert options["providers"][0][1]["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    model.finalize()
    assert sessions.shapes == ()


def test_a_gpu_instance_refuses_and_fails_one_request_alone(gpu: Gpu, tmp_path: Path) -> None:
    graphs.picky(tmp_path / "1" / "model.onnx")
    model = gpu.instance(tmp_path / "1" / "model.onnx", min_side="16", max_side="48", max_pixels="2000")
    bad = np.full_like(images(), graphs.LEVELS)
    sizes = [(15, 40), (24, 49), (48, 48)]
    refused = [images(1, height, width) for height, width in sizes]
    answers = answered(model, images(), *refused, bad, images() + np.uint8(1))
    assert np.array_equal(answers[0], images())
    assert answers[1:4] == [
        "40x15: this model needs at least 16 pixels per side",
        "49x24: this model accepts at most 48 pixels per side",
        "48x48: this model accepts at most 0.0 megapixels",
    ]
    assert isinstance(answers[4], str) and answers[4].startswith("image 1x24x40x3: ")
    assert np.array_equal(answers[5], images() + np.uint8(1))


def test_tensorrt_serves_every_shape_in_one_session(gpu: Gpu, tmp_path: Path) -> None:
    graphs.inverted(tmp_path / "1" / "model.onnx")
    shapes = {f"trt_profile_{end}_shapes": f"image:1x{side}x{side}x3" for end, side in (("min", 16), ("max", 512))}
    parameters = {"memory.enable_memory_arena_shrinkage": "cpu:0"}
    model = gpu.instance(tmp_path / "1" / "model.onnx", accelerated("tensorrt", **shapes), **parameters)
    for values in (images(), images(height=30), images()):
        assert np.array_equal(answered(model, values)[0], 255 - values)
    ((sessions, options),) = gpu.opened
    assert sessions.shapes == ()
    assert [name for name, _ in options["providers"]] == PROVIDERS[:2]
    assert options["run_config"] == parameters


def test_a_gpu_instance_that_cannot_be_opened_says_why(gpu: Gpu, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    file = tmp_path / "1" / "model.onnx"
    with pytest.raises(Exception, match=r"model\.onnx: no such file"):
        gpu.instance(file)
    file.write_text("no model")
    with pytest.raises(Exception, match=r"cannot run .*model\.onnx on a GPU instance"):
        gpu.instance(file)
    graphs.inverted(file)
    with pytest.raises(Exception, match="gpu_mem_limit is 'lots'; use an integer"):
        gpu.instance(file, gpu_mem_limit="lots")
    graphs.inverted(file, batch=1)
    with pytest.raises(Exception, match="input image, pixels does not match"):
        gpu.instance(file, {"input": [{"name": "pixels", "data_type": "TYPE_UINT8"}]})


def accelerated(name: str, **parameters: str) -> dict[str, Any]:
    entry = {"name": name, "parameters": parameters}
    return {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [entry]}}}


def test_a_gpu_instance_without_a_cuda_provider_says_so(backend: Any) -> None:
    with pytest.raises(Exception, match=r"GPU instance .* needs CUDAExecutionProvider, .* has .*CPUExecutionProvider"):
        backend.providers({}, {}, "GPU", "0")


def test_gpu_accelerators_become_providers(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.onnxruntime, "get_available_providers", lambda: PROVIDERS)
    config = accelerated(
        "tensorrt",
        precision_mode="FP16",
        max_workspace_size_bytes="1024",
        trt_engine_cache_enable="1",
        trt_engine_cache_path="/cache",
        trt_profile_max_shapes="image:1x64x64x3",
    )
    parameters = {"cudnn_conv_algo_search": "1", "arena_extend_strategy": "1", "gpu_mem_limit": "4096"}
    tensorrt, cuda = backend.providers(config, parameters, "GPU", "1")
    assert tensorrt == (
        "TensorrtExecutionProvider",
        {
            "trt_fp16_enable": "True",
            "trt_max_workspace_size": "1024",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": "/cache",
            "trt_profile_max_shapes": "image:1x64x64x3",
            "device_id": "1",
        },
    )
    assert cuda == (
        "CUDAExecutionProvider",
        {
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "gpu_mem_limit": "4096",
            "device_id": "1",
        },
    )
    (alone,) = backend.providers(accelerated("cuda", use_tf32="0"), {}, "GPU", "0")
    assert alone == ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "0"})
    assert backend.providers(config, {}, "CPU", "0") == [("CPUExecutionProvider", {})]


def test_engines_that_a_config_does_not_place_are_kept_in_the_users_cache(
    backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backend.onnxruntime, "get_available_providers", lambda: PROVIDERS)
    monkeypatch.setitem(sys.modules, "engines", engines)
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    tensorrt, _ = backend.providers(accelerated("tensorrt", trt_engine_cache_enable="true"), {}, "GPU", "0")
    assert tensorrt[1]["trt_engine_cache_path"] == str(tmp_path / "cache" / "onnxruntime")
    assert (tmp_path / "cache" / "onnxruntime").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        backend.pb_utils.TritonModelException, match=r"cannot create a folder for trt_engine_cache_enable: .*/file"
    ):
        backend.providers(accelerated("tensorrt", trt_engine_cache_enable="true"), {}, "GPU", "0")


@pytest.mark.parametrize(
    ("config", "parameters", "words"),
    [
        (
            accelerated("tensorrt", precision_mode="FP8"),
            {},
            "precision_mode is 'FP8'; use one of FP32, FP16, BF16, INT8",
        ),
        (accelerated("tensorrt", trt_engine_cache_enable="maybe"), {}, "trt_engine_cache_enable is 'maybe'"),
        (accelerated("tensorrt", speed="high"), {}, "unknown parameter speed of the accelerator tensorrt"),
        (accelerated("cuda", device_id="3"), {}, "unknown parameter device_id of the accelerator cuda"),
        (accelerated("openvino"), {}, "unknown accelerator 'openvino' of a GPU instance; known: tensorrt, cuda"),
        ({}, {"cudnn_conv_algo_search": "9"}, "cudnn_conv_algo_search is '9'; use one of 0, 1, 2"),
    ],
)
def test_gpu_settings_that_are_not_known_are_refused(
    backend: Any, config: dict[str, Any], parameters: dict[str, str], words: str
) -> None:
    with pytest.raises(Exception, match=words):
        backend.providers(config, parameters, "GPU", "0")


def test_providers_other_than_those_asked_for_are_refused(backend: Any, tmp_path: Path) -> None:
    graphs.inverted(tmp_path / "model.onnx")
    model = backend.TritonPythonModel()
    model.path = str(tmp_path / "model.onnx")
    options = backend.session_options({}, {})
    model.settings = {"sess_options": options, "providers": [("CPUExecutionProvider", {})]}
    assert model.open_session().get_providers() == ["CPUExecutionProvider"]
    model.settings["providers"] = [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})]
    with (
        pytest.warns(UserWarning),
        pytest.raises(Exception, match="requested CUDAExecutionProvider, CPUExecutionProvider from ONNX Runtime"),
    ):
        model.open_session()


def test_the_backends_spell_parameters_as_the_contract_does(backend: Any) -> None:
    common = sys.modules["backend_common"]
    names = ("MIN_SIDE", "MAX_SIDE", "MAX_PIXELS", "PROFILE", "MULTIPLE")
    assert {name: getattr(common, name) for name in names} == {name: Parameter[name].value for name in names}
