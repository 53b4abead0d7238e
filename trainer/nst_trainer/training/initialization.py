"""What a training begins with: names of its styles, its network, its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nst_core.errors import InputError
from nst_trainer.checkpoint import Checkpoint, load
from nst_trainer.networks import ARCHITECTURES, Johnson, StyledNetwork
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.soap import soap
from nst_trainer.training.state import TrainingState
from nst_trainer.training.validation import noise_generator


def style_names(styles: Sequence[Path], output: Path, extended: Checkpoint | None) -> tuple[str, ...]:
    """What the styles are called: a single style after the checkpoint `output`, several after their images.

    The styles of a checkpoint that is `extended` come first.
    """
    new = [output.stem] if len(styles) == 1 and not extended else [style.stem for style in styles]
    names = (*(extended.styles if extended else ()), *new)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two styles would be called {', '.join(twice)}: rename the image")
    return names


def load_teacher(path: Path, settings: TrainingSettings, styles: int, device: torch.device) -> StyledNetwork:
    """The network of `path`; `InputError` if it cannot teach a network of `styles` styles with these settings."""
    network: StyledNetwork = load(path).network
    if network.styles != styles or network.arguments.get("texture"):
        raise InputError(f"{path} has {network.styles} styles, and the new network has {styles}: it cannot teach them")
    if settings.texture or settings.crop_at(0) == settings.crop:
        raise InputError("a teacher teaches on small crops of photographs: without --texture and --no-grow")
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return,call-overload]


def initial_state(
    settings: TrainingSettings, styles: int, device: torch.device, extended: Checkpoint | None, start: Path | None
) -> TrainingState:
    """A network of `styles` styles and its optimiser.

    A network that is `extended` learns nothing but the normalisations of its new styles; a new network takes the
    weights of the checkpoint `start`, if given.
    """
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU; the host's own draws go on as before
        torch.default_generator.manual_seed(settings.seed)
        if extended:
            network = extended.network.with_styles(styles - extended.network.styles)
        else:
            extra = {"texture": True} if settings.texture else {}
            network = ARCHITECTURES[settings.arch](width=settings.width, styles=styles, **extra)
            if start:
                _take_weights(network, start)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if extended:
        network.requires_grad_(False)
        for norm in network.norms():
            norm.requires_grad_(True)
    return TrainingState(network, soap(network, settings.learning_rate))


def _take_weights(network: StyledNetwork, start: Path) -> None:
    """Take the weights of a checkpoint; with another number of styles, each begins as the mean of its styles.

    Johnson's network may be wider than the checkpoint's.
    """
    other: StyledNetwork = load(start).network
    width = network.arguments["width"]
    if isinstance(other, Johnson) and isinstance(network, Johnson) and width > other.arguments["width"]:
        other = other.widened(width, noise_generator(0))
    if other.arguments | {"styles": network.styles} != network.arguments:
        raise InputError(
            f"{start} has {other.arguments}, this training {network.arguments}: give its --width, or a larger width"
        )
    if other.styles != network.styles:
        for norm in other.norms():
            norm.weight.data = norm.weight.mean(dim=0).expand(network.styles, -1)
            norm.bias.data = norm.bias.mean(dim=0).expand(network.styles, -1)
    network.load_state_dict(other.state_dict())
