"""What ships is right in the ways that can be measured; the eye has looked at the rest."""

import re
from pathlib import Path

import pytest
import torch

from nst_bench.equal_loss import stylizer
from nst_bench.suites.quality import border_artifact, checkerboard_artifact
from nst_core.images import fit, open_image
from nst_trainer.checkpoint import load
from nst_trainer.images import to_tensor

from .docs.pages import card

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.pth"))

TEXTURES = {"strawberries", "gravel"}
OWN = {"composition-vii", "contrast-of-forms", "great-wave", "starry-night", "water-lilies"}
"""Paintings with a fast network of their own."""


@pytest.mark.parametrize("path", [model for model in MODELS if model.stem not in TEXTURES], ids=lambda path: path.stem)
def test_no_checkerboard_and_no_border(path: Path, photographs: dict[str, Path]) -> None:
    """On photographs that it never saw, in levels of 255: at most 1 of checkerboard in each, 10 of border on the whole.

    Its card says how much: the largest checkerboard, the border, and of several styles from which to which. Networks
    that had learned a style image's frame, margin or pale sky added two or three times as much.
    """
    checkpoint = load(path)
    contents = {name: to_tensor(fit(open_image(photograph), 384, 288)) for name, photograph in photographs.items()}
    checkerboards, borders = [], []
    for style in checkpoint.styles:
        stylize = stylizer(checkpoint, style)
        stylized = {name: stylize(content) for name, content in contents.items()}
        checkerboards.append(max(checkerboard_artifact(image) for image in stylized.values()))
        assert checkerboards[-1] <= 1.0, style
        borders.append(border_artifact(stylize, list(contents.values())))
        assert borders[-1] <= 10.0, style
    for row, values, tolerance in (("Checkerboard artifact", checkerboards, 0.02), ("Border artifact", borders, 0.2)):
        text = card(path.stem)[row].replace("\N{MINUS SIGN}", "-")
        said = [float(figure) for figure in re.findall(r"-?[\d.]+", text)]
        assert said == pytest.approx(sorted({min(values), max(values)}), abs=tolerance), row


@pytest.mark.parametrize("path", [model for model in MODELS if model.stem in TEXTURES], ids=lambda path: path.stem)
def test_a_texture_is_one_all_over(path: Path) -> None:
    """The quarters of a sample have about the same colour, and details: neither flat nor an image of something."""
    network = load(path).network
    assert network.arguments["texture"]
    shape = torch.zeros(1, 3, 256, 256)
    sample = network(shape, None, network.draw_noise(shape, torch.Generator().manual_seed(3)))
    quarters = torch.stack([sample[..., a : a + 128, b : b + 128] for a in (0, 128) for b in (0, 128)])
    means = quarters.mean(dim=(3, 4))
    assert float((means - means.mean(dim=0)).abs().max()) < 0.06
    assert float(sample.std()) > 0.1


def test_the_styles_that_ship() -> None:
    own = {f"{name}-fast" for name in OWN}
    johnson = {"starry-night", "udnie-johnson"}
    assert {path.stem for path in MODELS} == {"gallery", "starry-night-steady"} | johnson | own | TEXTURES
    gallery = load(next(path for path in MODELS if path.stem == "gallery"))
    assert len(gallery.styles) == 10
    for path in MODELS:
        if path.stem != "gallery":
            assert load(path).styles == (path.stem,)
