"""The commands, and the whole way of a checkpoint."""

import errno
import json
import os
import platform
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner, Result

from nst_core import devices
from nst_core.devices import Device, Gpu
from nst_core.distribution import install_command
from nst_core.events import EventReader
from nst_core.packages import onnx_runtime
from nst_core.packages.onnx_runtime import import_onnxruntime
from nst_export.checkpoints import find_checkpoints
from nst_export.cli import app
from nst_export.export_plan import ExportPlan, runtime_for
from nst_export.pipeline import export_and_publish
from nst_export.report import read_report
from nst_export.verification.agreement import TOLERANCES, Tolerance
from nst_export.verification.gpu import GPU_TOLERANCES
from nst_trainer.checkpoint import Checkpoint, save
from nst_trainer.networks import Johnson, Ulyanov


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def failed(*arguments: object) -> str:
    """The one line of an error."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def seven(tmp_path: Path, small_checkpoint: Checkpoint) -> Path:
    save(small_checkpoint, tmp_path / "seven.pth")
    return tmp_path / "seven.pth"


def test_a_checkpoint_is_published_with_its_figures(tmp_path: Path, seven: Path) -> None:
    result = run(seven, "-r", tmp_path / "repo", "--cores", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "device cpu: chosen with --device cpu" in result.stderr
    assert "1 of 255" in result.stderr or "0 of 255" in result.stderr
    folder = tmp_path / "repo" / "seven" / "1"
    assert (folder / "model.onnx").stat().st_size > 10_000
    document = json.loads((folder / "verification.json").read_text())
    assert document["schema"] == "nst-verification/3"
    assert document["passed"] is True
    assert document["rewrites"] == {"upsample": 2, "last-convolution": 1, "wrap": 0, "channel-factors": 0}
    assert (document["target"], document["precision"], document["engine"]) == ("onnx", "fp32", None)
    assert len({tuple(check["shape"]) for check in document["checks"]}) >= 5
    for check in document["checks"]:
        assert check["max_difference"] <= 1
        assert check["finite"] is not False
    assert str(tmp_path) not in json.dumps(document)
    shown = run("inspect", tmp_path / "repo", "--size", 128).stdout + run("inspect", tmp_path / "repo").stderr
    for words in ("image uint8 [N,H,W,3]", "GFLOP for 512 x 512", "verified on ONNX Runtime", "upsample 2x", "16 Conv"):
        assert words in shown


def test_several_checkpoints_and_folders(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    for name in ("a", "b"):
        save(small_checkpoint, tmp_path / "folder" / f"{name}.pth")
    save(small_checkpoint, tmp_path / "c.pth")
    (tmp_path / "folder" / "broken.pth").write_text("no checkpoint")
    result = run(tmp_path / "folder", tmp_path / "c.pth", "-r", tmp_path / "repo", "--progress-json", tmp_path / "log")
    assert result.exit_code == 1
    assert "broken.pth: not a PyTorch checkpoint" in result.stderr.replace("\n", " ")
    assert "1 of 4 exports failed" in result.stderr
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == ["a", "b", "c"]
    events = EventReader(tmp_path / "log").read()
    assert events[0]["command"] == "nst export" and events[-1]["message"] == "1 of 4 exports failed"
    assert [event["folder"] for event in events if event["event"] == "published"] == [
        str(tmp_path / "repo" / name / "1") for name in "abc"
    ]
    (refused,) = [event for event in events if event["event"] == "refused"]
    assert refused["checkpoint"].endswith("broken.pth") and "not a PyTorch checkpoint" in refused["message"]
    assert "--name is for a single checkpoint" in failed(tmp_path / "folder", "--name", "x")
    save(small_checkpoint, tmp_path / "a.pth")
    assert "two checkpoints would be served as 'a'" in failed(tmp_path / "folder", tmp_path / "a.pth")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "._a.pth").write_text("left by another system")
    assert "empty has no checkpoint (.pth, .pt, .model)" in failed(tmp_path / "empty")


def test_files_are_called_as_people_call_them(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    """`.model` is of pytorch/examples' trainer; a name that cannot be served is refused before anything is exported."""
    folder = tmp_path / "My Projects" / "mödel 'x' \"$HOME\""
    for called in ("epoch_2.model", "b.pt", "my copy.pth"):
        save(small_checkpoint, folder / called)
    assert [path.name for path in find_checkpoints([folder])] == ["b.pt", "epoch_2.model", "my copy.pth"]
    message = failed(folder / "my copy.pth", "-r", folder / "repo")
    assert "'my copy' is not a valid model name; give one with --name" in message
    assert not (folder / "repo").exists()
    result = run(folder / "my copy.pth", "-r", folder / "repo", "-n", "copy", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert (folder / "repo" / "copy" / "1" / "model.onnx").is_file()


def test_a_path_that_is_not_utf8(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    named = tmp_path / os.fsdecode(b"caf\xe9.pth")
    save(small_checkpoint, tmp_path / "seven.pth")
    (tmp_path / "seven.pth").rename(named)
    assert r"'caf\udce9' is not a valid model name" in failed(named, "-r", tmp_path / "repo")
    (published,) = export_and_publish(named, "cafe", tmp_path / "repo", ExportPlan())
    assert published.verification["checkpoint"]["file"] == "caf?.pth"


def test_a_model_for_servers_without_openvino(tmp_path: Path, seven: Path) -> None:
    """It is checked on what will run it."""
    result = run(seven, "-r", tmp_path / "repo", "--for", "cpu", "--execution-provider", "cpu", "--tiled")
    assert result.exit_code == 0, result.output
    for name in ("seven", "seven_statistics", "seven_tiled"):
        config = (tmp_path / "repo" / name / "config.pbtxt").read_text()
        assert "KIND_CPU" in config and "openvino" not in config and "optimization" not in config
        document = json.loads((tmp_path / "repo" / name / "1" / "verification.json").read_text())
        assert document["execution_provider"] == "cpu"
        assert {check["engine"].removesuffix(", in two parts") for check in document["checks"]} == {"ONNX Runtime"}
    assert "is for a CPU, but the model is for gpu" in failed(seven, "--for", "gpu", "--execution-provider", "openvino")


@pytest.mark.parametrize(
    ("machine", "system", "provider"),
    [
        ("x86_64", "linux", "openvino"),
        ("AMD64", "win32", "openvino"),
        ("aarch64", "linux", "cpu"),
        ("x86_64", "darwin", "cpu"),
    ],
)
def test_the_execution_provider_is_the_machines(
    monkeypatch: pytest.MonkeyPatch, machine: str, system: str, provider: str
) -> None:
    """As the packages of ONNX Runtime are: none of them has OpenVINO on Arm."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system)
    assert ExportPlan().provider == provider


def test_an_engine_that_is_not_here_is_named(tmp_path: Path, seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    messages: list[str] = []
    export_and_publish(seven, "seven", tmp_path / "repo", ExportPlan(provider="openvino"), on_progress=messages.append)
    assert any("seven is verified without OpenVINO, which will serve it" in line for line in messages)


def test_a_full_disk_for_what_is_not_published_yet(
    tmp_path: Path, seven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    message = failed(seven, "-r", tmp_path / "repo", "--for", "cpu")
    assert "No space left on device; set TMPDIR to a folder with more space" in message
    assert not (tmp_path / "repo").exists()


def test_a_damaged_verification_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "repo" / "m" / "1").mkdir(parents=True)
    report = tmp_path / "repo" / "m" / "1" / "verification.json"
    for content in ("{", "[]", "{}"):
        report.write_text(content)
        assert "is damaged, or of another version of nst; export" in failed("inspect", tmp_path / "repo")


OLD_REPORT: dict[str, Any] = {
    "schema": "nst-verification/2",
    "date": "2026-10-05 08:14 UTC",
    "model": "tiny",
    "purpose": "style",
    "checkpoint": {"file": "tiny.pth", "sha256": "0ff2e3d79b5a3b4f"},
    "network": {"name": "johnson", "width": 0.125},
    "styles": ["tiny"],
    "target": "onnx",
    "precision": "fp16",
    "for": "gpu",
    "execution_provider": None,
    "rewrites": {"wrap": 0},
    "engine": {
        "library": None,
        "compute_capabilities": [],
        "profile": "16x16/512x512/4x1920x1920",
        "limits": {"levels": 16, "psnr": 50.0},
        "status": "not run on a GPU: no NVIDIA GPU",
    },
    "versions": {"nst": "0.1.0"},
    "limits": {"levels": 4, "psnr": 45.0},
    "checks": [
        {
            "engine": "ONNX Runtime",
            "shape": [1, 256, 256],
            "maximum": 3,
            "mean": 0.1,
            "quantile": 1.0,
            "psnr": 55.25,
            "finite": True,
            "passed": True,
        }
    ],
    "passed": True,
}
"""As nst export wrote it until schema 3; the earliest checks have no `judged`."""


def test_a_verification_of_schema_2_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "repo" / "tiny" / "1"
    folder.mkdir(parents=True)
    (folder / "verification.json").write_text(json.dumps(OLD_REPORT))
    shown = run("inspect", folder).stderr
    assert (
        "ONNX Runtime: 1 shapes, maximum difference 3 of 255, PSNR at least 55.2 dB (allowed: 4 of 255, 45 dB)" in shown
    )
    document = read_report(folder / "verification.json")
    assert document["schema"] == "nst-verification/3"
    assert document["engine"]["tolerance"] == {"max_difference": 16, "psnr": 50.0}
    assert document["checks"][0]["mean_difference"] == 0.1 and document["checks"][0]["quantile_difference"] == 1.0
    if not devices.gpus()[0]:
        assert "cannot run on this machine: no NVIDIA GPU" in failed("verify", folder)


def test_half_precision_and_tiles(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save(Checkpoint(Johnson(width=0.125, styles=2), ("x", "y")), tmp_path / "two.pth")
    result = run(tmp_path / "two.pth", "-r", tmp_path / "repo", "--precision", "fp16", "--tiled", "--for", "cpu")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == ["two", "two_statistics", "two_tiled"]
    text = (tmp_path / "repo" / "two_tiled" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert {tensor.name for tensor in config.input} == {"image", "statistics", "style_weights"}
    assert config.parameters["overlap"].string_value == "56"
    assert config.parameters["purpose"].string_value == "tiled"
    document = json.loads((tmp_path / "repo" / "two_tiled" / "1" / "verification.json").read_text())
    assert document["tolerance"] == {"max_difference": 4, "psnr": 45.0}
    judged = [check for check in document["checks"] if check["judged"]]
    assert all("in two parts" in check["engine"] for check in document["checks"])
    assert judged and all(check["psnr"] > 45 for check in judged)


def test_a_texture_network_makes_images_from_noise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(Checkpoint(Ulyanov(texture=True), ("t",)), tmp_path / "t.pth")
    result = run(tmp_path / "t.pth", "-r", tmp_path / "repo")
    assert result.exit_code == 0, result.output
    config = text_format.Parse((tmp_path / "repo" / "t" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert [tensor.name for tensor in config.input] == [f"noise_{2**k}" for k in range(5)]
    assert "leave out --tiled" in failed(tmp_path / "t.pth", "--tiled")


def test_engines_for_gpus_that_are_not_here(tmp_path: Path, seven: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    result = run(
        seven,
        "-r",
        tmp_path / "engines",
        "--target",
        "tensorrt-rtx",
        "--compute-capability",
        "8.9",
        "--precision",
        "fp16",
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "engines" / "seven" / "1"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.engine", "reference.onnx", "verification.json"}
    assert not (folder.parent / "config.pbtxt").exists()
    document = json.loads((folder / "verification.json").read_text())
    assert document["engine"]["compute_capabilities"] == ["SM89"]
    assert document["engine"]["library"].startswith("tensorrt-rtx ")
    if not devices.gpus()[0]:
        assert document["engine"]["status"].startswith("built, not run on a GPU: no NVIDIA GPU")
        assert "cannot run on this machine: no NVIDIA GPU" in failed("verify", folder)
        assert "built, not run" in run("inspect", folder).stderr


def test_what_does_not_go_together(tmp_path: Path, seven: Path) -> None:
    assert "--for gpu does not go" in failed(seven, "--target", "tensorrt-rtx", "--for", "gpu")
    assert "without --target tensorrt-rtx" in failed(seven, "--compute-capability", "8.9")
    assert "--rewrites has 'winograd'" in failed(seven, "--rewrites", "upsample,winograd")
    assert "use upsample-3x3 or upsample-windows" in failed(seven, "--for", "tensorrt", "--rewrites", "wrap,upsample")
    assert "--shapes: 'big' is not a shape" in failed(seven, "--shapes", "big")
    assert "--device cpu does not go with --for gpu" in failed(seven, "--device", "cpu", "--for", "gpu")
    assert "--device cpu does not go with --target tensorrt" in failed(seven, "--device", "cpu", "--target", "tensorrt")
    assert "--device gpu does not go with --for cpu" in failed(seven, "--device", "gpu", "--for", "cpu")
    assert "no such model repository" in failed("inspect", tmp_path / "nowhere")
    assert "give a version's folder" in failed("verify", tmp_path)
    (tmp_path / "no.onnx").write_text("nothing")
    assert "is not an ONNX file, or damaged" in failed("inspect", tmp_path / "no.onnx")
    assert "give a version for GPUs" in failed("verify", _published(tmp_path, seven))
    assert "no verification.json of this version of nst" in failed("verify", tmp_path / "repo" / "seven")
    assert not (tmp_path / "engines").exists()


def _published(tmp_path: Path, checkpoint: Path) -> Path:
    assert run(checkpoint, "-r", tmp_path / "repo", "--rewrites", "none", "--for", "cpu").exit_code == 0
    return tmp_path / "repo" / "seven" / "1"


def test_no_plan_where_there_is_no_tensorrt_or_no_gpu(
    tmp_path: Path, seven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([], "no NVIDIA GPU (NVML: not found)"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = failed(seven, "-r", tmp_path / "repo", "--target", "tensorrt")
    assert f"the package tensorrt is not installed; run {install_command('gpu')}" in message
    assert "--for tensorrt: nst serve then builds the plan" in message
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    assert "no NVIDIA GPU (NVML: not found)" in failed(seven, "-r", tmp_path / "repo", "--target", "tensorrt")
    assert "--device gpu: no NVIDIA GPU" in failed(seven, "-r", tmp_path / "repo", "--device", "gpu")
    assert not (tmp_path / "repo").exists()


def test_what_runs_a_model_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu, on_gpu = Device("cpu", "no GPU"), Device("gpu", "a card", Gpu(0, "A", "GPU-0", "8.0", 1, "1", (13, 0)))
    assert runtime_for(on_cpu) == runtime_for(on_cpu, "onnx") == "cpu"
    assert runtime_for(on_gpu) == "tensorrt"
    assert runtime_for(on_gpu, "onnx") == "gpu"
    plans = {runtime: ExportPlan(runtime=runtime) for runtime in ("cpu", "gpu", "tensorrt")}
    assert {name: (plan.resolved_target, plan.resolved_precision) for name, plan in plans.items()} == {
        "cpu": ("onnx", "fp32"),
        "gpu": ("onnx", "fp32"),
        "tensorrt": ("tensorrt", "fp16"),
    }
    assert ExportPlan("onnx", "fp32", "tensorrt").resolved_target == "onnx"
    assert plans["gpu"].tolerance.max_difference == 1
    assert plans["gpu"].gpu_tolerance == GPU_TOLERANCES["fp32"]
    assert plans["tensorrt"].gpu_tolerance == GPU_TOLERANCES["fp16"]


def test_two_packages_of_onnx_runtime_are_one_line(
    tmp_path: Path, seven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "version", lambda name: "1.2.3")
    monkeypatch.setattr(onnx_runtime, "DISTRIBUTIONS", ("onnxruntime", "onnxruntime-gpu"))
    message = failed(seven, "-r", tmp_path / "repo", "--for", "cpu")
    assert "onnxruntime 1.2.3 and onnxruntime-gpu 1.2.3 are installed together" in message
    assert "run pip uninstall -y onnxruntime onnxruntime-gpu, then pip install " in message
    assert not (tmp_path / "repo").exists()


def test_a_model_that_fails_is_not_published(tmp_path: Path, seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate allows nothing at all here, so that rounding is a failure."""
    monkeypatch.setitem(TOLERANCES, "fp32", Tolerance(-1))
    assert "not published" in failed(seven, "-r", tmp_path / "repo", "--tiled")
    assert not (tmp_path / "repo").exists()


def test_bad_checkpoints_give_one_line_and_publish_nothing(tmp_path: Path, seven: Path) -> None:
    whole = seven.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    document = torch.load(seven, weights_only=True)
    variants = {
        "later": document | {"format": "nst-style/9"},
        "strange": document | {"architecture": {"name": "resnet", "arguments": {}}},
        "shapes": document | {"architecture": {"name": "johnson", "arguments": {"width": 0.5}}},
    }
    for name, changed in variants.items():
        torch.save(changed, tmp_path / f"{name}.pth")
    words = {
        "cut": "damaged or truncated",
        "later": "format 'nst-style/9'",
        "strange": "unknown architecture 'resnet'",
        "shapes": "do not fit its architecture",
        "missing": "no such file",
    }
    for name, message in words.items():
        assert message in failed(tmp_path / f"{name}.pth", "-r", tmp_path / "repo")
    assert "not a valid model name" in failed(seven, "-r", tmp_path / "repo", "--name", "a b")
    assert not (tmp_path / "repo").exists()


def test_weights_that_are_not_numbers_are_not_published(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    small_checkpoint.network.last.bias.data[0] = float("nan")
    save(small_checkpoint, tmp_path / "nan.pth")
    assert "not finite; train it again" in failed(tmp_path / "nan.pth", "-r", tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_repository_that_cannot_be_written(tmp_path: Path, seven: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo").chmod(0o500)
    assert "cannot publish seven" in failed(seven, "-r", tmp_path / "repo" / "deeper")
