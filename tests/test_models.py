"""What ships is right in the ways that can be measured; the eye has looked at the rest."""

from pathlib import Path
from statistics import fmean

import pytest

from nst_bench.suites.quality import border_levels, lattice_levels, painter
from nst_core.images import fitted, open_picture
from nst_trainer.checkpoint import load
from nst_trainer.photos import to_tensor

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.pth"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_no_lattice_and_no_frame(path: Path, photographs: dict[str, Path]) -> None:
    """On photographs that it never saw, in levels of 255: at most 1 of lattice in each, 12 of border on the whole.

    A border is what a style adds to the photographs' own; a painted frame that a network had learned along with its
    painting added several times as much.
    """
    checkpoint = load(path)
    pictures = {name: to_tensor(fitted(open_picture(photograph), 384, 288)) for name, photograph in photographs.items()}
    for style in checkpoint.styles:
        paint = painter(checkpoint, style)
        painted = {name: paint(picture) for name, picture in pictures.items()}
        for name, painting in painted.items():
            assert lattice_levels(painting) <= 1.0, (style, name)
        added = [border_levels(painted[name]) - border_levels(pictures[name]) for name in pictures]
        assert abs(fmean(added)) <= 12.0, (style, added)


def test_the_styles_that_ship() -> None:
    assert {path.stem for path in MODELS} == {"starry-night", "starry-night-fast", "gallery"}
    assert len(load(MODELS[0]).styles) == 10
