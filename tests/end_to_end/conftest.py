"""Models that several modules serve."""

import pytest
import torch

from nst_export.checkpoints import served_modules
from nst_export.graph.conversion import export_onnx
from nst_export.modules import ServedModel, TiledModel
from nst_export.repository.model_config import MAXIMUM_PIXELS, ServingOptions, model_config
from nst_export.repository.publishing import publish_version
from nst_trainer.checkpoint import Checkpoint, frozen
from nst_trainer.networks import Johnson

from .serving import Models

LIMIT = 60_000
"""Pixels that the models take here, so that a picture of 520x390 goes by tiles."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """What the modules share that only call models, since an export takes its time; who changes one takes a copy.

    Published without the gate, whose checks have tests of their own and take their time too.
    """
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    large, one = frozen(Johnson(width=0.125, styles=2)), frozen(Johnson(width=0.125))
    served = served_modules(Checkpoint(large, ("a", "b")), "large", tiled=True) | {"one": ServedModel(one)}
    for name, model in served.items():
        export_onnx(model, folder / f"{name}.onnx", {})
        parameters = {"multiple": "4", "purpose": model.purpose}
        if isinstance(model, TiledModel):
            parameters["overlap"] = str(model.overlap)
        styles = ("one",) if name == "one" else ("a", "b")
        limit = MAXIMUM_PIXELS if name in ("one", "large_statistics") else LIMIT
        serving = ServingOptions(styles, cores=2, maximum_pixels=limit, parameters=parameters)
        message = model_config(name, model.inputs, model.output, serving)
        del message.model_warmup[:]  # its pictures are over the limit
        publish_version({"model.onnx": folder / f"{name}.onnx"}, name, folder / "repository", message)
    return Models(folder / "repository", served)
