"""Finding checkpoints, and the modules that a checkpoint is served as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nst_core.errors import InputError
from nst_core.shipped import checkpoint_path
from nst_export.errors import ExportError
from nst_export.modules import Exportable, ServedModel, StatisticsModel, TextureModel, TiledModel
from nst_trainer.checkpoint import Checkpoint

SUFFIXES = (".pth", ".pt", ".model")
"""Of checkpoints in a folder. pytorch/examples' trainer writes `.model`."""


def find_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoints among `paths`, which may be names of shipped styles, and in the folders among them.

    Raises `InputError` for a folder without checkpoints, and for two that would be served by the same name.
    """
    found: list[Path] = []
    for path in map(checkpoint_path, paths):
        inside = _in_folder(path) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: no checkpoint ({', '.join(SUFFIXES)}) in this folder")
        found += inside
    names = [path.stem for path in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two checkpoints would be served as {repeated[0]!a}: export one of them alone with --name")
    return found


def _in_folder(folder: Path) -> list[Path]:
    """Files with a checkpoint's suffix, without hidden files, which other systems leave beside those they copy."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))


def served_modules(checkpoint: Checkpoint, name: str, *, tiled: bool) -> dict[str, Exportable]:
    """The modules that a checkpoint is served as, by the names of their models."""
    network = checkpoint.network
    if network.arguments.get("texture"):
        if tiled:
            raise ExportError(f"{name} makes textures, which tile as they are: leave --tiled out")
        return {name: TextureModel(network)}
    modules: dict[str, Exportable] = {name: ServedModel(network)}
    if tiled:
        modules |= {f"{name}_statistics": StatisticsModel(network), f"{name}_tiled": TiledModel(network)}
    return modules
