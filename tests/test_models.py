"""What ships is right in the ways that can be measured; the eye has looked at the rest."""

from pathlib import Path

import pytest

from nst_bench.suites.quality import border_levels, lattice_levels, painter
from nst_core.images import fitted, open_picture
from nst_trainer.checkpoint import load
from nst_trainer.photos import to_tensor

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.pth"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_no_lattice_and_no_frame(path: Path, photographs: dict[str, Path]) -> None:
    """On photographs that it never saw, in levels of 255: at most 1 of lattice, 10 of border."""
    checkpoint = load(path)
    for style in checkpoint.styles:
        paint = painter(checkpoint, style)
        for photograph in photographs.values():
            painted = paint(to_tensor(fitted(open_picture(photograph), 384, 288)))
            assert lattice_levels(painted) <= 1.0, photograph.name
            assert abs(border_levels(painted)) <= 10.0, photograph.name


def test_a_style_ships() -> None:
    assert {path.stem for path in MODELS} == {"starry-night", "starry-night-wide"}
