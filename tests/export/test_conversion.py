from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from nst_export.errors import ExportError
from nst_export.graph.conversion import input_specs, output_spec
from nst_export.modules import ServedModel
from nst_export.verification.examples import photograph_batches
from nst_export.verification.pytorch import check_contract
from nst_trainer.networks import StyledNetwork

from .conftest import MODELS, Exported

Exports = Callable[[str], Exported]


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 17, 19), (2, 33, 64)])
def test_any_size_keeps_its_size(shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    stylized = MODELS["johnson"]()(images)
    assert stylized.dtype == torch.uint8
    assert stylized.shape == images.shape


def test_pixels_are_rounded_not_cut() -> None:
    """With a network that changes nothing, every value comes back as it went in."""

    class Same(StyledNetwork):
        multiple, min_side = 4, 16

        def forward(self, images: torch.Tensor, *rest: object) -> torch.Tensor:
            return images

    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(ServedModel(Same(styles=1))(values), values)


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_what_the_contract_says(exported: Exports, name: str) -> None:
    model = exported(name)
    proto = onnx.load(model.path)
    check_contract(proto, model.module)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    assert proto.ir_version == 9
    assert {entry.key for entry in proto.metadata_props} == {"styles", "multiple"}


def test_images_are_bytes_of_any_size_and_styles_are_weights(exported: Exports) -> None:
    proto = onnx.load(exported("several").path)
    assert [spec.shown() for spec in input_specs(proto)] == [
        "image uint8 [N,H,W,3]",
        "style_weights float32 [N,3]",
    ]
    assert output_spec(proto).shown() == "stylized uint8 [N,H,W,3]"


def test_another_name_or_axis_is_refused(exported: Exports) -> None:
    model = exported("johnson")
    proto = onnx.load(model.path)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 256
    with pytest.raises(ExportError, match=r"stylized uint8 \[N,256,W,3\] instead of"):
        check_contract(proto, model.module)


def test_the_file_tells_nothing_of_the_machine(exported: Exports) -> None:
    content = exported("johnson").path.read_bytes()
    for secret in (str(Path.cwd()), str(Path.home()), "site-packages"):
        assert secret.encode() not in content


def test_weights_are_normalized_and_clamped_at_zero(exported: Exports) -> None:
    (pixels,) = photograph_batches([(1, 32, 32)])
    image = torch.from_numpy(pixels)
    scaled, same = (
        exported("several").module(image, torch.tensor([row])) for row in ([0.2, 0.6, 0.0], [1.0, 3.0, -5.0])
    )
    assert torch.equal(same, scaled)
