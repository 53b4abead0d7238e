"""Checkpoints: a trained network with the names of its styles, its training history and its metrics.

The file is plain data in PyTorch's format and is read with `weights_only=True`, so that opening an untrusted
checkpoint runs no code.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nst_core.errors import InputError
from nst_core.files import atomic_write
from nst_core.shipped import checkpoint_path, suggestion
from nst_trainer.checkpoint_patches import add_style_axis, rename_loss_terms, rename_settings
from nst_trainer.foreign import from_transformer_net, transformer_net
from nst_trainer.networks import ARCHITECTURES, StyledNetwork

log = logging.getLogger(__name__)

FORMAT = "nst-style/2"
READABLE_FORMATS = (FORMAT, "nst-style/1")


class CheckpointError(InputError):
    """A file that is not a checkpoint, is damaged, or would run code."""


@dataclass(frozen=True)
class Checkpoint:
    """A network (FP32, in evaluation mode), the names of its styles, its training history and its metrics."""

    network: StyledNetwork
    styles: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint with FP16 weights (half the size; images differ by at most 1 of 255)."""
    network = checkpoint.network
    document = {
        "format": FORMAT,
        "architecture": {"name": network.name, "arguments": dict(network.arguments)},
        "styles": list(checkpoint.styles),
        "state_dict": {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()},
        "training": checkpoint.training,
        "metrics": checkpoint.metrics,
    }
    save_plain_data(document, path)


def save_plain_data(document: Any, path: Path, *, variable: str = "") -> None:
    """Write `document` with `torch.save`, atomically; raises `WriteError`, which names `variable` if given."""
    data = io.BytesIO()
    torch.save(document, data)  # into a file, its error for a full disk is only "file write failed"
    with atomic_write(path, variable=variable) as beside:
        beside.write_bytes(data.getbuffer())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, or a `TransformerNet` of pytorch/examples; the weights become FP32.

    `path` may be the name of a shipped style, such as `starry-night-fast`. Raises `CheckpointError` for a missing,
    damaged or foreign file, an unknown format or architecture, weights that do not fit it, and a pickle that would run
    code.
    """
    file = checkpoint_path(path)
    if not file.exists() and (hint := suggestion(path)):
        raise CheckpointError(f"{path}: no such file; {hint}")
    document = read_plain_data(file)
    if state := transformer_net(document):
        log.info("%s: a TransformerNet of pytorch/examples", path)
        try:
            return Checkpoint(frozen(from_transformer_net(state)), (_style_name(path),), {"from": path.name})
        except (KeyError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(
                f"{path} is an incomplete or modified TransformerNet ({reason}); save the whole state_dict()"
            ) from error
    version = document.get("format") if isinstance(document, dict) else None
    if version not in READABLE_FORMATS:
        raise CheckpointError(
            f"{path} is not an nst checkpoint (format {version!r}); give a .pth file of nst train (format {FORMAT!r}), "
            "or a state dict of pytorch/examples' TransformerNet"
        )
    try:
        name, arguments = document["architecture"]["name"], document["architecture"]["arguments"]
        if name not in ARCHITECTURES:
            raise CheckpointError(
                f"{path} has the unknown architecture {name!r}; this version of nst has {', '.join(ARCHITECTURES)}"
            )
        network = ARCHITECTURES[name](**arguments)
        state = {key: tensor.float() for key, tensor in document["state_dict"].items()}
        network.load_state_dict(state if version == FORMAT else add_style_axis(state))
        styles = tuple(str(style) for style in document["styles"])
        training = rename_settings(document.get("training", {}))
        metrics = rename_loss_terms(document.get("metrics", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is incomplete or damaged ({type(error).__name__}: {error}); download or train it again"
        ) from error
    except RuntimeError as error:  # load_state_dict's list of keys and shapes that do not fit
        detail = str(error).splitlines()
        raise CheckpointError(f"{path} has weights that do not fit its architecture: {detail[-1].strip()}") from error
    if len(styles) != network.styles:
        raise CheckpointError(f"{path} names {len(styles)} styles, but its network has {network.styles}")
    return Checkpoint(frozen(network), styles, training, metrics)


def _style_name(path: Path) -> str:
    """Return a style name for a file without one; pytorch/examples' names have colons, which separate weights here."""
    return re.sub(r"[^\w.-]+", "-", path.stem)


def frozen(network: StyledNetwork) -> StyledNetwork:
    """Put the network into evaluation mode without gradients, and return it."""
    return network.eval().requires_grad_(False)


def read_plain_data(path: Path) -> Any:
    """Load tensors and plain data with `torch.load`; raises `CheckpointError` for everything else."""
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give a .pth file")
    try:
        with warnings.catch_warnings():  # our error of one line replaces PyTorch's warnings
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        # The unpickler's errors about other kinds of files help nobody.
        raise CheckpointError(f"{path}: {_what_is_there(path) or _what_is_wrong(error)}") from error


def _what_is_wrong(error: Exception) -> str:
    if re.search(r"GLOBAL |Trying to call reduce|Can only (create|build)", str(error)):
        return (
            "refused, since it has Python objects that would run code when opened; save the network's state_dict(), "
            "which has only tensors"
        )
    if "TorchScript" in str(error):
        return "a TorchScript program, not a checkpoint; save the network's state_dict() instead"
    return "not a PyTorch checkpoint, or damaged or truncated; download or copy it again"


def _what_is_there(path: Path) -> str | None:
    """Say what a file is instead of a checkpoint and what to do, for common mistakes; None for others."""
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        return "an empty file; download or copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the checkpoint itself; run: git lfs pull"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), not a checkpoint; download the file itself, not the page about it"
    if len(start) > 8 and start[8:].startswith(b'{"') and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "a safetensors file; convert it with: torch.save(safetensors.torch.load_file(FILE), 'style.pth')"
    if zipfile.is_zipfile(path) and not any(name.endswith("data.pkl") for name in zipfile.ZipFile(path).namelist()):
        inside = [name for name in zipfile.ZipFile(path).namelist() if name.endswith((".pth", ".pt", ".model"))]
        return f"a zip archive, not a checkpoint; unpack it{f' and use {inside[0]}' if inside else ''}"
    return None


def parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
