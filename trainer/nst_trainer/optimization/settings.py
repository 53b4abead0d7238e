"""Settings that determine an optimised image. Nothing here imports torch, so the command line starts fast."""

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
"""Initial images that are not read from a file."""

MINIMUM_SIDE_PIXELS = 32
"""Minimum of the longer side at the smallest scale, and of a style image's shorter side."""


@dataclass(frozen=True)
class OptimizationSettings:
    """Settings that determine an optimised image; every field is an option of `nst optimize` and `nst texture`.

    The defaults are the preset `best`. Layers are comma-separated names.
    """

    size: int = option(512, "Longer side of the result in pixels; by default 512.")
    iterations: int = option(160, "Iterations at full size; by default 160 with the preset best, 500 with the others.")
    style_scale: float = option(
        1.0, "Style image's size relative to the content's; more gives larger strokes.", "Style"
    )
    colors: Colors = option(
        "style", "Colours of the style, or of the content by luminance or histogram matching.", "Style"
    )
    style_weight: float = option(LossWeights.style, "Weight of the style loss; more stylizes more strongly.", "Losses")
    content_weight: float = option(
        LossWeights.content, "Weight of the content loss; more keeps more of the content image.", "Losses"
    )
    tv_weight: float = option(
        LossWeights.total_variation, "Weight of the total variation loss; more gives smoother images.", "Losses"
    )
    content_layers: str = option("relu3_3", "VGG-16 layers of the content loss: name or name:weight.", "Losses")
    style_layers: str = option(
        "relu1_2,relu2_2,relu3_3,relu4_3", "VGG-16 layers of the style loss: name or name:weight.", "Losses"
    )
    relative: bool = option(
        True, "Divide each layer's style loss by the target's squared norm (not in the papers).", "Losses"
    )
    normalize: bool = option(False, "Rescale VGG-16 to mean activations of 1 (Gatys et al. 2015).", "Losses")
    pooling: Pooling = option("max", "Pooling layers of VGG-16.", "Losses")
    init: str = option(
        "recolored",
        f"Initial image: {', '.join(INITS)} or a file. recolored: content image in the style's colours.",
        "Schedule",
    )
    scales: int = option(1, "Number of sizes, coarse to fine, each sqrt(2) times the one before.", "Schedule")
    coarse_iterations: int = option(60, "Iterations at each size before the last.", "Schedule")
    seed: int = option(0, "Random seed of the noise.", "Schedule")
    optimizer: Optimizer = option("lbfgs", "L-BFGS or Adam.", "Tuning")
    step: float = option(1.2, "L-BFGS: step length; 1 in the papers.", "Tuning")
    history: int = option(100, "L-BFGS: number of remembered steps.", "Tuning")
    frequency_decay: float = option(
        0.25, "L-BFGS: exponent that favours large forms; 0 optimises plain pixels.", "Tuning"
    )
    learning_rate: float = option(0.02, "Adam: learning rate.", "Tuning")
    average: float = option(
        0.6, "Decay of the moving average that is the result; 0 returns the image of lowest loss.", "Tuning"
    )
    low_memory: bool = option(False, "Recompute VGG-16's activations: takes 0.7 of the memory at 768 pixels.", "Tuning")

    def __post_init__(self) -> None:
        for name in ("size", "iterations", "scales", "step", "history", "learning_rate", "style_scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give a value above 0")
        if not 0.0 <= self.average < 1.0:
            raise InputError(f"--average is {self.average}; give a value from 0 to below 1")
        for name, choices in (("optimizer", Optimizer), ("pooling", Pooling), ("colors", Colors)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"--{name} is {getattr(self, name)!r}; choose from {', '.join(get_args(choices))}")
        self.layers("content"), self.layers("style")
        if self.sizes()[0] < MINIMUM_SIDE_PIXELS:
            raise InputError(
                f"--scales {self.scales} of --size {self.size} starts at {self.sizes()[0]} pixels; "
                f"use fewer scales or a larger size, so that it starts at {MINIMUM_SIDE_PIXELS} or more"
            )

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of the losses."""
        return LossWeights(self.content_weight, self.style_weight, self.tv_weight)

    def layers(self, kind: Literal["content", "style"]) -> dict[str, float]:
        """Return the weights of `content_layers` or `style_layers` by name; raises `InputError`."""
        layers = {}
        for part in filter(None, map(str.strip, getattr(self, f"{kind}_layers").split(","))):
            name, _, weight = part.partition(":")
            try:
                layers[name] = float(weight or 1.0)
            except ValueError:
                raise InputError(
                    f"--{kind}-layers has {part!r}; write each layer as name or name:weight, such as relu4_2:0.5"
                ) from None
        return layers

    def sizes(self) -> list[int]:
        """Return the longer side in pixels at each scale, coarse to fine."""
        return [round(self.size / 2 ** (step / 2)) for step in reversed(range(self.scales))]

    def iterations_at(self, scale: int) -> int:
        """Return the number of iterations at scale number `scale`."""
        return self.iterations if scale == self.scales - 1 else self.coarse_iterations

    def total_iterations(self) -> int:
        """Return the number of iterations at all scales together."""
        return sum(map(self.iterations_at, range(self.scales)))

    def work_shares(self) -> list[float]:
        """Return the share of the run's pixels after 0, 1, ... iterations: time grows with pixels."""
        sizes = [size for scale, size in enumerate(self.sizes()) for _ in range(self.iterations_at(scale))]
        pixels = list(accumulate((size**2 for size in sizes), initial=0))
        return [done / pixels[-1] for done in pixels]


PLAIN: dict[str, Any] = {"scales": 1, "step": 1.0, "history": 20, "frequency_decay": 0.0, "average": 0.0}
"""L-BFGS as in the papers, over pixels of a single size; a history of 100 steps makes no difference there."""

PRESETS: dict[str, OptimizationSettings] = {
    # The lowest loss in equal time; dev/LOG.md lists what was tried.
    "best": OptimizationSettings(),
    # Johnson et al. 2016, section 4.1: white noise, L-BFGS, the loss of the feed-forward training.
    # Deviation: they clip to 0-255 at every iteration; see `optimize`.
    "johnson2016-baseline": OptimizationSettings(iterations=500, init="noise", **PLAIN),
    # Gatys et al. 2016, sections 2 and 3: layers, average pooling, mean activations of 1, white noise, L-BFGS;
    # 1/4 and w = 1/5 of equations 4 and 5, 1/2 of equation 1. Deviations: VGG-16 instead of VGG-19 (the same
    # layer names); the content loss is a mean instead of equation 1's sum, so that beta/alpha means the same at
    # every size. beta/alpha is 40, chosen by eye, where the paper has 200 to 2000 on a scale that it does not
    # define. The noise is faint, as in the authors' published code: full contrast leaves a grain that 500
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
    # weights, average pooling, mean activations of 1, white noise, L-BFGS. The 1/4 of equation 3 is the
    # weight. Deviation: VGG-16 instead of VGG-19.
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
    """Return the preset `name` with `changes`; raises `InputError` for an unknown name or value."""
    if name not in PRESETS:
        raise InputError(f"--preset is {name!r}; choose from {', '.join(PRESETS)}")
    assert set(changes) <= {setting.name for setting in fields(OptimizationSettings)}
    return replace(PRESETS[name], **changes)
