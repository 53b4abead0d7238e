"""Which styles a server's models offer, and the weights of a mix of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from nst_client.errors import ServiceError
from nst_client.tiles import Grid
from nst_client.transports.base import ModelConfig, Weights
from nst_core.errors import InputError
from nst_core.images import DEFAULT_MAX_PIXELS


@dataclass(frozen=True)
class Style:
    """A style that a server offers: the model that paints it, and the sizes that it takes (pixels).

    It is number `index` of the `count` styles of its model. `max_batch` is how many pictures a request may hold (0:
    any number), `max_side` the longest side (None: any), `tiles` how larger pictures than `max_pixels` or `max_side`
    are cut, None where the server cannot paint them.
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
        """Whether the model paints a picture of this size, pixels, in one pass; `min_side` aside."""
        return height * width <= self.max_pixels and max(height, width) <= (self.max_side or max(height, width))

    def fitting_scale(self, height: int, width: int) -> float:
        """By how much, 1 at most, a picture of this size is shrunk for one pass."""
        longer = max(height, width)
        return min(1.0, sqrt(self.max_pixels / (height * width)), (self.max_side or longer) / longer)

    def fitting_side(self, height: int, width: int) -> int:
        """The longer side, pixels, of a picture of this size that is shrunk for one pass."""
        return int(max(height, width) * self.fitting_scale(height, width))


def offered(configs: Mapping[str, ModelConfig]) -> tuple[dict[str, Style], dict[str, ServiceError]]:
    """The styles of a server's models, by name, and what is wrong with the configs of the models left out, by model.

    A model of one style is called by its own name, the styles of a model of several by theirs, and by
    model/style where another has the same name.
    """
    found: dict[str, Style] = {}
    wrong: dict[str, ServiceError] = {}
    named = {
        model: config.parameters["styles"].split(",")
        for model, config in configs.items()
        if config.parameters.get("purpose", "style") == "style" and "styles" in config.parameters
    }
    for model, names in sorted(named.items(), key=lambda entry: (len(entry[1]) > 1, entry[0])):
        try:
            limits = {key: _limit(configs[model], key) for key in _LIMITS & configs[model].parameters.keys()}
        except ValueError as error:
            wrong[model] = ServiceError(f"the config of the model {model} is wrong: {error}")
            continue
        try:
            grid = _grid(model, configs)
        except (KeyError, ValueError) as error:  # the model paints what it takes whole
            grid, tiled = None, f"{model}_tiled"
            wrong[tiled] = ServiceError(f"the config of the model {tiled} is wrong: {error}")
        for index, own in enumerate(names):
            name = own if len(names) > 1 else model
            name = f"{model}/{own}" if name in found else name
            found[name] = Style(
                name, model, index, len(names), **limits, max_batch=configs[model].max_batch, tiles=grid
            )
    return found, wrong


_LIMITS = {"min_side", "max_pixels", "max_side"}


def _limit(config: ModelConfig, key: str) -> int:
    value = int(config.parameters[key])
    if value < 1:
        raise ValueError(f"{key} is {value}")
    return value


def statistics_model(style: Style) -> str:
    """The first of the pair of models that `nst-export --tiled` makes."""
    return f"{style.model}_statistics"


def tiled_model(style: Style) -> str:
    """The second of the pair."""
    return f"{style.model}_tiled"


def _grid(model: str, configs: Mapping[str, ModelConfig]) -> Grid | None:
    """How pictures are cut for the tiled pair of a model; None if the pair is not there."""
    pair = [configs.get(f"{model}_{purpose}", ModelConfig()).parameters for purpose in ("statistics", "tiled")]
    if [own.get("purpose") for own in pair] != ["statistics", "tiled"]:
        return None
    _, tiled = pair
    max_side = int(tiled["max_side"]) if "max_side" in tiled else None
    max_pixels = int(tiled.get("max_pixels", DEFAULT_MAX_PIXELS))
    return Grid.fitting(int(tiled["multiple"]), int(tiled["overlap"]), max_pixels, max_side)


def parse_style_weights(text: str) -> dict[str, float]:
    """`wave:0.7,scream:0.3` by name; a name alone has the weight 1. Raises `InputError` for another text."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, separator, weight = part.strip().rpartition(":")
        try:
            mix[name if separator else weight] = float(weight) if separator else 1.0
        except ValueError:
            raise InputError(f"{part!r} is no style with a weight: name:weight, such as wave:0.7") from None
    return mix


def resolve_style_weights(styles: Sequence[Style], weights: Sequence[float]) -> tuple[Style, Weights | None]:
    """The first of the styles, and the weights `[S]` of all styles of its model; None for a model of one."""
    if not styles or not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise InputError(f"weights of styles are {list(weights)}: give at least one above 0 and none below")
    first = styles[0]
    if others := [style for style in styles if style.model != first.model]:
        raise InputError(
            f"{first.name} is painted by the model {first.model} and {others[0].name} by {others[0].model}: "
            "only styles of one model can be mixed"
        )
    if first.count == 1:
        return first, None
    row = np.zeros(first.count, np.float32)
    for style, weight in zip(styles, weights, strict=True):
        row[style.index] += weight
    return first, row
