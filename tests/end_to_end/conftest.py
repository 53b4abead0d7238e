"""Models that several modules serve."""

import pytest
import torch

from nst_export.checkpoints import served_modules
from nst_export.modules import ServedModel
from nst_export.repository.model_config import MAXIMUM_PIXELS
from nst_trainer.checkpoint import Checkpoint, frozen
from nst_trainer.networks import Johnson

from .serving import Models, publish

LIMIT = 60_000
"""Maximum of pixels here, so that an image of 520x390 goes by tiles."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """What the modules share that only call models, since an export takes its time. To change a model, copy it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    large, single = frozen(Johnson(width=0.125, styles=2)), frozen(Johnson(width=0.125))
    served = served_modules(Checkpoint(large, ("a", "b")), "large", tiled=True) | {"starry": ServedModel(single)}
    for name, model in served.items():
        styles = ("starry",) if name == "starry" else ("a", "b")
        limit = MAXIMUM_PIXELS if name in ("starry", "large_statistics") else LIMIT
        publish(model, name, styles, folder / "repository", maximum_pixels=limit)
    return Models(folder / "repository", served)
