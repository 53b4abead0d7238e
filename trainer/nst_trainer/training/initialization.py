"""The start of a training: the names of its styles, its network and its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nst_core.errors import InputError
from nst_trainer.checkpoint import Checkpoint, load
from nst_trainer.networks import ARCHITECTURES, Johnson, StyledNetwork
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.soap import soap
from nst_trainer.training.state import TrainingState
from nst_trainer.training.validation import noise_generator


def style_names(styles: Sequence[Path], output: Path, extended: Checkpoint | None) -> tuple[str, ...]:
    """Name the styles: a single style after the checkpoint `output`, several after their images.

    The styles of an `extended` checkpoint come first.
    """
    new = [output.stem] if len(styles) == 1 and not extended else [style.stem for style in styles]
    names = (*(extended.styles if extended else ()), *new)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two styles would be named {', '.join(twice)}; rename one of the style images")
    return names


def load_teacher(path: Path, settings: TrainingSettings, styles: int, device: torch.device) -> StyledNetwork:
    """Load the teacher; raises `InputError` if it cannot teach a network of `styles` styles with these settings."""
    network: StyledNetwork = load(path).network
    if network.styles != styles or network.arguments.get("texture"):
        if network.arguments.get("texture"):
            raise InputError(f"--teacher {path} is a texture network; give a checkpoint that stylizes images")
        raise InputError(
            f"--teacher {path} has {network.styles} styles and the new network {styles}; give a checkpoint of the same "
            "styles"
        )
    if settings.texture or settings.crop_at(0) == settings.crop:
        raise InputError("--teacher needs small crops of photographs; leave out --texture and --no-grow")
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return,call-overload]


def initial_state(
    settings: TrainingSettings, styles: int, device: torch.device, extended: Checkpoint | None, start: Path | None
) -> TrainingState:
    """Create a network of `styles` styles and its optimiser.

    Of an `extended` network only the normalisations are trained. A new network takes the weights of the checkpoint
    `start`, if given, and what the settings leave open (of Johnson's network the number of blocks, say). Raises
    `InputError` if it has another architecture, width or `texture`.
    """
    with torch.random.fork_rng(devices=[]):  # draws on the CPU, and leaves the caller's generator unchanged
        torch.default_generator.manual_seed(settings.seed)
        if extended:
            network = extended.network.with_styles(styles - extended.network.styles)
        else:
            other = load(start).network if start else None
            network = _new_network(settings, styles, other)
            if other:
                _take_weights(network, other, f"--from {start}")
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if extended:
        network.requires_grad_(False)
        for norm in network.norms():
            norm.requires_grad_(True)
    return TrainingState(network, soap(network, settings.learning_rate))


def _new_network(settings: TrainingSettings, styles: int, other: StyledNetwork | None) -> StyledNetwork:
    arguments = other.arguments if other and other.name == settings.arch else {}
    chosen: dict[str, Any] = {"width": settings.width, "styles": styles}
    if settings.arch == "ulyanov":
        chosen["texture"] = settings.texture
    return ARCHITECTURES[settings.arch](**(arguments | chosen))


def _take_weights(network: StyledNetwork, other: StyledNetwork, named: str) -> None:
    """Copy the weights of another network; with another number of styles, each starts as their mean.

    Johnson's network may be wider than the other. Errors call the other `named`.
    """
    width = network.arguments["width"]
    if isinstance(other, Johnson) and isinstance(network, Johnson) and width > other.arguments["width"]:
        other = other.widened(width, noise_generator(0))
    if other.arguments | {"styles": network.styles} != network.arguments:
        raise InputError(
            f"{named} has {_shown(other)}, this training {_shown(network)}; leave out --arch, --width and "
            "--texture (of johnson, a larger --width works too)"
        )
    if other.styles != network.styles:
        for norm in other.norms():
            norm.weight.data = norm.weight.mean(dim=0).expand(network.styles, -1)
            norm.bias.data = norm.bias.mean(dim=0).expand(network.styles, -1)
    network.load_state_dict(other.state_dict())


def _shown(network: StyledNetwork) -> str:
    return f"{network.name} of " + ", ".join(f"{name} {value}" for name, value in network.arguments.items())
