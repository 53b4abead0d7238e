"""Find checkpoints, and the modules that serve a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nst_core.errors import InputError
from nst_core.shipped import checkpoint_path
from nst_export.errors import ExportError
from nst_export.modules import Exportable, ServedModel, StatisticsModel, TextureModel, TiledModel
from nst_trainer.checkpoint import Checkpoint

SUFFIXES = (".pth", ".pt", ".model")
"""Suffixes of checkpoints in a folder; pytorch/examples' trainer writes `.model`."""


def find_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoints in `paths`: files, folders of them, and names of shipped styles.

    Raises `InputError` for a folder without checkpoints, and for two that would be served under the same name.
    """
    found: list[Path] = []
    for path in map(checkpoint_path, paths):
        inside = _in_folder(path) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} has no checkpoint ({', '.join(SUFFIXES)}); train one with nst train")
        found += inside
    names = [path.stem for path in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"two checkpoints would be served as {repeated[0]!a}; export one of them separately with --name"
        )
    return found


def _in_folder(folder: Path) -> list[Path]:
    """Return the files with a checkpoint's suffix, without hidden files, which other systems add when copying."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))


def served_modules(checkpoint: Checkpoint, name: str, *, tiled: bool) -> dict[str, Exportable]:
    """Return the modules that serve a checkpoint, by the names of their models."""
    network = checkpoint.network
    if network.arguments.get("texture"):
        if tiled:
            raise ExportError(f"{name} is a texture network, which makes any size without tiles; leave out --tiled")
        return {name: TextureModel(network)}
    modules: dict[str, Exportable] = {name: ServedModel(network)}
    if tiled:
        modules |= {f"{name}_statistics": StatisticsModel(network), f"{name}_tiled": TiledModel(network)}
    return modules
