"""Sessions of ONNX Runtime's CUDA provider: their bookkeeping on ONNX Runtime's CPU provider and main memory."""

import gc
import itertools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from nst_core import engines
from nst_core.distribution import install_command
from nst_core.engines.onnx_cuda import RUN_COST_VALUES, CudaSessions, SessionError, batch_sizes
from nst_core.engines.pinned import PinnedPool

from ..server import graphs
from .host_cuda import HostCuda

CPU: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
OUT = ["stylized"]


def sessions(path: Path, cuda: HostCuda | None = None, **options: Any) -> CudaSessions:
    return CudaSessions(path, providers=CPU, cuda=cuda or HostCuda(), **options)


def images(count: int = 1, height: int = 8, width: int = 12, seed: int = 0, top: int = graphs.LEVELS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, (count, height, width, 3)).astype(np.uint8)


@pytest.fixture
def inverted(tmp_path: Path) -> Path:
    graphs.inverted(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def invert(opened: CudaSessions, values: np.ndarray) -> None:
    """Run and check; the reference to the result ends here."""
    (answer,) = opened.run({"image": values}, OUT)
    assert np.array_equal(answer, 255 - values)


def sides(opened: CudaSessions) -> list[tuple[int, ...]]:
    """Batch, height and width of the shapes with a session of their own."""
    return [shapes[0][:3] for shapes in opened.shapes]


def test_the_graphs_names_are_known(tmp_path: Path) -> None:
    graphs.weighted(tmp_path / "model.onnx")
    opened = sessions(tmp_path / "model.onnx")
    assert (opened.inputs, opened.outputs) == (("image", "style_weights"), ("stylized",))


def test_a_shape_has_one_session(inverted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []

    class Counted(onnxruntime.InferenceSession):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            built.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Counted)
    opened = sessions(inverted)
    for seed in range(3):
        invert(opened, images(seed=seed))
        invert(opened, images(height=16, seed=seed))
    assert sides(opened) == [(1, 8, 12), (1, 16, 12)]
    assert len(built) == 3  # those two, and the shared session


@pytest.mark.parametrize("count", range(1, 18))
def test_every_batch_comes_back_whole_and_runs_in_powers_of_two(inverted: Path, count: int) -> None:
    opened = sessions(inverted)
    for seed in range(2):
        invert(opened, images(count, seed=seed))
    assert all(batch & (batch - 1) == 0 for batch, _, _ in sides(opened))


def test_a_large_batch_is_split_and_a_small_one_padded(inverted: Path) -> None:
    opened = sessions(inverted)
    invert(opened, images(3, 64, 64))
    assert sides(opened) == [(4, 64, 64)]
    invert(opened, images(3, 1024, 1024))
    assert sides(opened) == [(4, 64, 64), (2, 1024, 1024), (1, 1024, 1024)]


def compositions(count: int) -> list[list[int]]:
    """Every way to run a batch in powers of two, largest first, with only the last padded."""
    powers = [1 << bit for bit in range((count - 1).bit_length() + 1)]
    found = []
    for length in range(1, count + 1):
        for sizes in itertools.combinations_with_replacement(powers[::-1], length):
            if sum(sizes[:-1]) < count <= sum(sizes):
                found.append(list(sizes))
    return found


@pytest.mark.parametrize(
    "values", [1, RUN_COST_VALUES // 4, RUN_COST_VALUES, 3 * RUN_COST_VALUES, 20 * RUN_COST_VALUES]
)
def test_a_batch_runs_with_the_least_work(values: int) -> None:
    def work(sizes: list[int]) -> int:
        return sum(sizes) * values + len(sizes) * RUN_COST_VALUES

    for count in range(1, 10):
        assert work(batch_sizes(count, values)) == min(map(work, compositions(count)))


def test_every_input_is_padded_and_split(tmp_path: Path) -> None:
    graphs.weighted(tmp_path / "model.onnx")
    opened = sessions(tmp_path / "model.onnx")
    for height in (8, 700):
        values = images(5, height, 600, top=100)
        weights = np.array([[1, 0], [0.5, 0], [0, 0], [1, 0], [0.5, 0]], np.float32)
        (answer,) = opened.run({"image": values, "style_weights": weights}, OUT)
        assert np.array_equal(answer, (values * weights[:, :1, None, None]).astype(np.uint8))


def test_an_input_that_is_not_contiguous_is_taken(inverted: Path) -> None:
    invert(sessions(inverted), images(2, 16, 24)[:, ::2, ::-2])


def test_a_graph_whose_batch_is_fixed_runs_whole(tmp_path: Path) -> None:
    graphs.inverted(tmp_path / "model.onnx", batch=3)
    opened = sessions(tmp_path / "model.onnx")
    invert(opened, images(3))
    assert sides(opened) == [(3, 8, 12)]


def test_an_empty_batch_is_refused(inverted: Path) -> None:
    with pytest.raises(ValueError, match="image is an empty batch"):
        sessions(inverted).run({"image": images(0)}, OUT)


def test_the_least_recently_used_session_goes_first(inverted: Path) -> None:
    opened = sessions(inverted, sessions=2)
    for height in (1, 2, 1):
        invert(opened, images(height=height))
    assert sides(opened) == [(1, 2, 12), (1, 1, 12)]
    for _ in range(2):  # the first time it may be the only image of its size
        invert(opened, images(height=3))
    assert sides(opened) == [(1, 1, 12), (1, 3, 12)]


def test_more_shapes_than_sessions_do_not_open_sessions_forever(inverted: Path) -> None:
    opened = sessions(inverted, sessions=3)
    for height in [1, 2, 3, 4, 5] * 4:  # each comes back later than the least recently used of the three
        invert(opened, images(height=height))
    assert sides(opened) == [(1, 1, 12), (1, 2, 12), (1, 3, 12)]


def test_images_of_ever_new_sizes_leave_the_sessions_alone(inverted: Path) -> None:
    opened = sessions(inverted, sessions=2)
    for height in range(1, 50):
        invert(opened, images(height=height))
        invert(opened, images(height=1))
    assert (1, 1, 12) in sides(opened)
    assert len(opened.shapes) == 2


def test_without_sessions_one_serves_every_shape(inverted: Path) -> None:
    opened = sessions(inverted, sessions=0)
    for height in (5, 9, 5):
        invert(opened, images(3, height))
    assert opened.shapes == ()


def test_sessions_stay_within_the_memory_limit(inverted: Path) -> None:
    cuda = HostCuda()
    side = images().nbytes
    opened = sessions(inverted, cuda, memory_limit=2 * side + 1)
    for width in (12, 13, 13, 11):
        for _ in range(2):
            invert(opened, images(width=width))
    assert sides(opened) == [(1, 8, 13), (1, 8, 11)]
    for _ in range(3):
        invert(opened, images(width=40))  # larger than the limit
    assert sides(opened) == [(1, 8, 13), (1, 8, 11)]
    assert cuda.taken == images(width=13).nbytes + images(width=11).nbytes


def test_a_session_larger_than_the_limit_is_not_kept(inverted: Path) -> None:
    opened = sessions(inverted, memory_limit=100)
    for _ in range(3):
        invert(opened, images())
    assert opened.shapes == ()


def test_the_default_limit_is_half_of_the_free_memory(inverted: Path) -> None:
    opened = sessions(inverted, HostCuda(3000))
    for width in (40, 41):  # 960 and 984 bytes
        for _ in range(2):
            invert(opened, images(width=width))
    assert sides(opened) == [(1, 8, 41)]


def test_a_run_that_lacks_memory_gets_all_of_it(inverted: Path) -> None:
    opened = sessions(inverted, HostCuda(2300), memory_limit=2**40)
    for height in (2, 3, 4, 5):
        invert(opened, images(height=height))
    invert(opened, images(1, 8, 80))  # 1,920 bytes
    assert sides(opened) == [(1, 8, 80)]
    with pytest.raises(Exception, match="out of memory"):
        opened.run({"image": images(1, 8, 120)}, OUT)
    invert(opened, images())


def test_a_failed_run_drops_its_session_alone(tmp_path: Path) -> None:
    graphs.picky(tmp_path / "model.onnx")
    opened = sessions(tmp_path / "model.onnx", session_options=quiet())
    good, bad = images(), images()
    bad[0, 5, 7, 1] = graphs.LEVELS
    for values in (good, images(height=9)):
        opened.run({"image": values}, OUT)
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        opened.run({"image": bad}, OUT)
    assert sides(opened) == [(1, 9, 12)]
    assert np.array_equal(opened.run({"image": good}, OUT)[0], good)


def test_after_every_session_has_failed_another_is_opened(tmp_path: Path) -> None:
    graphs.picky(tmp_path / "model.onnx")
    side = images().nbytes
    opened = sessions(tmp_path / "model.onnx", session_options=quiet(), sessions=1, memory_limit=2 * side + 1)
    opened.run({"image": images()}, OUT)
    opened.run({"image": images(width=11)}, OUT)  # in the shared session, which takes as much
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        opened.run({"image": images() + np.uint8(graphs.LEVELS)}, OUT)
    assert sides(opened) == []
    opened.run({"image": images(width=13)}, OUT)
    assert sides(opened) == [(1, 8, 13)]


def test_a_failed_run_of_the_shared_session_leaves_the_others(tmp_path: Path) -> None:
    graphs.picky(tmp_path / "model.onnx")
    opened = sessions(tmp_path / "model.onnx", session_options=quiet(), sessions=1)
    opened.run({"image": images()}, OUT)
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        opened.run({"image": np.full((1, 9, 12, 3), 255, np.uint8)}, OUT)
    assert sides(opened) == [(1, 8, 12)]
    opened.run({"image": images(height=10)}, OUT)
    assert sides(opened) == [(1, 8, 12)]


def quiet() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def test_results_that_are_held_are_not_written_again(inverted: Path) -> None:
    opened = sessions(inverted)
    held = [opened.run({"image": images(seed=seed)}, OUT)[0] for seed in range(20)]
    for seed, answer in enumerate(held):
        assert np.array_equal(answer, 255 - images(seed=seed))


def test_memory_is_used_again(inverted: Path) -> None:
    cuda = HostCuda()
    opened = sessions(inverted, cuda)
    invert(opened, images())
    pinned = cuda.pinned
    for seed in range(20):
        invert(opened, images(seed=seed))
    assert cuda.pinned == pinned


def test_the_pool_ends_at_its_limit() -> None:
    cuda = HostCuda()
    pool = PinnedPool(cuda, limit=1 << 16)
    small = [pool.array((4096,), np.dtype(np.uint8)) for _ in range(20)]
    assert cuda.pinned == 1 << 16  # the last four are ordinary memory
    small[0][:] = 1
    assert not any(np.shares_memory(first, second) for first, second in itertools.combinations(small, 2))
    del small
    gc.collect()
    large = pool.array((2, 10_000), np.dtype(np.float32))  # unpins small ones
    assert (large.shape, large.dtype) == ((2, 10_000), np.float32)
    assert cuda.pinned <= 1 << 16
    del large
    gc.collect()
    pool.close()
    assert cuda.pinned == 0


def test_several_threads_each_get_their_own(inverted: Path) -> None:
    opened = sessions(inverted, sessions=3)
    wrong: list[int] = []

    def call(number: int) -> None:
        for turn in range(30):
            values = images(1 + turn % 3, 4 + (number + turn) % 5, seed=100 * number + turn)
            if not np.array_equal(opened.run({"image": values}, OUT)[0], 255 - values):
                wrong.append(turn)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_gives_everything_back(inverted: Path) -> None:
    cuda = HostCuda()
    opened = sessions(inverted, cuda)
    for height in (5, 6, 7):
        invert(opened, images(height=height))
    assert cuda.taken and cuda.pinned
    opened.close()
    assert (cuda.taken, cuda.pinned) == (0, 0)
    with pytest.raises(SessionError, match="sessions are closed"):
        invert(opened, images())


def test_what_onnx_runtime_is_asked_for(inverted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Asked(onnxruntime.InferenceSession):
        def __init__(self, path: str, *, providers: list[Any], **options: Any) -> None:
            asked.append(providers)
            super().__init__(path, providers=["CPUExecutionProvider"], **options)

        def get_providers(self) -> list[str]:
            return [name for name, _ in asked[-1]]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Asked)
    cuda = HostCuda()
    CudaSessions(inverted, device=2, provider_options={"gpu_mem_limit": "99"}, cuda=cuda)
    placed = {"device_id": "2", "user_compute_stream": "0"}
    ours = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    assert asked.pop() == [("CUDAExecutionProvider", {**ours, "gpu_mem_limit": "99", **placed})]
    assert cuda.used == [2]
    both = [("TensorrtExecutionProvider", {"trt_fp16_enable": "True"}), ("CUDAExecutionProvider", {})]
    CudaSessions(inverted, providers=both, cuda=cuda)
    placed["device_id"] = "0"
    assert asked.pop() == [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "True", **placed}),
        ("CUDAExecutionProvider", {**ours, **placed}),
    ]
    CudaSessions(inverted, provider_options={"cudnn_conv_algo_search": "EXHAUSTIVE"}, cuda=cuda)
    assert asked.pop()[0][1]["cudnn_conv_algo_search"] == "EXHAUSTIVE"


def test_a_provider_that_is_not_given_is_an_error(inverted: Path) -> None:
    words = "requested CoreMLExecutionProvider from ONNX Runtime, but got CPUExecutionProvider"  # which no Linux has
    with pytest.warns(UserWarning), pytest.raises(SessionError, match=words):
        CudaSessions(inverted, providers=[("CoreMLExecutionProvider", {})], cuda=HostCuda())


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(SessionError, match=r"model\.onnx: "):
        sessions(tmp_path / "model.onnx")


def test_the_engines_work_as_a_copy_without_nst(tmp_path: Path, inverted: Path) -> None:
    shutil.copytree(Path(engines.__file__).parent, tmp_path / "engines")
    code = "import sys, engines.onnx_cuda; print([name for name in sys.modules if name.startswith(('nst', 'torch'))])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no CUDA provider: {install_command('gpu')}")
    graphs.weighted(tmp_path / "model.onnx")
    opened = CudaSessions(tmp_path / "model.onnx", sessions=3)
    weights = np.array([[0.5, 0], [1, 0], [0, 0]], np.float32)
    for count, height in [(1, 64), (3, 64), (3, 512), (2, 33), (1, 64), (1, 17), (1, 17)]:
        values = images(count, height, 600, top=100)
        (answer,) = opened.run({"image": values, "style_weights": weights[:count]}, OUT)
        assert np.array_equal(answer, (values * weights[:count, :1, None, None]).astype(np.uint8))
    assert len(opened.shapes) == 3
    opened.close()
