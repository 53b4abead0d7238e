"""What ships is right in the ways that can be measured; the eye has looked at the rest."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nst_core.images import fitted, open_picture
from nst_export.served import ServedModel
from nst_trainer.checkpoint import load
from nst_trainer.losses import lattice

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.pth"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_no_lattice_and_no_frame(path: Path, photographs: dict[str, Path]) -> None:
    """On photographs that it never saw, in levels of 255: at most 1 of lattice, 10 of border."""
    model = ServedModel(load(path).network)
    for photograph in photographs.values():
        photo = fitted(open_picture(photograph), 384, 288).pixels
        with torch.no_grad():
            painted = model(torch.from_numpy(photo[None]))
        repeated = 255 * lattice(painted.permute(0, 3, 1, 2) / 255.0).sqrt().item()
        assert repeated <= 1.0, photograph.name
        pixels = painted[0].numpy().astype(float)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean()
        inside = np.concatenate(
            [pixels[16, 16:-16], pixels[-17, 16:-16], pixels[16:-16, 16], pixels[16:-16, -17]]
        ).mean()
        assert abs(border - inside) <= 10.0, photograph.name


def test_a_style_ships() -> None:
    assert [path.stem for path in MODELS] == ["starry-night"]
