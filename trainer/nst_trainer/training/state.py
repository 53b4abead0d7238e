"""The state of a training, in memory and on disk, from which it is resumed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nst_core.errors import InputError
from nst_trainer.checkpoint import read_plain_data
from nst_trainer.checkpoint_patches import rename_loss_terms, rename_settings
from nst_trainer.networks import StyledNetwork
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.soap import Soap

AVERAGED_SHARE = 0.1
"""The share of the iterations so far that the averaged network is a mean of, while the learning rate is high."""


@dataclass
class TrainingState:
    """What changes from one iteration to the next."""

    network: StyledNetwork
    optimizer: Soap
    iteration: int = 0
    distilled_until: int | None = None
    """The first iteration after distillation; None before it."""
    gradient_norm: float | None = None
    """Mean of about the last twenty iterations."""
    averages: dict[str, float] = field(default_factory=dict)
    """Losses by term, means of about the last fifty iterations."""
    best: dict[str, Any] = field(default_factory=dict)
    """Validation losses, iteration and weights of the best network so far."""
    seconds: float = 0.0
    """Time of all iterations, with those of earlier runs."""
    done: float = 0.0
    """The completed share of the training, from 0 to 1; it need not be saved."""
    averaged: StyledNetwork = field(init=False)
    """The exponential mean of the network's weights, which is validated and saved.

    While the learning rate is high its loss is 3 % lower than the network's (dev/LOG.md), so that a training that is
    stopped early leaves a better checkpoint (Polyak and Juditsky 1992, *Acceleration of Stochastic Approximation by
    Averaging*).
    """

    def __post_init__(self) -> None:
        self.averaged = copy.deepcopy(self.network)

    @torch.no_grad()
    def average(self) -> None:
        """Move the averaged network towards the network.

        The mean becomes shorter as the learning rate falls, and is the network itself at the end.
        """
        weight = 1.0 / (1.0 + AVERAGED_SHARE * self.iteration * (1.0 - self.done))
        means: list[Tensor] = []
        learned: list[Tensor] = []
        for mean, values in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            if values.requires_grad:
                means.append(mean)
                learned.append(values)
        torch._foreach_lerp_(means, learned, weight)

    def as_document(self) -> dict[str, Any]:
        """Return plain data from which `restore` continues exactly."""
        return {
            "begun": self.distilled_until,
            "length": self.gradient_norm,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "averages": self.averages,
            "best": self.best,
            "seconds": self.seconds,
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        """Continue from the data of `as_document`."""
        self.network.load_state_dict(document["network"])
        self.averaged.load_state_dict(document["averaged"])
        self.optimizer.load_state_dict(document["optimizer"])
        self.iteration, self.best = document["iteration"], document["best"]
        self.averages = rename_loss_terms(document["averages"])
        self.seconds = document.get("seconds", 0.0)  # this and the next two are missing in files of earlier versions
        self.distilled_until, self.gradient_norm = document.get("begun"), document.get("length")


def read_state(file: Path, settings: TrainingSettings, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read a saved training; raises `InputError` if its settings or `identity` differ.

    The learning rate may differ, since a training whose loss is not finite needs a lower value. With `--minutes`, the
    saved plan (iterations, crops) is kept.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file, so there is nothing to resume; start without --resume")
    document: dict[str, Any] = read_plain_data(file)
    document["settings"] = rename_settings(document["settings"])
    now = asdict(settings) | dict(identity)
    before = document["settings"] | {key: document.get(key) for key in identity}
    free = ("learning_rate", "iterations", "crop") if identity["minutes"] else ("learning_rate",)
    if changed := [key for key in now if now[key] != before.get(key) and key not in free]:
        differences = ", ".join(f"{key} was {before.get(key)}, is {now[key]}" for key in changed)
        raise InputError(
            f"{file} was started with other settings ({differences}); repeat its command with --resume, or remove it"
        )
    return document
