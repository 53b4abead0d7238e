"""The TensorRT engine's bookkeeping of memory, graphs, contexts and threads, on a fake GPU; and once on a real GPU."""

import ast
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from nst_core.engines import building, cuda
from nst_core.engines.cuda import CudaError
from nst_core.engines.deserialized import EngineError
from nst_core.engines.dlpack import Lent
from nst_core.engines.plans import PlanError, Profile
from nst_core.engines.tensorrt import TensorRTEngine

from ..fakes import FakeGpu, fake_gpu
from ..server import graphs

PROFILE = Profile.parse("8x8/32x32/4x64x64")


@pytest.fixture
def fake() -> Iterator[FakeGpu]:
    with fake_gpu() as gpu:
        yield gpu


@pytest.fixture
def opened(fake: FakeGpu, tmp_path: Path) -> Iterator[Callable[..., TensorRTEngine]]:
    """Engines on one of the small graphs, closed at the end, when nothing may be left on the device."""
    engines: list[TensorRTEngine] = []

    def opened(graph: Callable[[Path], None] = graphs.inverted, **settings: Any) -> TensorRTEngine:
        graph(tmp_path / "model.onnx")
        plan = building.build((tmp_path / "model.onnx").read_bytes(), PROFILE, 4, library=fake.tensorrt)
        engines.append(TensorRTEngine(plan, library=fake.tensorrt, **settings))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()
    assert fake.runtime.in_use() == 0
    assert fake.runtime.alive() == 0


def images(height: int = 16, width: int = 24, count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (count, height, width, 3)).astype(np.uint8)


def test_a_plan_runs_at_every_shape_of_its_profile(opened: Callable[..., TensorRTEngine]) -> None:
    engine = opened()
    assert (engine.inputs, engine.output) == (("image",), "stylized")
    assert (engine.minimum, engine.maximum) == ((1, 8, 8, 3), (4, 64, 64, 3))
    for shape in [(8, 8, 1), (64, 64, 4), (13, 33, 2), (64, 8, 3)]:
        for seed in range(4):  # plain, recorded, replayed
            image = images(*shape, seed=seed)
            assert np.array_equal(engine.run({"image": image}), 255 - image)


def test_a_run_may_write_into_an_array_of_the_caller(opened: Callable[..., TensorRTEngine]) -> None:
    engine, image = opened(), images()
    out = np.empty_like(image)
    assert engine.run({"image": image}, out) is out
    assert np.array_equal(out, 255 - image)
    assert engine.run({"image": image}) is not engine.run({"image": image})


def test_several_inputs_and_pieces_of_a_batch(opened: Callable[..., TensorRTEngine]) -> None:
    engine = opened(graphs.weighted)
    pieces = [images(count=count, seed=count) for count in (1, 2, 1)]
    weights = [np.full((len(piece), 2), at / 2, np.float32) for at, piece in enumerate(pieces)]
    for _ in range(3):
        answer = engine.run({"style_weights": weights, "image": pieces})
        wanted = [(piece * np.float32(at / 2)).astype(np.uint8) for at, piece in enumerate(pieces)]
        assert np.array_equal(answer, np.concatenate(wanted))


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"image": images(7, 24)}, "image 1x7x24x3 is outside the plan's shapes, 1x8x8x3 to 4x64x64x3"),
        ({"image": images(16, 65)}, "image 1x16x65x3 is outside"),
        ({"image": images(count=5)}, "image 5x16x24x3 is outside"),
        ({"image": images()[0]}, "image 16x24x3 is outside"),
        ({"image": [images(), images(16, 25)]}, "1x16x24x3, 1x16x25x3 differ in shape"),
        ({"image": images().astype(np.float32)}, "image is float32, but the plan needs uint8"),
        ({}, "the plan's inputs are image, but got none"),
        ({"image": images(), "noise": images()}, "but got image, noise"),
    ],
)
def test_what_the_plan_does_not_take_is_refused(
    opened: Callable[..., TensorRTEngine], feeds: dict[str, Any], words: str
) -> None:
    engine = opened()
    with pytest.raises(ValueError, match=re.escape(words)):
        engine.run(feeds)
    assert np.array_equal(engine.run({"image": images()}), 255 - images())


def test_inputs_that_do_not_go_together_are_refused(opened: Callable[..., TensorRTEngine]) -> None:
    engine = opened(graphs.weighted)
    with pytest.raises(ValueError, match="image 2x16x24x3, style_weights 1x2: these shapes do not fit together"):
        engine.run({"image": images(count=2), "style_weights": np.ones((1, 2), np.float32)})
    weights = np.ones((1, 2), np.float32)
    assert np.array_equal(engine.run({"image": images(), "style_weights": weights}), images())


def test_a_graph_is_recorded_at_the_second_use_and_replayed_after(
    opened: Callable[..., TensorRTEngine], fake: FakeGpu
) -> None:
    engine, counts = opened(contexts=1), fake.runtime.counts
    seen = []
    for seed in range(5):
        engine.run({"image": images(seed=seed)})
        seen.append((counts["cudaStreamEndCapture"], counts["cudaGraphLaunch"]))
    assert seen == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert fake.tensorrt.counts["runs"] == 5  # recording is no run


def test_a_warm_shape_is_replayed_in_every_context_at_once(
    opened: Callable[..., TensorRTEngine], fake: FakeGpu
) -> None:
    engine, counts = opened(contexts=3), fake.runtime.counts
    engine.warm({"image": images()})
    assert counts["cudaStreamEndCapture"] == 3
    held = [engine.submit({"image": images(seed=seed)}) for seed in range(3)]
    for seed, pending in enumerate(held):
        assert np.array_equal(pending.result(), 255 - images(seed=seed))
    assert counts["cudaGraphLaunch"] == 3


def test_graphs_are_bounded_and_the_least_recently_used_leaves(
    opened: Callable[..., TensorRTEngine], fake: FakeGpu
) -> None:
    engine, counts = opened(contexts=1, graphs=2), fake.runtime.counts

    def held() -> int:
        return counts["cudaGraphInstantiate"] - counts["cudaGraphExecDestroy"]

    engine.run({"image": images(64, 64)})  # memory for all that follows
    for width in (8, 9):
        engine.warm({"image": images(8, width)})
    engine.run({"image": images(8, 8)})
    engine.warm({"image": images(8, 10)})  # 9 leaves
    assert held() == 2
    launches = counts["cudaGraphLaunch"]
    for width in (8, 10):
        assert np.array_equal(engine.run({"image": images(8, width)}), 255 - images(8, width))
    assert counts["cudaGraphLaunch"] == launches + 2
    for width in range(8, 40):
        engine.warm({"image": images(8, width)})
        assert held() <= 2
    assert fake.tensorrt.counts["contexts"] == 3  # of graphs that left, the next ones have theirs


def test_many_shapes_in_turn_are_not_recorded_in_vain(opened: Callable[..., TensorRTEngine], fake: FakeGpu) -> None:
    engine = opened(contexts=1, graphs=4)
    for _ in range(3):
        for width in range(8, 20):
            engine.run({"image": images(8, width)})
    assert fake.runtime.counts["cudaStreamEndCapture"] == 0


def test_memory_is_used_again(opened: Callable[..., TensorRTEngine], fake: FakeGpu) -> None:
    engine = opened(contexts=1)
    engine.warm({"image": images(40, 40)})
    before, size = fake.runtime.counts["allocations"], fake.runtime.in_use()
    for shape in [(40, 40), (8, 8), (39, 40), (16, 24)] * 4:
        engine.run({"image": images(*shape)})
    assert fake.runtime.counts["allocations"] == before
    assert fake.runtime.in_use() == size


def test_memory_is_taken_for_what_runs_and_not_for_the_profile(
    opened: Callable[..., TensorRTEngine], fake: FakeGpu
) -> None:
    engine = opened(contexts=1)
    engine.run({"image": images(8, 8)})
    small = fake.runtime.in_use()
    engine.run({"image": images(64, 64, 4)})
    assert fake.runtime.in_use() > 50 * small


def test_graphs_with_old_addresses_are_dropped_when_memory_moves(
    opened: Callable[..., TensorRTEngine], fake: FakeGpu
) -> None:
    """The fake device fails a run that touches memory which was given back, or whose context was changed."""
    engine = opened(contexts=1)
    engine.warm({"image": images(8, 8)})
    engine.run({"image": images(64, 64, 4)})  # all memory moves
    for seed in range(4):
        image = images(8, 8, seed=seed)
        assert np.array_equal(engine.run({"image": image}), 255 - image)


def test_interleaved_shapes_from_many_threads(opened: Callable[..., TensorRTEngine], fake: FakeGpu) -> None:
    engine = opened(contexts=3, graphs=3)

    def call(number: int) -> bool:
        often, seldom = (16 + number % 4, 24, 1), (8 + number % 5 * 7, 8 + number % 7 * 8, 1 + number % 3)
        image = images(*(often if number % 4 < 2 else seldom), seed=number)
        return np.array_equal(engine.run({"image": image}), 255 - image)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(300)))
    assert fake.runtime.counts["cudaGraphLaunch"] > 0


def test_a_context_that_has_the_graph_is_preferred(opened: Callable[..., TensorRTEngine], fake: FakeGpu) -> None:
    engine = opened(contexts=2)
    with engine.submit({"image": images(64, 64, 4)}):  # both have their memory
        engine.run({"image": images(64, 64, 4)})
    for _ in range(2):
        engine.run({"image": images(8, 8)})
    held = [engine.submit({"image": images(side, side)}) for side in (9, 10)]  # the one with the graph, the other
    for pending in held:
        pending.close()
    launches = fake.runtime.counts["cudaGraphLaunch"]
    engine.run({"image": images(8, 8)})
    assert fake.runtime.counts["cudaGraphLaunch"] == launches + 1


def test_runs_overlap_up_to_the_number_of_contexts(opened: Callable[..., TensorRTEngine]) -> None:
    engine = opened(contexts=2)
    first, second = (engine.submit({"image": images(seed=seed)}) for seed in (1, 2))
    third: list[np.ndarray] = []
    waiting = threading.Thread(target=lambda: third.append(engine.run({"image": images(seed=3)})))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and not third  # both contexts are held
    assert np.array_equal(second.result(), 255 - images(seed=2))
    waiting.join(30)
    assert np.array_equal(third[0], 255 - images(seed=3))
    assert np.array_equal(first.result(), 255 - images(seed=1))


def test_an_output_can_be_read_where_it_lies(opened: Callable[..., TensorRTEngine]) -> None:
    engine, image = opened(contexts=1), images(count=2)
    with engine.submit({"image": image}) as pending:
        answer = pending.wait()
        assert np.array_equal(answer, 255 - image)
        assert np.array_equal(np.from_dlpack(Lent(answer)), answer)
        assert np.array_equal(pending.feeds["image"], image)
        alone = pending.feeds["image"][1:].copy()
        pending.restart({"image": alone})
        assert np.array_equal(pending.wait(), 255 - image[1:])
    pending.close()
    with pytest.raises(EngineError, match="closed"):
        pending.wait()
    assert np.array_equal(engine.run({"image": image}), 255 - image)


def test_the_caller_may_change_an_input_once_it_is_submitted(opened: Callable[..., TensorRTEngine]) -> None:
    engine, image = opened(), images()
    pending = engine.submit({"image": image})
    wanted = 255 - image
    image[:] = 0
    assert np.array_equal(pending.result(), wanted)


@pytest.mark.parametrize(
    "call",
    [
        "cudaMalloc",
        "cudaHostAlloc",
        "cudaMemcpyAsync",
        "cudaEventRecord",
        "cudaEventSynchronize",
        "cudaGraphLaunch",
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
    ],
)
@pytest.mark.parametrize("run", range(4))
def test_a_failure_anywhere_leaves_the_next_run_right(
    opened: Callable[..., TensorRTEngine], fake: FakeGpu, call: str, run: int
) -> None:
    """Whichever call fails, in whichever of four runs: the engine goes on, without CUDA graphs if those failed."""
    engine = opened(contexts=1)
    shapes = [(16, 24), (16, 24), (16, 24), (64, 64)]
    failed = 0
    for number, shape in enumerate(shapes * 2):
        if number == run:
            fake.runtime.fail(call)
        try:
            image = images(*shape, seed=number)
            assert np.array_equal(engine.run({"image": image}), 255 - image)
        except CudaError as error:
            assert "cudaErrorMemoryAllocation: the fake device says so" in str(error)
            failed += 1
    assert failed <= 1
    fake.runtime.fail_no_more()
    assert np.array_equal(engine.run({"image": images()}), 255 - images())


def test_a_run_that_fails_in_the_network_leaves_the_next_one_right(opened: Callable[..., TensorRTEngine]) -> None:
    engine = opened(graphs.picky, contexts=1)
    bad = images()
    bad[0, 3, 5, 1] = graphs.LEVELS
    for _ in range(4):
        with pytest.raises(CudaError, match="cudaErrorLaunchFailure"):
            engine.run({"image": bad})
        assert np.array_equal(engine.run({"image": images()}), images())


def test_without_graphs_the_engine_says_why(opened: Callable[..., TensorRTEngine], fake: FakeGpu) -> None:
    engine = opened(contexts=1)
    status = fake.runtime.cudaError_t.cudaErrorStreamCaptureUnsupported
    fake.runtime.fail("cudaStreamEndCapture", status)
    for seed in range(4):
        assert np.array_equal(engine.run({"image": images(seed=seed)}), 255 - images(seed=seed))
    assert engine.graphs_fail is not None and "cudaErrorStreamCaptureUnsupported" in engine.graphs_fail
    assert fake.runtime.counts["cudaGraphLaunch"] == 0


@pytest.mark.parametrize("plan", [b"", b"nonsense"])
def test_a_plan_that_tensorrt_does_not_take_is_one_line(fake: FakeGpu, tmp_path: Path, plan: bytes) -> None:
    (tmp_path / "model.plan").write_bytes(plan)
    with pytest.raises(PlanError, match=r"model\.plan: TensorRT 10\.99\.0\.1 cannot run this plan .*magicTag"):
        TensorRTEngine(tmp_path / "model.plan", library=fake.tensorrt)


def test_a_plan_of_another_version_is_refused_in_tensorrts_words(
    fake: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs.inverted(tmp_path / "model.onnx")
    plan = building.build((tmp_path / "model.onnx").read_bytes(), PROFILE, 4, library=fake.tensorrt)
    monkeypatch.setattr(fake.tensorrt, "__version__", "10.100.0.0")
    with pytest.raises(PlanError, match=r"is of version 10\.99\.0\.1.*export the model again"):
        TensorRTEngine(plan, library=fake.tensorrt)


def test_a_gpu_that_is_not_there_is_an_error(fake: FakeGpu) -> None:
    with pytest.raises(CudaError, match="cudaErrorInvalidDevice"):
        TensorRTEngine(b"", device=3, library=fake.tensorrt)
    assert cuda.card(0) == ("NVIDIA Fake GPU", "9.0")


def test_a_closed_engine_says_so(opened: Callable[..., TensorRTEngine]) -> None:
    engine = opened()
    pending = engine.submit({"image": images()})
    closing_thread = threading.Thread(target=engine.close)
    closing_thread.start()
    closing_thread.join(0.1)
    assert closing_thread.is_alive()  # it waits for what runs
    assert np.array_equal(pending.result(), 255 - images())
    closing_thread.join(30)
    with pytest.raises(EngineError, match="closed"):
        engine.run({"image": images()})


def test_everything_that_is_used_of_cuda_exists() -> None:
    """In NVIDIA's real package, and in the fake, which takes no argument more."""
    real = pytest.importorskip("cuda.bindings.runtime")
    tree = ast.parse(Path(cuda.__file__).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "runtime"
    }
    assert len(used) > 25
    with fake_gpu() as fake:
        for name in used:
            assert hasattr(real, name), name
            assert hasattr(fake.runtime, name), name
    assert hasattr(real.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert hasattr(real.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    assert {"name", "major", "minor"} <= set(dir(real.cudaDeviceProp))


def inverted_in_float() -> bytes:
    """`stylized` is 255 - `image`, in the operators that TensorRT takes for bytes."""
    axes = ("N", "H", "W", 3)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["white", "values"], ["inverted"]),
            helper.make_node("Cast", ["inverted"], ["stylized"], to=TensorProto.UINT8),
        ],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, axes)],
        [helper.make_tensor_value_info("stylized", TensorProto.UINT8, axes)],
        [numpy_helper.from_array(np.array(255, np.float32), "white")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_the_graph_for_the_real_gpu_is_one_that_tensorrt_builds() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    assert building.build(inverted_in_float(), PROFILE, 1, library=rtx, compute_capabilities=["SM89"])


@pytest.mark.gpu
def test_a_real_plan_runs_on_the_real_gpu(tmp_path: Path) -> None:
    """Built and run at many shapes, with and without graphs, from threads; memory grows with what runs."""
    trt = pytest.importorskip("tensorrt")
    profile = Profile.parse("16x16/256x256/4x1024x1024")
    plan = building.build(inverted_in_float(), profile, 1, library=trt, timing_cache=tmp_path / "timings")
    with closing(TensorRTEngine(plan, contexts=2)) as engine:
        free = cuda.free_memory()
        engine.warm({"image": images(256, 256)})
        assert engine.graphs_fail is None

        def call(number: int) -> int:
            image = images(16 + number % 5 * 50, 16 + number % 7 * 40, 1 + number % 3, seed=number)
            return int(np.abs(engine.run({"image": image}).astype(int) - (255 - image)).max())

        with ThreadPoolExecutor(4) as pool:
            assert max(pool.map(call, range(200))) <= 1
        assert free - cuda.free_memory() < 2**30
        image = images(1024, 1024, 4)
        assert np.abs(engine.run({"image": image}).astype(int) - (255 - image)).max() <= 1
        with pytest.raises(ValueError, match="outside the plan's shapes"):
            engine.run({"image": images(1025, 16)})
