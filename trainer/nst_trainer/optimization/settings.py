"""What decides the result of an optimisation. Nothing here needs torch, so the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, Literal, get_args

from nst_core.errors import InputError
from nst_core.options import option
from nst_trainer.loss_settings import LossWeights, Pooling

Optimizer = Literal["lbfgs", "adam"]
Colors = Literal["style", "luminance", "histogram"]
NOISE_INITS = ("noise", "faint-noise")
INITS = ("content", "recolored", *NOISE_INITS, "grey")
"""What an optimisation begins with, if it is no image's path."""

MINIMUM_SIDE_PIXELS = 32
"""Of the longer side at the smallest scale, and of a style image's shorter side."""


@dataclass(frozen=True)
class OptimizationSettings:
    """What decides an optimised image; every field is an option of `nst optimize` and `nst texture`.

    The defaults are the preset `best`. Layers are comma-separated names.
    """

    size: int = option(512, "Longer side of the result, pixels.")
    iterations: int = option(160, "Forward and backward passes of the loss network at the full size.")
    scales: int = option(1, "Sizes to go through, each sqrt(2) of the one before.")
    coarse_iterations: int = option(60, "Iterations at each of the smaller sizes.")
    optimizer: Optimizer = option("lbfgs", "L-BFGS or Adam.")
    step: float = option(1.2, "L-BFGS: length of a step; the papers' is 1.")
    history: int = option(100, "L-BFGS: steps that it remembers.")
    frequency_decay: float = option(0.25, "L-BFGS: above 0 finds large forms sooner; 0 moves bare pixels.")
    learning_rate: float = option(0.02, "Adam's.")
    average: float = option(0.6, "Decay of the average of images that is the result; 0 takes the best image.")
    init: str = option("recolored", f"Begin from: {', '.join(INITS)}, or an image's path. Recolored: as the style.")
    content_layers: str = option("relu3_3", "Where the content is compared; name:weight sets a weight, 1 if not given.")
    style_layers: str = option("relu1_2,relu2_2,relu3_3,relu4_3", "Where the style is compared; name:weight likewise.")
    content_weight: float = option(LossWeights.content, "More keeps more of the content.")
    style_weight: float = option(LossWeights.style, "More gives more of the style.")
    tv_weight: float = option(LossWeights.total_variation, "More smooths (total variation).")
    relative: bool = option(True, "Divide a layer's style loss by the style's own norm; the papers do not.")
    normalize: bool = option(False, "Rescale the loss network to a mean activation of 1 (Gatys et al. 2015).")
    pooling: Pooling = option("max", "The loss network's pooling.")
    style_scale: float = option(1.0, "Size of the style image over the content's: above 1, larger strokes.")
    colors: Colors = option("style", "Whose colours: the style's, or the content's by luminance or histogram.")
    seed: int = option(0, "Decides the noise.")
    low_memory: bool = option(False, "Compute blocks again instead of keeping them: 0.7 of the memory at 768 pixels.")

    def __post_init__(self) -> None:
        for name in ("size", "iterations", "scales", "step", "history", "learning_rate", "style_scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be above 0")
        if not 0.0 <= self.average < 1.0:
            raise InputError(f"average is {self.average}: it must be from 0 to below 1")
        for name, choices in (("optimizer", Optimizer), ("pooling", Pooling), ("colors", Colors)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name} is {getattr(self, name)!r}: choose {', '.join(get_args(choices))}")
        self.layers("content"), self.layers("style")
        if self.sizes()[0] < MINIMUM_SIDE_PIXELS:
            raise InputError(
                f"{self.scales} scales of {self.size} pixels begin below {MINIMUM_SIDE_PIXELS}: take fewer"
            )

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of the terms."""
        return LossWeights(self.content_weight, self.style_weight, self.tv_weight)

    def layers(self, kind: Literal["content", "style"]) -> dict[str, float]:
        """The names of `content_layers` or `style_layers`, and their weights; raises `InputError`."""
        layers = {}
        for part in filter(None, map(str.strip, getattr(self, f"{kind}_layers").split(","))):
            name, _, weight = part.partition(":")
            try:
                layers[name] = float(weight or 1.0)
            except ValueError:
                raise InputError(
                    f"{kind}_layers has {part!r}: a layer is name or name:weight, such as relu4_2:0.5"
                ) from None
        return layers

    def sizes(self) -> list[int]:
        """The longer side at each scale, coarse to fine, pixels."""
        return [round(self.size / 2 ** (step / 2)) for step in reversed(range(self.scales))]

    def iterations_at(self, scale: int) -> int:
        """How many passes scale number `scale` gets."""
        return self.iterations if scale == self.scales - 1 else self.coarse_iterations

    def total_iterations(self) -> int:
        """Passes at all scales together."""
        return sum(map(self.iterations_at, range(self.scales)))

    def work_shares(self) -> list[float]:
        """For 0, 1, ... iterations done, the share of all the run's pixels: time grows with pixels."""
        sizes = [size for scale, size in enumerate(self.sizes()) for _ in range(self.iterations_at(scale))]
        pixels = list(accumulate((size**2 for size in sizes), initial=0))
        return [done / pixels[-1] for done in pixels]


PLAIN: dict[str, Any] = {"scales": 1, "step": 1.0, "history": 20, "frequency_decay": 0.0, "average": 0.0}
"""L-BFGS as the papers have it, over pixels of one size; 100 steps of history make no difference there."""

PRESETS: dict[str, OptimizationSettings] = {
    # What measures best by loss at equal time; dev/LOG.md says what was tried.
    "best": OptimizationSettings(),
    # Johnson et al. 2016, section 4.1: white noise, L-BFGS, the loss of the feed-forward training.
    # Deviation: they clip to 0-255 at every iteration; see `optimize`.
    "johnson2016-baseline": OptimizationSettings(iterations=500, init="noise", **PLAIN),
    # Gatys et al. 2016, sections 2 and 3: layers, average pooling, mean activations of one, white noise,
    # L-BFGS; 1/4 and w = 1/5 of equations 4 and 5, 1/2 of equation 1. Deviations: VGG-16 in VGG-19's place
    # (the same layer names); the content loss is a mean, not equation 1's sum, so that beta/alpha
    # means the same at every size, and is 20 by eye where the paper has 200 to 2000 by a scale that it does
    # not give. The noise is faint, as in the authors' published code: full contrast leaves a grain that 500
    # iterations do not remove.
    "gatys2016": OptimizationSettings(
        iterations=500,
        init="faint-noise",
        **PLAIN,
        content_layers="relu4_2",
        style_layers=",".join(f"relu{block}_1:0.05" for block in range(1, 6)),
        content_weight=0.5,
        style_weight=20.0,
        tv_weight=0.0,
        relative=False,
        normalize=True,
        pooling="average",
    ),
    # Gatys et al. 2015 (texture synthesis), equations 2 to 4: conv1_1 and the pooling layers with equal
    # weights, average pooling, mean activations of one, white noise, L-BFGS. The 1/4 of equation 3 is the
    # weight. Deviation: VGG-16 in VGG-19's place.
    "gatys2015-texture": OptimizationSettings(
        iterations=500,
        init="faint-noise",
        **PLAIN,
        content_layers="",
        style_layers="conv1_1,pool1,pool2,pool3,pool4",
        content_weight=0.0,
        style_weight=0.25,
        tv_weight=0.0,
        relative=False,
        normalize=True,
        pooling="average",
    ),
}


def preset(name: str, changes: dict[str, Any]) -> OptimizationSettings:
    """The preset `name` with `changes`; raises `InputError` for an unknown name or value."""
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    assert set(changes) <= {setting.name for setting in fields(OptimizationSettings)}
    return replace(PRESETS[name], **changes)
