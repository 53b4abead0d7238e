from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nst_core.images import fit, open_image, sample_photographs
from nst_export.graph.conversion import export_onnx
from nst_export.modules import ServedModel, StatisticsModel, TiledModel
from nst_export.verification.agreement import TOLERANCES
from nst_export.verification.cpu import open_session, tiled_engines
from nst_export.verification.pytorch import verify
from nst_trainer.networks import StyledNetwork

from .conftest import Exported, johnson, ulyanov

Exports = Callable[[str], Exported]


def joined(stylize: Callable[[np.ndarray], np.ndarray], content: np.ndarray, core: int, overlap: int) -> np.ndarray:
    """`content` `[1, H, W, 3]` stylized in squares of `core` pixels, each seen with `overlap` pixels around it."""
    result = np.zeros_like(content)
    height, width = content.shape[1:3]
    for top in range(0, height, core):
        for left in range(0, width, core):
            above, before = min(top, overlap), min(left, overlap)
            seen = content[:, top - above : top + core + overlap, left - before : left + core + overlap]
            stylized = stylize(np.ascontiguousarray(seen))
            inside = stylized[:, above : above + core, before : before + core]
            result[:, top : top + core, left : left + core] = inside
    return result


def test_joined_tiles_are_the_image_stylized_in_a_single_pass(exported: Exports) -> None:
    """The exported pair: statistics from a thumbnail, tiles of several sizes, an image of odd sides."""
    content = fit(open_image(sample_photographs()[0]), 410, 301).pixels[None]
    thumbnail = fit(open_image(sample_photographs()[0]), 205, 151).pixels[None]
    first, second = (open_session(exported(name).path, "CPUExecutionProvider") for name in ("statistics", "tiled"))
    weights = np.array([[0.2, 0.8, 0.0]], np.float32)
    (statistics,) = first.run(None, {"image": thumbnail, "style_weights": weights})

    def stylize(pixels: np.ndarray) -> np.ndarray:
        feeds = {"image": pixels, "statistics": statistics, "style_weights": weights}
        return second.run(None, feeds)[0]

    whole = stylize(content)
    overlap = exported("tiled").module.overlap
    for core in (96, 128, 200):
        tiles = joined(stylize, content, core, overlap)
        assert np.abs(tiles.astype(int) - whole).max() <= 1
    seams = joined(stylize, content, 128, 8)  # too little overlap is seen
    assert np.abs(seams.astype(int) - whole).max() > 3


@pytest.mark.parametrize(("network", "overlap"), [(johnson(), 56), (ulyanov(texture=False), 128)])
def test_the_overlap_is_how_far_a_pixel_reaches(network: StyledNetwork, overlap: int) -> None:
    """No pixel as far away as the overlap changes another; some pixel not much nearer does.

    (The farthest ones change less than a double shows.)
    """
    model = TiledModel(network).double()
    assert model.overlap == overlap
    step, side = network.multiple, 2 * overlap + 4 * network.multiple
    side += -side % step
    content = torch.rand(1, 3, network.min_side, side, dtype=torch.float64)
    pixels = (255 * content).round().permute(0, 2, 3, 1).to(torch.uint8)
    statistics = StatisticsModel(network)(pixels).double()
    plain = model.stylize(content, statistics, None)
    middle = side // 2 // step * step
    for distance, reached in ((overlap, False), (overlap - 2 * step, True)):
        changed = []
        for far, near in (
            (slice(middle - distance), slice(middle, None)),
            (slice(middle + distance, None), slice(middle)),
        ):
            other = content.clone()
            other[..., far] = torch.rand_like(other[..., far])
            changed.append(bool((model.stylize(other, statistics, None) != plain)[..., near].any()))
        assert any(changed) is reached


def test_both_parts_with_an_images_own_statistics_are_the_whole_model(exported: Exports) -> None:
    engines = tiled_engines(exported("statistics").path, exported("tiled").path)
    verify(ServedModel(johnson(3)).eval(), engines, TOLERANCES["fp32"])


def test_the_parts_of_a_noise_pyramid_agree_too(tmp_path: Path) -> None:
    network = ulyanov(texture=False)
    export_onnx(StatisticsModel(network), tmp_path / "s.onnx", {})
    export_onnx(TiledModel(network), tmp_path / "t.onnx", {})
    engines = tiled_engines(tmp_path / "s.onnx", tmp_path / "t.onnx")
    verify(ServedModel(network).eval(), engines, TOLERANCES["fp32"])


def test_making_the_parts_leaves_the_network_as_it_was() -> None:
    network = johnson()
    before = [type(module) for module in network.modules()]
    TiledModel(network)
    StatisticsModel(network)
    assert [type(module) for module in network.modules()] == before


def test_an_export_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """Tracing swaps the list in which the normalizations leave their statistics."""
    model = StatisticsModel(johnson()).eval()
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        before = model(image)
        export_onnx(model, tmp_path / "s.onnx", {})
        assert torch.equal(model(image), before)
