"""The folder of somebody who reads the pages: small files by the names that the commands have."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from nst_core.images import open_image, sample_photographs
from nst_export.checkpoints import served_modules
from nst_export.graph.conversion import export_onnx
from nst_export.repository.model_config import ServingOptions, model_config
from nst_export.repository.publishing import publish_version
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Fast, StyledNetwork, Ulyanov

from ..apps.clips import clip, panned
from ..end_to_end.serving import certificate
from .pages import ROOT, shipped_styles

IMAGES = (
    "photograph",
    "photo",
    "painting",
    "woodcut",
    "bricks",
    "one",
    "other",
    "new",
    "starry_night",
    "rocket",
    "sail",
)
FOLDERS = {
    "photographs": ("astronaut", "chelsea", "coffee", "rocket"),
    "holiday": ("beach", "north/harbour"),
    "paintings": ("starry_night", "great_wave", "composition_vii", "the_scream", "adele_bloch_bauer", "water_lilies"),
    "textures": ("strawberries", "gravel_gray"),
}


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    furnish(folder)
    publish(folder)
    return folder


def network(styles: tuple[str, ...], kind: type[StyledNetwork] = Fast, **options: object) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(frozen(kind(width=0.125, styles=len(styles), **options)), styles)


def furnish(folder: Path) -> None:
    """What the pages name: small images, videos, networks with the styles that ship, results."""
    small = Image.fromarray(open_image(sample_photographs()[1], max_side=96).pixels)
    names = [*IMAGES, *(f"{name}/{image}" for name, images in FOLDERS.items() for image in images)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small.save(folder / f"{name}.jpg")
    for mask in (ROOT / "docs" / "pictures" / "optimization").glob("mask-*.png"):
        shutil.copy(mask, folder)
    for name in ("sail", "rocket"):
        clip(folder / f"{name}.mp4", panned(20, 64, 48), sound=True)
    for name, styles in shipped_styles().items():
        kind: type[StyledNetwork] = Ulyanov if name in ("gravel", "strawberries") else Fast
        more = {"texture": True} if kind is Ulyanov else {}
        save(network(styles, kind, **more), folder / "models" / f"{name}.pth")
    shutil.copy(folder / "models" / "gravel.pth", folder / "texture.pth")
    shutil.copy(folder / "models" / "starry-night-fast.pth", folder / "slow.pth")
    for name in ("results/before", "results/after", "before/a", "after/a", "results/serving", "A", "B"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "docs" / "benchmark" / "results.json", folder / f"{name}.json")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    chain, _ = certificate(folder)
    for name in ("ca.pem", "tls.crt"):
        shutil.copy(chain, folder / name)
    (folder / "token").write_text("sesame")


def publish(folder: Path) -> None:
    """The styles of the pages, without the gate, whose checks take their time and have their own tests."""
    for name in ("starry-night-fast", "starry-night-steady", "gallery"):
        styles = shipped_styles()[name]
        (model,) = served_modules(network(styles), name, tiled=False).values()
        export_onnx(model, folder / f"{name}.onnx", {})
        message = model_config(name, model.inputs, model.output, ServingOptions(styles, cores=2))
        publish_version({"model.onnx": folder / f"{name}.onnx"}, name, folder / "model_repository", message)
    (folder / "repository").symlink_to("model_repository")
