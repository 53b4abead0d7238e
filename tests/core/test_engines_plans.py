"""Plans: TensorRT-RTX's real builder without a GPU, and where plans are found, kept and refused."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from nst_core.engines import building, plans
from nst_core.engines.plans import PlanError, PlanKey, Profile
from nst_core.files import cache_folder
from nst_export.graph.conversion import export_onnx
from nst_export.graph.rewrites import DEFAULT_REWRITES, apply_rewrites
from nst_export.modules import ServedModel
from nst_trainer.checkpoint import Checkpoint

from ..fakes import GPU, FakeGpu, fake_gpu
from ..server import graphs

PROFILE = Profile.parse("16x16/64x64/2x96x128")
KEY = PlanKey("NVIDIA H100 80GB HBM3", "9.0", "10.15.1.29", "ab" * 32, str(PROFILE))
ENGINES = Path(plans.__file__).parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture
def version(tmp_path: Path, small_checkpoint: Checkpoint) -> Path:
    """A version's folder with the graph that the exporter makes for TensorRT."""
    folder = tmp_path / "repository" / "seven" / "1"
    folder.mkdir(parents=True)
    export_onnx(ServedModel(small_checkpoint.network), folder / "model.onnx", {})
    proto = onnx.load(folder / "model.onnx")
    apply_rewrites(proto, DEFAULT_REWRITES["tensorrt"])
    onnx.save(proto, folder / "model.onnx")
    return folder


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")


@pytest.fixture
def fake() -> Iterator[FakeGpu]:
    with fake_gpu() as gpu:
        yield gpu


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    folder = tmp_path / "simple" / "1"
    graphs.inverted(folder / "model.onnx")
    return folder


def ensure(folder: Path, fake: FakeGpu, **changes: Any) -> Path:
    card = {"gpu": "NVIDIA Fake GPU", "compute_capability": "9.0"}
    return building.ensure(folder, PROFILE, 4, **{"library": fake.tensorrt, **card, **changes})


def test_a_profile_is_read_and_written() -> None:
    profile = Profile.parse("64x64/2x256x320/4x512x512")
    assert profile.all == ((1, 64, 64), (2, 256, 320), (4, 512, 512))
    assert str(profile) == "64x64/2x256x320/4x512x512"
    assert Profile.parse("1x16x16/1x16x16/16x16") == Profile.parse(str(Profile.parse("1x16x16/1x16x16/16x16")))
    assert profile.shapes(("N", "H", "W", 3), 4) == [(1, 64, 64, 3), (2, 256, 320, 3), (4, 512, 512, 3)]
    assert profile.shapes(("N", "2h", "2w", 3), 16)[1] == (2, 32, 40, 3)
    assert profile.holds((9, 17, 400)) == (4, 64, 400)


@pytest.mark.parametrize(
    "text", ["", "256x256", "64x64/32x32/512x512", "64/64/64", "64x64/a/512x512", "0x64/64x64/64x64", "-1x2/3x4/5x6"]
)
def test_a_profile_that_makes_no_sense_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="give min/opt/max") as caught:
        Profile.parse(text)
    assert "\n" not in str(caught.value)


def test_an_axis_that_no_profile_knows_is_named() -> None:
    with pytest.raises(PlanError, match="axis 'K'"):
        PROFILE.shapes(("N", "K"), 4)


def test_a_key_names_its_file_by_all_that_it_holds() -> None:
    assert re.fullmatch(r"(ab){8}-h100-80gb-hbm3-sm90-trt10\.15\.1\.29-[0-9a-f]{8}\.plan", KEY.name)
    changed = [
        replace(KEY, gpu="NVIDIA L4"),
        replace(KEY, compute_capability="8.9"),
        replace(KEY, tensorrt="10.16.0.1"),
        replace(KEY, model_sha256="cd" * 32),
        replace(KEY, profile="16x16/32x32/64x64"),
    ]
    assert len({key.name for key in (KEY, *changed)}) == 6


def test_a_slice_of_a_card_is_the_card(simple: Path) -> None:
    whole = plans.key_of(simple / "model.onnx", PROFILE, "NVIDIA H100 80GB HBM3", "9.0", "10.15")
    assert plans.key_of(simple / "model.onnx", PROFILE, "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "9.0", "10.15") == whole


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert plans.cache_folder() == Path("/own/plans")
    monkeypatch.delenv("NST_CACHE")
    assert plans.cache_folder() == Path("/shared/nst/plans")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert plans.cache_folder() == Path.home() / ".cache/nst/plans"


@pytest.mark.parametrize("shared", [None, "", "relative", "~/shared", "/shared"])
@pytest.mark.parametrize("home", [None, "", "relative", "/home/somebody"])
def test_the_cache_is_where_the_rest_of_nst_has_it(
    monkeypatch: pytest.MonkeyPatch, home: str | None, shared: str | None
) -> None:
    """`plans` imports nothing of nst, and finds the same folder by itself."""
    monkeypatch.delenv("NST_CACHE")
    for name, value in (("HOME", home), ("XDG_CACHE_HOME", shared)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert plans.cache_folder() == cache_folder() / "plans"


def test_a_user_without_a_home_folder_learns_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(user: int) -> object:
        raise KeyError(user)

    for name in ("NST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", missing)
    with pytest.raises(PlanError, match=r"user id \d+ has no home folder; set NST_CACHE to a writable folder"):
        plans.cache_folder()
    monkeypatch.setenv("NST_CACHE", "/own")
    assert plans.cache_folder() == Path("/own/plans")


def test_tensorrt_builds_what_the_exporter_writes_and_says_how_far_it_is(version: Path, rtx: Any) -> None:
    seen: list[tuple[float, str]] = []
    plan = building.build(
        (version / "model.onnx").read_bytes(),
        *(PROFILE, 4),
        library=rtx,
        on_progress=lambda done, note: seen.append((done, note)),
        compute_capabilities=["SM89", "SM120"],
    )
    assert len(plan) > 10_000
    fractions = [done for done, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert len(set(fractions)) > 5 and all(note for _, note in seen)


def test_a_build_that_is_interrupted_ends_with_the_reason(version: Path, rtx: Any) -> None:
    """As by Ctrl-C, which arrives in the callback: it must not pass through TensorRT."""

    def interrupt(done: float, note: str) -> None:
        if done > 0:
            raise KeyboardInterrupt

    graph = (version / "model.onnx").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        building.build(graph, PROFILE, 4, library=rtx, on_progress=interrupt, compute_capabilities=["SM89"])


def test_an_error_of_tensorrt_is_in_its_own_words(rtx: Any) -> None:
    with pytest.raises(PlanError, match=r"tensorrt_rtx .* cannot read the graph: .*[Pp]arse") as caught:
        building.build(b"nothing", PROFILE, 4, library=rtx, compute_capabilities=["SM89"])
    assert "\n" not in str(caught.value)


def test_a_plan_is_built_into_the_cache_once(simple: Path, fake: FakeGpu, cache: Path) -> None:
    before = sorted(simple.iterdir())
    first = ensure(simple, fake)
    assert first.parent == cache and first == ensure(simple, fake)
    assert fake.tensorrt.counts["builds"] == 1
    assert sorted(simple.iterdir()) == before  # a repository may be read-only
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]
    assert [path.suffix for path in sorted(cache.iterdir())].count(".timings") == 1
    ensure(simple, fake, gpu="NVIDIA Other GPU")
    graphs.weighted(simple / "model.onnx")
    ensure(simple, fake)
    assert fake.tensorrt.counts["builds"] == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "record", "no record"])
def test_a_damaged_plan_in_the_cache_is_built_again(simple: Path, fake: FakeGpu, damage: str) -> None:
    plan = ensure(simple, fake)
    whole = plan.read_bytes()
    if damage in ("empty", "cut"):
        plan.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    elif damage == "record":
        plan.with_suffix(".json").write_text("{")
    else:
        plan.with_suffix(".json").unlink()
    assert ensure(simple, fake) == plan
    assert plan.read_bytes() == whole
    assert fake.tensorrt.counts["builds"] == 2


def test_damaged_timings_are_measured_again(simple: Path, fake: FakeGpu, cache: Path) -> None:
    ensure(simple, fake)
    (timings,) = cache.glob("*.timings")
    timings.write_bytes(b"nonsense")
    graphs.weighted(simple / "model.onnx")
    ensure(simple, fake)
    assert timings.read_bytes() == b"timings"


def test_the_plan_beside_the_graph_is_taken_if_it_is_for_this_gpu(simple: Path, fake: FakeGpu) -> None:
    key = plans.key_of(simple / "model.onnx", PROFILE, "NVIDIA Fake GPU", "9.0", plans.version_of(fake.tensorrt))
    (simple / "model.plan").write_bytes(b"plan")
    (simple / "plan.json").write_text(key.record(b"plan"))
    assert ensure(simple, fake) == plans.find(simple, key) == simple / "model.plan"
    assert plans.mismatch(simple, key) is None
    assert fake.tensorrt.counts["builds"] == 0
    (simple / "model.onnx").unlink()  # a plan alone is enough
    assert ensure(simple, fake) == simple / "model.plan"


def test_a_plan_that_somebody_put_there_is_left_to_tensorrt(simple: Path, fake: FakeGpu) -> None:
    (simple / "model.plan").write_bytes(b"plan")
    assert ensure(simple, fake) == simple / "model.plan"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": "NVIDIA L4"}, "GPU NVIDIA L4, but here NVIDIA H100 80GB HBM3"),
        ({"compute_capability": "8.9"}, "compute capability 8.9, but here 9.0"),
        ({"tensorrt": "10.9.0.34"}, "TensorRT 10.9.0.34, but here 10.15.1.29"),
        ({"model_sha256": "cd" * 32}, f"SHA-256 of model.onnx {'cd' * 32}"),
        ({"profile": "16x16/32x32/64x64"}, "shapes 16x16/32x32/64x64, but here 16x16/64x64/2x96x128"),
    ],
)
def test_a_plan_for_something_else_is_refused_with_the_way_to_another(
    tmp_path: Path, change: dict[str, str], words: str
) -> None:
    (tmp_path / "model.plan").write_bytes(b"plan")
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "plan.json").write_text(replace(KEY, **change).record(b"plan"))
    reason = plans.mismatch(tmp_path, KEY)
    assert reason is not None and words in reason
    assert "export the model again here, or delete model.plan and plan.json" in reason
    assert "\n" not in reason
    assert plans.find(tmp_path, KEY) is None


def test_a_refused_plan_is_not_built_silently(simple: Path, fake: FakeGpu) -> None:
    (simple / "model.plan").write_bytes(b"plan")
    (simple / "plan.json").write_text(KEY.record(b"plan"))
    with pytest.raises(PlanError, match="does not fit this machine"):
        ensure(simple, fake)
    (simple / "plan.json").write_text("{}")
    with pytest.raises(PlanError, match=r"plan\.json is damaged"):
        ensure(simple, fake)


def test_a_version_without_anything_is_refused(tmp_path: Path, fake: FakeGpu) -> None:
    with pytest.raises(PlanError, match=r"neither model\.plan nor model\.onnx"):
        ensure(tmp_path, fake)


def test_a_cache_that_cannot_be_written_is_named(simple: Path, fake: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_CACHE", "/proc/nowhere")
    with pytest.raises(PlanError, match=r"cannot write to /proc/nowhere/plans: .*; set NST_CACHE"):
        ensure(simple, fake)


def build_slowly(folder: Path, queue: Any, barrier: Any) -> None:
    """A process that wants the plan at the same time as another."""
    from tests.fakes import fake_gpu

    with fake_gpu() as gpu:
        barrier.wait(60)
        notes: list[str] = []

        def slow(done: int, note: str) -> None:
            notes.append(note)
            threading.Event().wait(0.1)

        ensure(folder, gpu, on_progress=slow)
        queue.put((gpu.tensorrt.counts["builds"], notes))


def test_two_processes_build_the_same_plan_once(simple: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue, barrier = context.Queue(), context.Barrier(2)
    processes = [context.Process(target=build_slowly, args=(simple, queue, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = sorted((queue.get(timeout=60) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(60)
    assert [builds for builds, _ in answers] == [0, 1]
    assert answers[0][1] == ["waiting for another process that builds this plan"]


def command(*arguments: object, fake: bool = True) -> tuple[int, list[dict[str, Any]]]:
    """`python build_plan.py` in a process of its own, as nst-serve runs it: its exit status and lines."""
    environment = {**os.environ, "PYTHONPATH": str(GPU) if fake else ""}
    words = [sys.executable, str(ENGINES / "build_plan.py"), *map(str, arguments)]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert not result.stderr
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines()]


def test_the_command_says_how_far_it_is_and_where_the_plan_lies(simple: Path, cache: Path) -> None:
    status, lines = command(simple, PROFILE, 4)
    assert status == 0
    assert [line["progress"] for line in lines[:-1]] == sorted(line["progress"] for line in lines[:-1])
    assert all(line["note"] for line in lines[:-1]) and len(lines) > 2
    assert Path(lines[-1]["plan"]).parent == cache and lines[-1]["seconds"] >= 0
    assert command(simple, PROFILE, 4)[1] == [{"plan": lines[-1]["plan"], "seconds": pytest.approx(0, abs=60)}]


def test_the_command_says_what_is_wrong(simple: Path, tmp_path: Path) -> None:
    for arguments, words in [
        ((simple, "16x16", 4), "'16x16' is not a profile"),
        ((simple, PROFILE), "usage: build_plan.py"),
        ((tmp_path, PROFILE, 4), "neither model.plan nor model.onnx"),
    ]:
        status, lines = command(*arguments)
        assert status == 1 and words in lines[-1]["error"]


def test_everything_that_is_used_of_tensorrt_exists(rtx: Any) -> None:
    """What the fake has, so that it cannot promise more than the real library."""
    builder = rtx.Builder(plans.logger_of(rtx))
    used = {
        rtx.ICudaEngine: (
            "num_io_tensors get_tensor_name get_tensor_dtype get_tensor_mode get_tensor_shape "
            "get_tensor_profile_shape create_execution_context"
        ),
        rtx.IExecutionContext: (
            "device_memory active_optimization_profile set_optimization_profile_async set_input_shape "
            "get_tensor_shape update_device_memory_size_for_shapes set_tensor_address execute_async_v3"
        ),
        rtx.Runtime: "deserialize_cuda_engine",
        rtx.ITensor: "name dtype shape get_dimension_name",
        type(builder.create_builder_config()): (
            "add_optimization_profile clear_flag progress_monitor create_timing_cache set_timing_cache "
            "get_timing_cache num_compute_capabilities set_compute_capability"
        ),
        type(builder.create_optimization_profile()): "set_shape",
        rtx.ITimingCache: "serialize",
        rtx.ILogger: "Severity",
        rtx.ILogger.Severity: "ERROR INTERNAL_ERROR",
        rtx.IProgressMonitor: "phase_start step_complete phase_finish",
        rtx.ExecutionContextAllocationStrategy: "USER_MANAGED",
        rtx.BuilderFlag: "TF32",
        rtx.TensorIOMode: "INPUT OUTPUT",
        rtx.DataType: "UINT8 INT8 INT32 INT64 BOOL HALF FLOAT",
    }
    for owner, names in used.items():
        assert [name for name in names.split() if not hasattr(owner, name)] == []
