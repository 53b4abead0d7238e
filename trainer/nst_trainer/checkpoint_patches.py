"""Convert files of older versions: one function for each change of the format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

RENAMED_SETTINGS = {"steady": "temporal_weight", "style_pictures": "style_images"}
RENAMED_LOSS_TERMS = {"lattice": "checkerboard", "frame": "border", "steady": "temporal", "taught": "distillation"}


def add_style_axis(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of `nst-style/1`, which has one style: normalisations `[C]` become `[S, C]`."""
    return {key: tensor[None] if ".norm." in key else tensor for key, tensor in state.items()}


def rename_settings(training: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the settings and history of a training to their present names, also in nested earlier trainings."""
    return {
        RENAMED_SETTINGS.get(name, name): rename_settings(value) if isinstance(value, Mapping) else value
        for name, value in training.items()
    }


def rename_loss_terms(losses: Mapping[str, float]) -> dict[str, float]:
    """Rename the terms of mean losses to their present names."""
    return {RENAMED_LOSS_TERMS.get(name, name): value for name, value in losses.items()}
