"""The commands, and the whole way of a checkpoint."""

import json
import os
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner, Result

from nst_export import verify
from nst_export.cli import app
from nst_export.verify import Limits
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
    result = run(seven, "-r", tmp_path / "repo", "--cores", 2)
    assert result.exit_code == 0, result.output
    assert "1 of 255" in result.stderr or "0 of 255" in result.stderr
    folder = tmp_path / "repo" / "seven" / "1"
    assert (folder / "model.onnx").stat().st_size > 10_000
    document = json.loads((folder / "verification.json").read_text())
    assert document["schema"] == "nst-verification/1"
    assert document["passed"] is True
    assert document["rewrites"] == {"upsample": 2, "last-convolution": 1, "wrap": 0}
    assert len({tuple(one["shape"]) for one in document["checks"]}) >= 5
    for one in document["checks"]:
        assert one["maximum"] <= 1
        assert one["finite"] is not False
    assert str(tmp_path) not in json.dumps(document)
    shown = run("inspect", tmp_path / "repo", "--size", 128).stdout + run("inspect", tmp_path / "repo").stderr
    for words in ("image uint8 [N,H,W,3]", "GFLOP for 512 x 512", "verified on ONNX Runtime", "upsample 2x", "16 Conv"):
        assert words in shown


def test_several_checkpoints_and_folders(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    for name in ("a", "b"):
        save(small_checkpoint, tmp_path / "folder" / f"{name}.pth")
    save(small_checkpoint, tmp_path / "c.pth")
    (tmp_path / "folder" / "broken.pth").write_text("no checkpoint")
    result = run(tmp_path / "folder", tmp_path / "c.pth", "-r", tmp_path / "repo")
    assert result.exit_code == 1
    assert "broken.pth: not a PyTorch checkpoint" in result.stderr.replace("\n", " ")
    assert "1 of 4 failed" in result.stderr
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == ["a", "b", "c"]
    assert "--name is for one" in failed(tmp_path / "folder", "--name", "x")
    save(small_checkpoint, tmp_path / "a.pth")
    assert "two checkpoints would be served as a" in failed(tmp_path / "folder", tmp_path / "a.pth")
    (tmp_path / "empty").mkdir()
    assert "no checkpoint (.pth) in this folder" in failed(tmp_path / "empty")


def test_half_precision_and_tiles(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save(Checkpoint(Johnson(width=0.125, styles=2), ("x", "y")), tmp_path / "two.pth")
    result = run(tmp_path / "two.pth", "-r", tmp_path / "repo", "--precision", "fp16", "--tiled")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == ["two", "two_statistics", "two_tiled"]
    text = (tmp_path / "repo" / "two_tiled" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert {one.name for one in config.input} == {"image", "statistics", "style_weights"}
    assert config.parameters["overlap"].string_value == "56"
    assert config.parameters["purpose"].string_value == "tiled"
    document = json.loads((tmp_path / "repo" / "two_tiled" / "1" / "verification.json").read_text())
    assert document["limits"] == {"levels": 4, "psnr": 45.0}
    assert all("in two parts" in one["engine"] and one["psnr"] > 45 for one in document["checks"])


def test_a_texture_network_makes_pictures_from_noise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(Checkpoint(Ulyanov(texture=True), ("t",)), tmp_path / "t.pth")
    result = run(tmp_path / "t.pth", "-r", tmp_path / "repo")
    assert result.exit_code == 0, result.output
    config = text_format.Parse((tmp_path / "repo" / "t" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert [one.name for one in config.input] == [f"noise_{2**k}" for k in range(5)]
    assert "leave --tiled out" in failed(tmp_path / "t.pth", "--tiled")


def test_ulyanovs_network_is_served_from_its_own_smallest_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(Checkpoint(Ulyanov(), ("u",)), tmp_path / "u.pth")
    result = run(tmp_path / "u.pth", "-r", tmp_path / "repo")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "repo" / "u" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.parameters["min_side"].string_value == "64"


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
    if not torch.cuda.is_available():
        assert document["engine"]["status"] == "built, not run: no GPU on this machine"
        assert "an engine cannot be run here" in failed("verify", folder)
    assert "built, not run" in run("inspect", folder).stderr or torch.cuda.is_available()


def test_what_does_not_go_together(tmp_path: Path, seven: Path) -> None:
    assert "--for gpu does not go" in failed(seven, "--target", "tensorrt-rtx", "--for", "gpu")
    assert "is for --target tensorrt-rtx" in failed(seven, "--compute-capability", "8.9")
    assert "no rewrite is called 'winograd'" in failed(seven, "--rewrites", "upsample,winograd")
    assert "--shapes has 'big'" in failed(seven, "--shapes", "big")
    assert "no such model repository" in failed("inspect", tmp_path / "nowhere")
    assert "give the folder of a version" in failed("verify", tmp_path)
    (tmp_path / "no.onnx").write_text("nothing")
    assert "no ONNX file, or a damaged one" in failed("inspect", tmp_path / "no.onnx")
    assert "nothing to run" in failed("verify", _published(tmp_path, seven))
    assert not (tmp_path / "engines").exists()


def _published(tmp_path: Path, checkpoint: Path) -> Path:
    assert run(checkpoint, "-r", tmp_path / "repo", "--rewrites", "none").exit_code == 0
    return tmp_path / "repo" / "seven" / "1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_engine_for_a_gpu_that_is_not_there(tmp_path: Path, seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    assert "needs the package tensorrt" in failed(seven, "-r", tmp_path / "repo", "--target", "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    assert "here is none that PyTorch sees" in failed(seven, "-r", tmp_path / "repo", "--target", "tensorrt")
    assert not (tmp_path / "repo").exists()


def test_a_model_that_fails_is_not_published(tmp_path: Path, seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate allows nothing at all here, so that rounding is a failure."""
    monkeypatch.setitem(verify.LIMITS, "fp32", Limits(-1))
    assert "Not published" in failed(seven, "-r", tmp_path / "repo", "--tiled")
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
        "shapes": "do not fit the architecture",
        "missing": "no such file",
    }
    for name, said in words.items():
        assert said in failed(tmp_path / f"{name}.pth", "-r", tmp_path / "repo")
    assert "no name for a served model" in failed(seven, "-r", tmp_path / "repo", "--name", "a b")
    assert not (tmp_path / "repo").exists()


def test_weights_that_are_not_numbers_are_not_published(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    small_checkpoint.network.last.bias.data[0] = float("nan")
    save(small_checkpoint, tmp_path / "nan.pth")
    assert "not finite: train it again" in failed(tmp_path / "nan.pth", "-r", tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_repository_that_cannot_be_written(tmp_path: Path, seven: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo").chmod(0o500)
    assert "cannot publish seven" in failed(seven, "-r", tmp_path / "repo" / "deeper")
