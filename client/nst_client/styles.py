"""The styles that a server's models offer, and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from nst_client.errors import ServiceError
from nst_client.tiles import Grid
from nst_client.transports.base import ModelConfig, StyleWeights
from nst_core.contract import Parameter, Purpose
from nst_core.errors import InputError
from nst_core.images import DEFAULT_MAX_PIXELS


@dataclass(frozen=True)
class Style:
    """A style that a server offers: its model, and the sizes that the model takes (pixels).

    It is number `index` of the `count` styles of its model. `max_batch` is the maximum of images in a request (0: any
    number), `max_side` the maximum side (None: any). `tiles` is how images beyond `max_pixels` or `max_side` are
    tiled, None where the server cannot stylize them.
    """

    name: str
    model: str
    index: int = 0
    count: int = 1
    min_side: int = 16
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_batch: int = 0
    tiles: Grid | None = None
    max_side: int | None = None

    def takes(self, height: int, width: int) -> bool:
        """Whether the model takes an image of this size, pixels, in one pass; `min_side` aside."""
        return height * width <= self.max_pixels and max(height, width) <= (self.max_side or max(height, width))

    def fitting_scale(self, height: int, width: int) -> float:
        """The factor, at most 1, that shrinks an image of this size to fit into one pass."""
        longer = max(height, width)
        return min(1.0, sqrt(self.max_pixels / (height * width)), (self.max_side or longer) / longer)

    def fitting_side(self, height: int, width: int) -> int:
        """The longer side, pixels, of an image of this size that is shrunk to fit into one pass."""
        return int(max(height, width) * self.fitting_scale(height, width))


def offered_styles(configs: Mapping[str, ModelConfig]) -> tuple[dict[str, Style], dict[str, ServiceError]]:
    """The styles of a server's models, by name, and the errors of configs that cannot be used, by model.

    A model of one style has its own name, the styles of a model of several have theirs, or model/style where another
    has the same name.
    """
    found: dict[str, Style] = {}
    errors: dict[str, ServiceError] = {}
    names_of = {
        model: config.parameters[Parameter.STYLES].split(",")
        for model, config in configs.items()
        if config.parameters.get(Parameter.PURPOSE, Purpose.STYLE) == Purpose.STYLE
        and Parameter.STYLES in config.parameters
    }
    for model, names in sorted(names_of.items(), key=lambda entry: (len(entry[1]) > 1, entry[0])):
        try:
            limits = {key: _limit(configs[model], key) for key in _LIMITS & configs[model].parameters.keys()}
        except ValueError as error:
            errors[model] = ServiceError(f"the config of the model {model} is wrong: {error}")
            continue
        try:
            grid = _grid(model, configs)
        except (KeyError, ValueError) as error:  # the model itself can still be used
            grid, tiled = None, f"{model}_{Purpose.TILED}"
            reason = f"{str(error.args[0])!r} is missing" if isinstance(error, KeyError) else error
            errors[tiled] = ServiceError(f"the config of the model {tiled} is wrong: {reason}")
        for index, own_name in enumerate(names):
            name = own_name if len(names) > 1 else model
            name = f"{model}/{own_name}" if name in found else name
            found[name] = Style(
                name, model, index, len(names), **limits, max_batch=configs[model].max_batch, tiles=grid
            )
    return found, errors


_LIMITS = {str(Parameter.MIN_SIDE), str(Parameter.MAX_PIXELS), str(Parameter.MAX_SIDE)}


def _limit(config: ModelConfig, key: str) -> int:
    value = int(config.parameters[key])
    if value < 1:
        raise ValueError(f"{key} is {value}")
    return value


def statistics_model(style: Style) -> str:
    """The first of the pair of models that `nst-export --tiled` makes."""
    return f"{style.model}_{Purpose.STATISTICS}"


def tiled_model(style: Style) -> str:
    """The second of the pair."""
    return f"{style.model}_{Purpose.TILED}"


def _grid(model: str, configs: Mapping[str, ModelConfig]) -> Grid | None:
    """The tiles for the tiled pair of a model; None if the pair is not there."""
    purposes = (Purpose.STATISTICS, Purpose.TILED)
    pair = [configs.get(f"{model}_{purpose}", ModelConfig()).parameters for purpose in purposes]
    if tuple(parameters.get(Parameter.PURPOSE) for parameters in pair) != purposes:
        return None
    _, tiled = pair
    max_side = int(tiled[Parameter.MAX_SIDE]) if Parameter.MAX_SIDE in tiled else None
    max_pixels = int(tiled.get(Parameter.MAX_PIXELS, DEFAULT_MAX_PIXELS))
    return Grid.fitting(int(tiled[Parameter.MULTIPLE]), int(tiled[Parameter.OVERLAP]), max_pixels, max_side)


def parse_style_weights(text: str) -> dict[str, float]:
    """The weights of `wave:0.7,scream:0.3` by name; a name alone has the weight 1. Raises `InputError`."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, separator, weight = part.strip().rpartition(":")
        try:
            weights[name if separator else weight] = float(weight) if separator else 1.0
        except ValueError:
            raise InputError(f"{part!r} is no style with a weight: name:weight, such as wave:0.7") from None
    return weights


def resolve_style_weights(styles: Sequence[Style], weights: Sequence[float]) -> tuple[Style, StyleWeights | None]:
    """The first of the styles, and the weights `[S]` for all styles of its model; None for a model of one style.

    Raises `InputError` for invalid weights, or styles of several models.
    """
    if not styles or not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise InputError(f"weights of styles are {list(weights)}: give at least one above 0 and none below")
    first = styles[0]
    if others := [style for style in styles if style.model != first.model]:
        raise InputError(
            f"{first.name} is of the model {first.model} and {others[0].name} of {others[0].model}: "
            "only styles of one model can be interpolated"
        )
    if first.count == 1:
        return first, None
    row = np.zeros(first.count, np.float32)
    for style, weight in zip(styles, weights, strict=True):
        row[style.index] += weight
    return first, row
