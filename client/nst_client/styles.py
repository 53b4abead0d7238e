"""The styles that a server's models offer, and style weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import sqrt

import numpy as np

from nst_client.errors import ServiceError, UnknownStyle
from nst_client.tiles import Grid
from nst_client.transports.base import ModelConfig, StyleWeights
from nst_core.contract import Parameter, Purpose
from nst_core.errors import InputError
from nst_core.images import DEFAULT_MAX_PIXELS


@dataclass(frozen=True)
class Style:
    """A style that a server offers, its model, and the image sizes that the model accepts."""

    name: str
    """The name to pass to `StyleClient.stylize`."""
    model: str
    """The model that has the style."""
    index: int = 0
    """The style's position among the styles of its model, from 0."""
    count: int = 1
    """The number of styles of the model."""
    min_side: int = 16
    """Minimum side in pixels."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Maximum pixels of an image in one pass."""
    max_batch: int = 0
    """Maximum number of images per request; 0 for any number."""
    tiles: Grid | None = None
    """How larger images are split into tiles; None if the server cannot stylize them."""
    max_side: int | None = None
    """Maximum side in pixels in one pass; None for any side."""

    def takes(self, height: int, width: int) -> bool:
        """Return whether the model accepts an image of this size (pixels) in one pass; `min_side` is not checked."""
        return height * width <= self.max_pixels and max(height, width) <= (self.max_side or max(height, width))

    def fitting_scale(self, height: int, width: int) -> float:
        """Return the scale, at most 1, at which an image of this size (pixels) fits into one pass."""
        longer = max(height, width)
        return min(1.0, sqrt(self.max_pixels / (height * width)), (self.max_side or longer) / longer)

    def fitting_side(self, height: int, width: int) -> int:
        """Return the longer side, in pixels, at which an image of this size fits into one pass."""
        return int(max(height, width) * self.fitting_scale(height, width))


def offered_styles(configs: Mapping[str, ModelConfig]) -> tuple[dict[str, Style], dict[str, ServiceError]]:
    """Return the styles of a server's models, by name, and the errors of invalid configs, by model.

    A model with one style gives it the model's name. The styles of a model with several keep their own names, or are
    called model/style where another style has the same name.
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
            errors[model] = ServiceError(f"the config of model {model} is invalid ({error}); export the model again")
            continue
        try:
            grid = _grid(model, configs)
        except (KeyError, ValueError) as error:  # the model itself can still be used
            grid, tiled = None, f"{model}_{Purpose.TILED}"
            reason = f"{str(error.args[0])!r} is missing" if isinstance(error, KeyError) else error
            errors[tiled] = ServiceError(f"the config of model {tiled} is invalid ({reason}); export the model again")
        for index, own_name in enumerate(names):
            name = own_name if len(names) > 1 else model
            name = f"{model}/{own_name}" if name in found else name
            found[name] = Style(
                name, model, index, len(names), **limits, max_batch=configs[model].max_batch, tiles=grid
            )
    return found, errors


_LIMITS = {str(Parameter.MIN_SIDE), str(Parameter.MAX_PIXELS), str(Parameter.MAX_SIDE)}


def _limit(config: ModelConfig, key: str) -> int:
    text = config.parameters[key]
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{key} is {text!r}") from None
    if value < 1:
        raise ValueError(f"{key} is {value}")
    return value


def unknown_style(address: str, name: str, offered: Iterable[str], unusable: Iterable[str] = ()) -> UnknownStyle:
    """Return the error for a style that a server lacks: it names the nearest style that the server has, or lists all.

    `unusable` are models of the server that cannot be used.
    """
    by_lower_case = {known.lower(): known for known in offered}
    skipped = f"; skipped models: {', '.join(unusable)}" if unusable else ""
    if nearest := get_close_matches(name.lower(), by_lower_case, n=1):
        return UnknownStyle(f"{address} has no style {name!r}; did you mean {by_lower_case[nearest[0]]!r}?{skipped}")
    known_names = ", ".join(by_lower_case.values()) or "none"
    return UnknownStyle(f"{address} has no style {name!r}; it has: {known_names}{skipped}")


def statistics_model(style: Style) -> str:
    """Return the name of the model that computes the statistics for tiles; `nst export --tiled` adds it."""
    return f"{style.model}_{Purpose.STATISTICS}"


def tiled_model(style: Style) -> str:
    """Return the name of the model that stylizes tiles; `nst export --tiled` adds it."""
    return f"{style.model}_{Purpose.TILED}"


def _grid(model: str, configs: Mapping[str, ModelConfig]) -> Grid | None:
    """Return the grid of tiles for a model; None if the server lacks the two models for tiles."""
    purposes = (Purpose.STATISTICS, Purpose.TILED)
    pair = [configs.get(f"{model}_{purpose}", ModelConfig()).parameters for purpose in purposes]
    if tuple(parameters.get(Parameter.PURPOSE) for parameters in pair) != purposes:
        return None
    _, tiled = pair
    max_side = int(tiled[Parameter.MAX_SIDE]) if Parameter.MAX_SIDE in tiled else None
    max_pixels = int(tiled.get(Parameter.MAX_PIXELS, DEFAULT_MAX_PIXELS))
    return Grid.fitting(int(tiled[Parameter.MULTIPLE]), int(tiled[Parameter.OVERLAP]), max_pixels, max_side)


def parse_style_weights(text: str) -> dict[str, float]:
    """Parse style weights such as `wave:0.7,scream:0.3`; a name without a weight has the weight 1.

    Raises `InputError` for a weight that is not a number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, separator, weight = part.strip().rpartition(":")
        try:
            weights[name if separator else weight] = float(weight) if separator else 1.0
        except ValueError:
            raise InputError(f"{weight!r} in {part!r} is not a number; give style:weight, such as wave:0.7") from None
    return weights


def resolve_style_weights(styles: Sequence[Style], weights: Sequence[float]) -> tuple[Style, StyleWeights | None]:
    """Return the first style, and the weights float32 `[S]` of all S styles of its model.

    The weights are None for a model of one style. Raises `InputError` for invalid weights or styles of several models.
    """
    if not styles or not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise InputError(f"style weights are {list(weights)}; give at least one above 0, and none below 0")
    first = styles[0]
    if others := [style for style in styles if style.model != first.model]:
        raise InputError(
            f"{first.name} belongs to model {first.model} and {others[0].name} to {others[0].model}; "
            "interpolate styles of one model"
        )
    if first.count == 1:
        return first, None
    row = np.zeros(first.count, np.float32)
    for style, weight in zip(styles, weights, strict=True):
        row[style.index] += weight
    return first, row
