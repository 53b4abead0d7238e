"""Images of every size from one pixel up, in one session as NVIDIA's backend has it: an error there stays in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from nst_export.graph.conversion import write_onnx
from nst_export.graph.half_precision import to_half
from nst_export.graph.rewrites import DEFAULT_REWRITES, apply_rewrites
from nst_export.modules import to_values
from nst_export.verification.agreement import Feeds
from nst_export.verification.cpu import installed_providers, open_session

from .conftest import MODELS, Exported, fast, ulyanov

Exports = Callable[[str], Exported]

SIZES = [
    *((64, 80), (3, 3), (64, 80), (64, 80), (1, 1), (1, 1), (64, 80), (4, 4), (3, 64), (64, 80), (1, 7), (7, 1)),
    *((15, 15), (16, 16), (17, 19), (63, 65), (64, 80)),
]


def session(model: Exported, provider: str, tmp_path: Path, *, half: bool = False) -> Any:
    proto = onnx.load(model.path)
    apply_rewrites(proto, DEFAULT_REWRITES["cpu"])
    if half:
        to_half(proto)
    write_onnx(proto, tmp_path / "model.onnx", {})
    return open_session(tmp_path / "model.onnx", provider)


def feeds(running: Any, height: int, width: int) -> Feeds:
    random = np.random.default_rng(height * width)
    return {
        tensor.name: random.integers(0, 256, (1, height, width, 3), np.uint8)
        if tensor.name == "image"
        else random.random((1, tensor.shape[1]), np.float32)
        for tensor in running.get_inputs()
    }


@pytest.mark.parametrize("provider", installed_providers().values())
@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("johnson", False),
        ("fast", True),
        ("several", False),
        ("ulyanov", False),
        ("statistics", False),
        ("tiled", True),
    ],
)
def test_every_size_from_one_pixel_up(exported: Exports, tmp_path: Path, name: str, half: bool, provider: str) -> None:
    running = session(exported(name), provider, tmp_path, half=half)
    for size in SIZES:
        (answer,) = running.run(None, feeds(running, *size))
        assert answer.shape[1:-1] == (size if name != "statistics" else ())
        assert np.isfinite(answer).all()


@pytest.mark.parametrize("provider", installed_providers().values())
def test_an_image_without_pixels_fails_alone(exported: Exports, tmp_path: Path, provider: str) -> None:
    running = session(exported("fast"), provider, tmp_path)
    for size in ((64, 80), (0, 5), (64, 80), (0, 0), (16, 16)):
        if 0 in size:
            with pytest.raises(Exception, match=r"non-zero|Non-zero|value of 0"):
                running.run(None, feeds(running, *size))
        else:
            running.run(None, feeds(running, *size))


@pytest.mark.parametrize("provider", installed_providers().values())
def test_noise_that_does_not_fit_together_harms_nobody(exported: Exports, tmp_path: Path, provider: str) -> None:
    """The coarsest determines the size of the texture, also for a single position on its grid."""
    running = session(exported("texture"), provider, tmp_path)

    def noise(rows: int, columns: int, **other: tuple[int, int]) -> Feeds:
        random = np.random.default_rng(rows)
        sides = {f"noise_{k}": (16 * rows // k, 16 * columns // k) for k in (1, 2, 4, 8, 16)} | other
        return {name: random.random((1, *side, 3), np.float32) - 0.5 for name, side in sides.items()}

    for rows, columns, other in (
        (4, 4, {}),
        (4, 4, {"noise_1": (64, 80)}),
        (2, 2, {}),
        (4, 4, {"noise_2": (33, 1)}),
        (4, 4, {}),
        (1, 1, {}),
        (1, 2, {}),
    ):
        (answer,) = running.run(None, noise(rows, columns, **other))
        assert answer.shape == (1, 16 * rows, 16 * columns, 3)


@pytest.mark.parametrize("network", [fast(), ulyanov(texture=False)], ids=["fast", "ulyanov"])
def test_images_that_are_large_enough_are_padded_as_ever(network: Any) -> None:
    """To the next multiples, by reflection, bit-identical."""
    side, multiple = network.min_side, network.multiple
    for height, width in ((side, side), (side + 1, side + 3), (side, 2 * side - 1), (3 * side + 5, side)):
        image = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
        plain = image.float().permute(0, 3, 1, 2) / 255.0
        padded = F.pad(plain, (0, -width % multiple, 0, -height % multiple), mode="reflect")
        assert torch.equal(to_values(image, network), padded)


def test_a_small_image_gives_its_own_colors(exported: Exports) -> None:
    """One pixel, and a column of two colors: the padding repeats the edge and is cropped again."""
    for image in (torch.full((1, 1, 1, 3), 200, dtype=torch.uint8), torch.tensor([[[[9, 9, 9]], [[250, 0, 0]]]])):
        values = to_values(image.to(torch.uint8), fast())
        assert values.shape == (1, 3, 16, 16)
        assert set(values.flatten(2).permute(0, 2, 1).unique(dim=1).mul(255).round().flatten().tolist()) == set(
            image.flatten().tolist()
        )
        assert MODELS["fast"]()(image.to(torch.uint8)).shape == image.shape


@pytest.mark.parametrize("name", ["johnson", "several", "statistics", "tiled"])
def test_it_costs_one_copy_of_the_image(exported: Exports, name: str) -> None:
    """Of nodes that touch the image: two pads instead of one, and the rest is arithmetic on sides."""
    operators = [node.op_type for node in onnx.load(exported(name).path).graph.node]
    assert "If" not in operators and "Loop" not in operators and "Mod" not in operators
    modes = [
        attribute.s
        for node in onnx.load(exported(name).path).graph.node
        if node.op_type == "Pad"
        for attribute in node.attribute
        if attribute.name == "mode"
    ]
    assert modes.count(b"edge") == 1
