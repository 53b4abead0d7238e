import errno
import os
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_core.engines.plans import Profile
from nst_export.errors import ExportError
from nst_export.modules import Exportable
from nst_export.repository.model_config import ServingOptions, model_config
from nst_export.repository.publishing import check_names, publish_version, versions

from .conftest import MODELS

SERVING = ServingOptions(("seven",), cores=4)

PROFILE = Profile.parse("32x16/64x64/4x300x400")


def config(serving: ServingOptions = SERVING, model: Exportable | None = None) -> model_config_pb2.ModelConfig:
    served = model or MODELS["johnson"]()
    return model_config("seven", served.inputs, served.output, serving)


def publish(tmp_path: Path, **how: Any) -> Path:
    (tmp_path / "file").write_bytes(b"a model")
    return publish_version({"model.onnx": tmp_path / "file"}, "seven", tmp_path / "in" / "repo", config(), **how)


def test_the_config_is_read_back_by_tritons_own_message(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    text = (folder.parent / "config.pbtxt").read_text()
    read = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert read == config()
    assert read.backend == "onnxruntime"
    assert read.max_batch_size > 1
    assert not read.HasField("dynamic_batching")  # a CPU stylizes a batch no faster, and in several times the memory
    assert [list(tensor.dims) for tensor in (*read.input, *read.output)] == [[-1, -1, 3]] * 2
    assert read.parameters["styles"].string_value == "seven"
    assert [dict(warmup.inputs)["image"].dims for warmup in read.model_warmup] == [[256, 256, 3], [512, 512, 3]]
    (group,) = read.instance_group
    assert group.count * int(read.parameters["intra_op_thread_count"].string_value) == 4


def test_what_a_model_does_not_take_is_not_warmed_up() -> None:
    """A backend refuses what is beyond the limits, and a model whose warm-up fails is not served."""
    small = config(replace(SERVING, maximum_pixels=300 * 300))
    assert [list(warmup.inputs["image"].dims) for warmup in small.model_warmup] == [[256, 256, 3]]


def test_the_config_of_every_kind_of_model_has_its_tensors() -> None:
    for name, make in MODELS.items():
        model = make()
        message = config(model=model)
        assert [tensor.name for tensor in message.input] == [spec.name for spec in model.inputs]
        assert message.output[0].name == model.output.name
        for warmup in message.model_warmup:
            assert set(warmup.inputs) == {spec.name for spec in model.inputs}, name
            assert all(side > 0 for tensor in warmup.inputs.values() for side in tensor.dims)
    texture = MODELS["texture"]()
    noise = {
        name: tensor.dims
        for name, tensor in config(ServingOptions((), 1, multiple=16), texture).model_warmup[0].inputs.items()
    }
    assert noise["noise_1"] == [256, 256, 3]
    assert noise["noise_16"] == [16, 16, 3]


def test_the_config_says_what_runs_it() -> None:
    cpu, gpu = config(), config(ServingOptions(("seven",), 4, 2, runtime="gpu"))
    tensorrt = config(ServingOptions(("seven",), 4, runtime="tensorrt", precision="fp16"))
    plan = config(
        ServingOptions(("seven",), 4, runtime="tensorrt", precision="fp16", file="model.plan", profile=PROFILE)
    )
    accelerators = [message.optimization.execution_accelerators for message in (cpu, gpu, tensorrt, plan)]
    assert [accelerator.name for accelerator in accelerators[0].cpu_execution_accelerator] == ["openvino"]
    assert [accelerator.name for accelerator in accelerators[1].gpu_execution_accelerator] == ["cuda"]
    assert accelerators[2].gpu_execution_accelerator[0].parameters["precision_mode"] == "FP16"
    assert not accelerators[3].gpu_execution_accelerator
    assert (plan.backend, plan.max_batch_size) == ("tensorrt", 4)
    kinds = model_config_pb2.ModelInstanceGroup
    assert [message.instance_group[0].kind for message in (cpu, gpu)] == [kinds.KIND_CPU, kinds.KIND_GPU]
    assert gpu.instance_group[0].count == 2
    assert [message.HasField("dynamic_batching") for message in (cpu, gpu, tensorrt, plan)] == [
        False,
        False,
        True,
        True,
    ]
    searches = [message.parameters["cudnn_conv_algo_search"].string_value for message in (gpu, tensorrt)]
    assert searches == ["1", "1"]  # heuristic, as the stock backend counts
    assert "cudnn_conv_algo_search" not in (*cpu.parameters, *plan.parameters)


def test_a_server_without_openvino_gets_a_config_without_it() -> None:
    """NVIDIA's backend for Arm and RHEL refuses a model whose config names the accelerator."""
    with_it, without = config(), config(replace(SERVING, provider="cpu"))
    assert with_it.HasField("optimization")
    assert not without.HasField("optimization")
    with_it.ClearField("optimization")
    assert with_it == without


def test_a_model_for_a_cpu_takes_images_from_one_pixel_up() -> None:
    assert config().parameters["min_side"].string_value == "1"


def test_a_plan_says_what_it_takes() -> None:
    """To clients and to both servers: the limits of its profile, and the profile itself."""
    message = config(
        ServingOptions(("seven",), 4, runtime="tensorrt", precision="fp16", file="model.plan", profile=PROFILE)
    )
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    assert parameters == {
        "styles": "seven",
        "min_side": "32",
        "max_side": "400",
        "max_pixels": "120000",
        "precision": "fp16",
        "profile": "32x16/64x64/4x300x400",
    }
    assert [list(warmup.inputs["image"].dims) for warmup in message.model_warmup] == [[256, 256, 3]]


def test_onnx_runtimes_tensorrt_provider_gets_the_shapes_of_every_input() -> None:
    """Or it builds an engine for every new size, in the server."""
    serving = ServingOptions(("a", "b", "c"), 4, runtime="tensorrt", profile=PROFILE)
    message = config(serving, MODELS["several"]())
    (accelerator,) = message.optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP32",
        "trt_engine_cache_enable": "true",
        "trt_profile_min_shapes": "image:1x32x16x3,style_weights:1x3",
        "trt_profile_opt_shapes": "image:1x64x64x3,style_weights:1x3",
        "trt_profile_max_shapes": "image:4x300x400x3,style_weights:4x3",
    }
    assert (message.backend, message.max_batch_size) == ("onnxruntime", 4)


@pytest.mark.parametrize(("cores", "instances", "threads"), [(8, 1, 8), (8, 2, 4), (1, 3, 1)])
def test_instances_times_threads_are_the_cores(cores: int, instances: int, threads: int) -> None:
    assert ServingOptions((), cores, instances).threads == threads


def test_versions_go_up_and_nothing_else_is_left(tmp_path: Path) -> None:
    folders = [publish(tmp_path) for _ in range(3)]
    assert [folder.name for folder in folders] == ["1", "2", "3"]
    shutil.rmtree(folders[1])
    assert publish(tmp_path).name == "4"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["repo"]
    assert sorted(path.name for path in folders[0].parent.iterdir()) == ["1", "3", "4", "config.pbtxt"]


@pytest.mark.parametrize(("keep", "left"), [(0, [5]), (2, [3, 4, 5]), (9, [1, 2, 3, 4, 5]), (None, [1, 2, 3, 4, 5])])
def test_so_many_older_versions_are_kept(tmp_path: Path, keep: int | None, left: list[int]) -> None:
    for _ in range(4):
        publish(tmp_path)
    folder = publish(tmp_path, keep=keep)
    assert versions(folder.parent) == left
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["repo"]


def test_a_config_that_does_not_change_is_not_written(tmp_path: Path) -> None:
    """A polling Triton would reload what it serves."""
    file = publish(tmp_path).parent / "config.pbtxt"
    before = file.stat()
    publish(tmp_path)
    after = file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_full_disk_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", disk_full)
    with pytest.raises(ExportError, match="No space left"):
        publish(tmp_path)
    assert not list((tmp_path / "in" / "repo").iterdir())
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["repo"]


def test_a_file_in_the_repositorys_place(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "repo").write_text("a file")
    with pytest.raises(ExportError, match="cannot publish seven"):
        publish(tmp_path)


@pytest.mark.parametrize(
    "name", ["", "a/b", "../up", "with space", ".hidden", "-r", "möwe", "x$(id)", "a'b", 'a"b', "a\n", "a;b", "é\udce9"]
)
def test_names_that_triton_would_not_take(name: str) -> None:
    with pytest.raises(ExportError, match="not a valid model name") as error:
        check_names(name, ())
    assert "--name" in str(error.value) and str(error.value).isascii() and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a", "_a", "7", "starry-night.fast_2", "A" * 100])
def test_names_that_triton_takes(name: str) -> None:
    check_names(name, ())


def test_names_of_styles_that_a_client_could_not_write() -> None:
    with pytest.raises(ExportError, match="not a valid style name"):
        check_names("many", ("a", "b:c"))
    for style in ("", " ", "a\nb", "a\x1bb"):
        with pytest.raises(ExportError, match="not a valid style name"):
            check_names("many", ("a", style))
    check_names("many", ("die große Welle", "a-b_c"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path)

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ExportError, match=r"cannot publish seven in .*: No space left on device$"):
        publish(tmp_path)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["repo"]
    assert sorted(path.name for path in (tmp_path / "in" / "repo" / "seven").iterdir()) == ["1", "config.pbtxt"]


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no file system of its own at hand")
def test_a_repository_that_is_a_file_system_of_its_own(tmp_path: Path) -> None:
    """Such as a container's volume: nothing is renamed into it from beside."""
    volume, name = Path("/dev/shm"), f"nst-{secrets.token_hex(8)}"
    (tmp_path / "file").write_bytes(b"a model")
    try:
        for version in ("1", "2"):
            folder = publish_version({"model.onnx": tmp_path / "file"}, name, volume, config())
            assert folder == volume / name / version
            assert (folder / "model.onnx").read_bytes() == b"a model"
        assert not list(volume.glob(".shm-*"))
    finally:
        shutil.rmtree(volume / name, ignore_errors=True)
