"""The TensorRT backend in a real Triton, on a fake GPU: the packages of `tests/fakes/gpu` lie beside the backend.

`KIND_MODEL` stands for `KIND_GPU`, with which Triton loads nothing where there is no GPU.
"""

import os
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, shared_memory

from nst_export.graph.conversion import export_onnx
from nst_export.graph.rewrites import DEFAULT_REWRITES, apply_rewrites
from nst_export.modules import ServedModel
from nst_server.control import Control
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import Installation, find_triton
from nst_server.process.supervisor import run_triton
from nst_trainer.checkpoint import frozen
from nst_trainer.networks import Johnson

from ..fakes import GPU
from ..server import graphs
from .serving import TRITON, descendants, settled

PROFILE = "8x8/32x32/4x96x96"
STYLE = """
backend: "tensorrt"
max_batch_size: 4
input { name: "image" data_type: TYPE_UINT8 dims: [-1, -1, 3] }
output { name: "stylized" data_type: TYPE_UINT8 dims: [-1, -1, 3] }
dynamic_batching {}
instance_group { kind: KIND_MODEL count: 1 }
"""
WEIGHTS = 'input { name: "style_weights" data_type: TYPE_FP32 dims: [2] }\n'
WARM = """
model_warmup { name: "32x40" batch_size: 1
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [32, 40, 3] random_data: true } }
  inputs { key: "style_weights" value { data_type: TYPE_FP32 dims: [2] zero_data: true } } }
"""
WAITING = "dynamic_batching { preferred_batch_size: [3] max_queue_delay_microseconds: 2000000 }"


def parameters(**values: object) -> str:
    given = {"profile": PROFILE, "multiple": "4", **values}
    lines = [f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}' for name, value in given.items()]
    return "\n".join(lines)


CONFIGS = {
    "gallery": STYLE + WEIGHTS + WARM + parameters(styles="a,b"),
    "limited": STYLE + parameters(min_side=16, max_side=80, max_pixels=4096),
    "picky": STYLE.replace("dynamic_batching {}", WAITING) + parameters(),
    "bare": 'instance_group { kind: KIND_MODEL }\nbackend: "tensorrt"' + parameters(),
    # not served
    "large": STYLE.replace("max_batch_size: 4", "max_batch_size: 5") + parameters(),
    "cpu": STYLE.replace("KIND_MODEL", "KIND_CPU") + parameters(),
    "foreign": STYLE + parameters(),
    "planless": STYLE,
}
REASONS = {
    "large": "max_batch_size is 5, but the plan accepts batches of at most 4",
    "cpu": "TensorRT runs on NVIDIA GPUs: set KIND_GPU in instance_group",
    "foreign": "does not fit this machine (GPU NVIDIA L4, but here NVIDIA Fake GPU",
    "planless": "model.plan: no such file, and there is no parameter profile to build it from",
}
FOREIGN = (
    '{"gpu": "NVIDIA L4", "compute_capability": "8.9", "tensorrt": "10.9.0.34", "model_sha256": "", "profile": "%s"}'
)


@dataclass
class Server:
    """A running Triton, its client, and ONNX Runtime on the graph of its gallery."""

    client: grpc.InferenceServerClient
    control: Control
    endpoints: Endpoints
    repository: Path
    cache: Path
    log: Path
    messages: list[str]
    reference: onnxruntime.InferenceSession
    pid: int

    def infer(self, model: str, **arrays: np.ndarray) -> np.ndarray:
        kinds = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}
        inputs = []
        for name, values in arrays.items():
            inputs.append(grpc.InferInput(name, list(values.shape), kinds[values.dtype]))
            inputs[-1].set_data_from_numpy(values)
        return np.array(self.client.infer(model, inputs).as_numpy("stylized"))

    def stylized(self, image: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """What ONNX Runtime makes of it."""
        (answer,) = self.reference.run(None, {"image": image, "style_weights": weights})
        return np.asarray(answer)

    def metrics(self, model: str) -> dict[str, float]:
        """The model's own metrics, the requests by outcome, once they stay the same."""

        def read() -> dict[str, float]:
            with urllib.request.urlopen(self.endpoints.metrics) as answer:
                text = answer.read().decode()
            found = re.findall(rf'^(nst_\w+(?<!_bucket)){{.*model="{model}".*}} (\S+)$', text, re.MULTILINE)
            outcomes = re.findall(rf'^nst_requests_total{{.*model="{model}".*outcome="(\w+)".*}} (\S+)$', text, re.M)
            return {name: float(value) for name, value in (*found, *outcomes)}

        return settled(read)


def export(file: Path) -> None:
    """A network of two styles, as the exporter writes it for TensorRT."""
    torch.manual_seed(3)
    export_onnx(ServedModel(frozen(Johnson(width=0.125, styles=2))), file, {})
    proto = onnx.load(file)
    apply_rewrites(proto, DEFAULT_REWRITES["tensorrt"])
    onnx.save(proto, file)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tensorrt")
    repository = folder / "repository"
    for name, config in CONFIGS.items():
        version = repository / name / "1"
        version.mkdir(parents=True)
        {"picky": graphs.picky, "gallery": export}.get(name, graphs.inverted)(version / "model.onnx")
        (repository / name / "config.pbtxt").write_text(config)
    (repository / "foreign" / "1" / "model.onnx").write_bytes(b"a graph of which no plan is in the cache")
    (repository / "foreign" / "1" / "model.plan").write_bytes(b"plan")
    (repository / "foreign" / "1" / "plan.json").write_text(FOREIGN % PROFILE)
    reference = onnxruntime.InferenceSession(repository / "gallery/1/model.onnx", providers=["CPUExecutionProvider"])
    installation = with_fakes(find_triton(TRITON, print), folder)
    endpoints, messages = Endpoints.free(), list[str]()
    running = run_triton(installation, repository, endpoints, folder / "log", on_error=messages.append)
    with running as process, grpc.InferenceServerClient(endpoints.grpc.removeprefix("grpc://")) as client:
        yield Server(
            *(client, Control(endpoints.control), endpoints, repository, folder / "cache", folder / "log", messages),
            *(reference, process.pid),
        )


def with_fakes(installation: Installation, folder: Path) -> Installation:
    """The same Triton with backends of its own, the fakes among them: its stub hears no PYTHONPATH."""
    *binary, backends = installation.binary
    shutil.copytree(backends, folder / "backends")
    for package in ("cuda", "tensorrt"):
        shutil.copytree(GPU / package, folder / "backends" / "tensorrt" / package)
    environment = {**installation.environment, "NST_CACHE": str(folder / "cache")}
    return replace(installation, binary=(*binary, str(folder / "backends")), environment=environment)


def random_images(height: int = 24, width: int = 40, count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, (count, height, width, 3)).astype(np.uint8)


def weights(*style_weights: float) -> np.ndarray:
    return np.array([[weight, 1 - weight] for weight in style_weights], np.float32)


def test_images_are_those_of_onnx_runtime(server: Server) -> None:
    for shape in [(32, 40), (33, 47), (8, 96), (96, 96)]:
        for seed in range(3):  # plain, recorded, replayed
            image, style_weights = random_images(*shape, 2, seed), weights(1.0, 0.25)
            served = server.infer("gallery", image=image, style_weights=style_weights)
            assert np.array_equal(served, server.stylized(image, style_weights))


def test_mixed_sizes_from_several_callers(server: Server) -> None:
    """Answers go out from threads, later than the execution that took their requests: each caller gets their own."""

    def call(number: int) -> None:
        image = random_images(8 + number % 5 * 9, 16 + number % 3 * 20, 1 + number % 2, number)
        style_weights = weights(*[0.5] * len(image))
        served = server.infer("gallery", image=image, style_weights=style_weights)
        assert np.abs(served.astype(int) - server.stylized(image, style_weights)).max() <= 1

    with ThreadPoolExecutor(12) as pool:
        assert len(list(pool.map(call, range(120)))) == 120


def test_a_plan_is_built_into_the_cache_and_the_repository_stays_as_it_is(server: Server) -> None:
    assert list(server.cache.glob("plans/*.plan"))
    assert [path.name for path in (server.repository / "gallery" / "1").iterdir()] == ["model.onnx"]
    assert "building the plan for" in server.log.read_text()


def test_a_config_is_completed_from_the_plan(server: Server) -> None:
    config = server.client.get_model_config("bare").config
    assert (config.backend, config.max_batch_size) == ("tensorrt", 4)
    assert config.HasField("dynamic_batching")
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("image", [-1, -1, 3])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("stylized", [-1, -1, 3])]
    assert np.array_equal(server.infer("bare", image=random_images(count=4)), 255 - random_images(count=4))


@pytest.mark.parametrize("model", sorted(REASONS))
def test_a_model_that_cannot_be_served_is_named_with_the_reason(server: Server, model: str) -> None:
    (line,) = [line for line in server.messages if line.startswith(f"{model} ")]
    assert REASONS[model] in line
    assert "\n" not in line and "At:" not in line


HOSTILE: list[tuple[str, dict[str, np.ndarray], str]] = [
    ("limited", {"image": random_images(height=15)}, "40x15: this model needs at least 16 pixels per side"),
    ("limited", {"image": random_images(width=81)}, "81x24: this model accepts at most 80 pixels per side"),
    ("limited", {"image": random_images(80, 60)}, "60x80: this model accepts at most 0.0 megapixels"),
    ("limited", {"image": np.zeros((1, 0, 40, 3), np.uint8)}, "image is empty: 1x0x40x3"),
    ("limited", {"image": random_images(count=5)}, "batch-size must be <= 4"),
    (
        "picky",
        {"image": random_images(width=97)},
        "image 1x24x97x3 is outside the plan's shapes, 1x8x8x3 to 4x96x96x3",
    ),
    ("gallery", {"image": random_images(), "style_weights": weights(np.nan)}, "style_weights has values that are not"),
]


@pytest.mark.parametrize("position", range(len(HOSTILE)))
def test_a_bad_request_gets_an_error_and_the_next_one_works(server: Server, position: int) -> None:
    model, arrays, words = HOSTILE[position]
    with pytest.raises(InferenceServerException, match=re.escape(words)):
        server.infer(model, **arrays)
    assert np.array_equal(server.infer("limited", image=random_images()), 255 - random_images())


def test_a_request_that_fails_does_not_fail_its_batch(server: Server) -> None:
    before = server.metrics("picky")
    images = [random_images(seed=seed) for seed in range(3)]
    images[1][0, 5, 7, 1] = graphs.LEVELS

    def call(image: np.ndarray) -> np.ndarray | Exception:
        try:
            return server.infer("picky", image=image)
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(call, images))
    assert np.array_equal(answers[0], images[0]) and np.array_equal(answers[2], images[2])
    assert "image 1x24x40x3: cudaErrorLaunchFailure" in str(answers[1])
    after = server.metrics("picky")
    assert after["ok"] - before["ok"] == 2 and after["failed"] - before["failed"] == 1


def test_requests_that_wait_are_one_run(server: Server) -> None:
    before = server.metrics("picky")
    with ThreadPoolExecutor(3) as pool:
        images = [random_images(seed=seed) for seed in range(3)]
        answers = list(pool.map(lambda image: server.infer("picky", image=image), images))
    assert all(np.array_equal(answer, image) for answer, image in zip(answers, images, strict=True))
    after = server.metrics("picky")
    change = {name: after[name] - before[name] for name in after}
    assert change["nst_run_seconds_sum"] > 0
    assert (change["nst_run_images_count"], change["nst_run_images_sum"], change["ok"]) == (1, 3, 3)


def test_executions_overlap(server: Server) -> None:
    """While callers wait, Triton takes more requests than one execution's, and answers all."""
    statistics = server.client.get_inference_statistics("limited").model_stats[0]
    before = statistics.inference_stats.success.count
    with ThreadPoolExecutor(16) as pool:
        images = [random_images(16 + number % 40, 32, seed=number) for number in range(200)]
        answers = list(pool.map(lambda image: server.infer("limited", image=image), images))
    assert all(np.array_equal(answer, 255 - image) for answer, image in zip(answers, images, strict=True))

    def count() -> Any:
        return server.client.get_inference_statistics("limited").model_stats[0].inference_stats.success.count

    assert settled(count) - before == 200


def test_pixels_go_by_shared_memory(server: Server) -> None:
    image = random_images(count=2)
    regions = {}
    try:
        for name in ("given", "answer"):
            regions[name] = shared_memory.create_shared_memory_region(
                name, f"/nst-test-{os.getpid()}-{name}", image.size
            )
            server.client.register_system_shared_memory(name, f"/nst-test-{os.getpid()}-{name}", image.size)
        shared_memory.set_shared_memory_region(regions["given"], [image])
        given = grpc.InferInput("image", list(image.shape), "UINT8")
        given.set_shared_memory("given", image.size)
        answer = grpc.InferRequestedOutput("stylized")
        answer.set_shared_memory("answer", image.size)
        server.client.infer("limited", [given], outputs=[answer])
        stylized = shared_memory.get_contents_as_numpy(regions["answer"], np.uint8, list(image.shape))
        assert np.array_equal(stylized, 255 - image)
        del stylized
    finally:
        server.client.unregister_system_shared_memory()
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)


def test_requests_under_way_are_answered_when_a_model_is_unloaded(server: Server) -> None:
    answers: list[np.ndarray] = []

    def call() -> None:
        answers.append(server.infer("picky", image=random_images()))  # waits two seconds for more

    caller = threading.Thread(target=call)
    caller.start()
    time.sleep(0.5)
    server.control.unload("picky")
    caller.join(60)
    assert np.array_equal(answers[0], random_images())
    with pytest.raises(InferenceServerException):
        server.infer("picky", image=random_images())
    (loaded,) = server.control.load("picky")
    assert (loaded.name, loaded.version) == ("picky", "1")
    assert np.array_equal(server.infer("picky", image=random_images()), random_images())


def test_the_log_has_no_complaint_of_an_answer(server: Server) -> None:
    """Such as numpy's about the capsules that Triton's DLPack renames."""
    log = server.log.read_text()
    assert "Exception ignored" not in log and "could not answer" not in log


def test_a_killed_process_takes_no_other_model_with_it(server: Server) -> None:
    """Last, since Triton itself does not start it again; nst-serve starts another Triton."""
    (victim,) = (pid for pid in descendants(server.pid) if b"limited_0" in _words(pid))
    os.kill(victim, signal.SIGKILL)
    assert np.array_equal(server.infer("bare", image=random_images()), 255 - random_images())
    server.control.unload("limited")
    server.control.load("limited")
    assert np.array_equal(server.infer("limited", image=random_images()), 255 - random_images())


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
