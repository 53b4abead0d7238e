import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from nst_export import onnx as exporter
from nst_export import repository, verify
from nst_export.cli import app
from nst_export.repository import Serving
from nst_export.served import ServedModel
from nst_export.verify import ExportError
from nst_trainer.checkpoint import Checkpoint, save
from nst_trainer.networks import Johnson, StyledNetwork, Ulyanov

SERVING = Serving(("seven",), cores=4)


@pytest.fixture(scope="module")
def model() -> ServedModel:
    torch.manual_seed(7)
    return ServedModel(Johnson(width=0.125)).eval()


@pytest.fixture(scope="module")
def exported(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    exporter.export(model, path, {"styles": "seven"})
    return path


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 17, 19), (2, 33, 64)])
def test_any_size_keeps_its_size(model: ServedModel, shape: tuple[int, int, int]) -> None:
    pictures = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    with torch.no_grad():
        painted = model(pictures)
    assert painted.dtype == torch.uint8
    assert painted.shape == pictures.shape


def test_pixels_are_rounded_not_cut() -> None:
    """With a network that changes nothing, every level comes back as it went in."""

    class Same(StyledNetwork):
        multiple, min_side = 4, 16

        def forward(self, pictures: torch.Tensor, *rest: object) -> torch.Tensor:
            return pictures

    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(ServedModel(Same())(levels), levels)


def test_the_file_is_what_the_contract_says(exported: Path) -> None:
    proto = onnx.load(exported)
    (image,), (stylized,) = proto.graph.input, proto.graph.output
    for value, name in ((image, "image"), (stylized, "stylized")):
        assert value.name == name
        assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert axes == ["N", "H", "W", 3]
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    assert proto.ir_version == 9
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"styles": "seven"}


def test_the_file_tells_nothing_of_the_machine(exported: Path) -> None:
    content = exported.read_bytes()
    for secret in (str(Path.cwd()), str(Path.home()), "site-packages"):
        assert secret.encode() not in content


def test_it_agrees_with_pytorch_on_every_shape(model: ServedModel, exported: Path) -> None:
    agreements = verify.verify(model, exported)
    shapes = verify.shapes(model.network)
    assert {one.shape for one in agreements} == set(shapes)
    assert len(shapes) >= 5
    assert (1, 17, 19) in shapes
    assert max(one.maximum for one in agreements) <= 1


def test_the_gate_sees_a_small_error_and_names_all_that_failed(model: ServedModel, exported: Path) -> None:
    """One bias of the last layer off by four levels of 255 (through the tanh: about two)."""
    torch.manual_seed(7)
    other = ServedModel(Johnson(width=0.125)).eval()
    with torch.no_grad():
        other.network.last.bias += 0.02
    with pytest.raises(ExportError) as error:
        verify.verify(other, exported)
    for shape in verify.shapes(model.network):
        assert f"at {shape}: " in str(error.value)
    assert "levels" in str(error.value)


def test_the_gate_sees_a_wrong_shape(exported: Path) -> None:
    with pytest.raises(ExportError, match="answers uint8"):
        verify._compare("an engine", np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 5, 3), np.uint8))


def test_photographs_are_photographs() -> None:
    (batch,) = verify.photographs([(3, 40, 50)])
    assert batch.shape == (3, 40, 50, 3)
    assert batch.std() > 20
    assert not np.array_equal(batch[0], batch[1])


def test_the_config_is_read_back_by_tritons_own_message(exported: Path, tmp_path: Path) -> None:
    folder = repository.publish(exported, "seven", tmp_path / "repo", SERVING)
    text = (folder.parent / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.backend == "onnxruntime"
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[-1, -1, 3]] * 2
    assert config.parameters["styles"].string_value == "seven"
    assert len(config.model_warmup) >= 2
    (group,) = config.instance_group
    assert group.count * int(config.parameters["intra_op_thread_count"].string_value) == 4


@pytest.mark.parametrize(("cores", "instances", "threads"), [(8, 1, 8), (8, 2, 4), (1, 3, 1)])
def test_instances_times_threads_are_the_cores(cores: int, instances: int, threads: int) -> None:
    assert Serving((), cores, instances).threads == threads


def test_versions_go_up_and_nothing_else_is_left(exported: Path, tmp_path: Path) -> None:
    target = tmp_path / "repo"
    versions = [repository.publish(exported, "seven", target, SERVING).name for _ in range(3)]
    assert versions == ["1", "2", "3"]
    shutil.rmtree(target / "seven" / "2")
    assert repository.publish(exported, "seven", target, SERVING).name == "4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repo"]
    assert sorted(path.name for path in (target / "seven").iterdir()) == ["1", "3", "4", "config.pbtxt"]


def test_a_failure_publishes_nothing(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", disk_full)
    with pytest.raises(ExportError, match="No space left"):
        repository.publish(exported, "seven", tmp_path / "repo", SERVING)
    assert not list((tmp_path / "repo").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repo"]


@pytest.mark.parametrize("name", ["", "a/b", "../up", "with space", ".hidden"])
def test_names_that_triton_would_not_take(exported: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="no name for a served model"):
        repository.publish(exported, name, tmp_path / "repo", SERVING)


def test_the_command_publishes_a_checkpoint(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    save(small_checkpoint, tmp_path / "seven.pth")
    result = CliRunner().invoke(app, [str(tmp_path / "seven.pth"), "-r", str(tmp_path / "repo"), "--cores", "2"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "repo" / "seven" / "1" / "model.onnx").stat().st_size > 10_000
    assert "1 of 255" in result.stderr or "0 of 255" in result.stderr


def test_a_model_that_fails_is_not_published(
    tmp_path: Path, small_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate allows nothing at all here, so that rounding is a failure."""
    monkeypatch.setattr(verify, "MAX_LEVELS", -1)
    save(small_checkpoint, tmp_path / "seven.pth")
    result = CliRunner().invoke(app, [str(tmp_path / "seven.pth"), "-r", str(tmp_path / "repo")])
    assert result.exit_code == 1
    assert "Not published" in result.stderr
    assert not (tmp_path / "repo").exists()


def test_a_file_in_the_repositorys_place(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "repo").write_text("a file")
    with pytest.raises(ExportError, match="cannot publish seven"):
        repository.publish(exported, "seven", tmp_path / "repo", SERVING)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServedModel, Path]:
    torch.manual_seed(3)
    network = Johnson(width=0.125, styles=3)
    for norm in network.norms():
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
        torch.nn.init.normal_(norm.bias, 0.0, 0.3)
    path = tmp_path_factory.mktemp("several") / "model.onnx"
    model = ServedModel(network).eval()
    exporter.export(model, path, {"styles": "a,b,c"})
    return model, path


def test_several_styles_are_an_input_of_the_model(several: tuple[ServedModel, Path]) -> None:
    model, path = several
    proto = onnx.load(path)
    image, weights = proto.graph.input
    assert (image.name, weights.name) == ("image", "style_weights")
    assert weights.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [axis.dim_param or axis.dim_value for axis in weights.type.tensor_type.shape.dim] == ["N", 3]
    agreements = verify.verify(model, path)
    assert max(one.maximum for one in agreements) <= 1


def test_every_style_and_mixes_are_compared(several: tuple[ServedModel, Path]) -> None:
    rows = np.concatenate([feeds["style_weights"] for feeds in verify.examples(several[0].network)])
    assert np.array_equal(rows[:3], np.eye(3, dtype=np.float32))
    assert ((rows[3:] > 0).sum(axis=1) == 3).any()


def test_the_gate_sees_styles_that_are_exchanged(several: tuple[ServedModel, Path]) -> None:
    model, path = several
    other = ServedModel(model.network.with_styles(0)).eval()
    for norm in other.network.norms():
        norm.weight.data = norm.weight.data.flip(0)
    with pytest.raises(ExportError, match="differs from PyTorch"):
        verify.verify(other, path)


def test_weights_are_normalised_and_cut_at_zero(several: tuple[ServedModel, Path]) -> None:
    model, _ = several
    (photo,) = verify.photographs([(1, 32, 32)])
    image = torch.from_numpy(photo)
    with torch.no_grad():
        one, same = (model(image, torch.tensor([row])) for row in ([0.2, 0.6, 0.0], [1.0, 3.0, -5.0]))
    assert torch.equal(one, same)


def test_the_config_of_several_styles(several: tuple[ServedModel, Path]) -> None:
    config = repository.config("many", Serving(("a", "b", "c"), cores=2))
    assert [(one.name, list(one.dims)) for one in config.input] == [("image", [-1, -1, 3]), ("style_weights", [3])]
    assert all("style_weights" in warmup.inputs for warmup in config.model_warmup)
    with pytest.raises(ExportError, match="no name for a style"):
        repository.publish(several[1], "many", Path("unused"), Serving(("a", "b:c"), cores=2))


def test_ulyanovs_network_is_served_from_its_own_smallest_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(Checkpoint(Ulyanov(), ("u",)), tmp_path / "u.pth")
    result = CliRunner().invoke(app, [str(tmp_path / "u.pth"), "-r", str(tmp_path / "repo")])
    assert result.exit_code == 0, result.output
    assert "1 x 65 x 67" in result.stderr
    text = (tmp_path / "repo" / "u" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.parameters["min_side"].string_value == "64"


def test_a_texture_network_takes_no_photograph(tmp_path: Path) -> None:
    save(Checkpoint(Ulyanov(texture=True), ("t",)), tmp_path / "t.pth")
    result = CliRunner().invoke(app, [str(tmp_path / "t.pth"), "-r", str(tmp_path / "repo")])
    assert result.exit_code == 1
    assert "makes a texture from noise" in result.stderr
    assert not (tmp_path / "repo").exists()


@pytest.mark.gpu
def test_it_agrees_on_the_gpu(model: ServedModel, exported: Path) -> None:
    """PyTorch on the GPU against the exported file on the CPU: within two levels (TF32 is off)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    torch.backends.cudnn.allow_tf32 = False
    for pictures in verify.photographs(verify.shapes(model.network)):
        with torch.no_grad():
            wanted = model.cuda()(torch.from_numpy(pictures).cuda()).cpu().numpy()
        answer = session.run(None, {"image": pictures})[0]
        assert np.abs(answer.astype(int) - wanted).max() <= 2


def test_agreement_is_plain_data() -> None:
    assert json.loads(json.dumps(verify.Agreement("a", (1, 2, 3), 1, 0.5, None).summary()))["passed"] is True
