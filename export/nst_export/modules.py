"""The exported modules: networks with the pre- and postprocessing, so that a client needs none.

`ServedModel` takes raw pixels and returns raw pixels. `TextureModel` makes images from noise. `StatisticsModel` and
`TiledModel` are a `ServedModel` in two parts, for images that are too large for a single pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_core.contract import IMAGE, STATISTICS, STYLE_WEIGHTS, STYLIZED, TEXTURE, Purpose
from nst_trainer.networks import ConditionalInstanceNorm, StyledNetwork


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. `axes` are sizes, or symbols such as `H`, or multiples of a symbol such as `2h`."""

    name: str
    dtype: torch.dtype
    axes: tuple[str | int, ...]

    def shown(self) -> str:
        """Return it as text for messages: `image uint8 [N,H,W,3]`."""
        return f"{self.name} {str(self.dtype).removeprefix('torch.')} [{','.join(map(str, self.axes))}]"


class Exportable(nn.Module):
    """A module with named tensors; `forward` takes `inputs` in their order."""

    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    purpose = Purpose.STYLE

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__()
        self.network = network

    def _image(self) -> TensorSpec:
        return TensorSpec(IMAGE, torch.uint8, ("N", "H", "W", 3))

    def _style_weights(self) -> tuple[TensorSpec, ...]:
        """Return the additional input of networks with several styles."""
        styles = self.network.styles
        return (TensorSpec(STYLE_WEIGHTS, torch.float32, ("N", styles)),) if styles > 1 else ()


class ServedModel(Exportable):
    """A network with pre- and postprocessing: division by 255, padding, cropping, clamping, rounding."""

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__(network)
        self.inputs = (self._image(), *self._style_weights())
        self.output = TensorSpec(STYLIZED, torch.uint8, ("N", "H", "W", 3))

    def forward(self, image: Tensor, style_weights: Tensor | None = None) -> Tensor:
        """Stylize sRGB images `uint8 [N, H, W, 3]` to the same shape, for any H and W from 1 up.

        `style_weights` `[N, S]` are for a network of several styles; they are clamped at 0 and normalized here.
        """
        height, width = image.shape[1], image.shape[2]
        y = self.network(to_values(image, self.network), _normalized(style_weights))
        return _to_pixels(y[:, :, :height, :width])


class TextureModel(Exportable):
    """A texture network: noise in, an image out."""

    purpose = Purpose.TEXTURE

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__(network)
        side = network.min_side
        drawn = network.draw_noise(torch.zeros(1, 3, side, side), torch.Generator())[::-1]
        factors = [noise.shape[2] // drawn[-1].shape[2] for noise in drawn]
        self.inputs = (
            *(
                TensorSpec(f"noise_{factors[0] // factor}", torch.float32, ("N", *_scaled(factor), noise.shape[1]))
                for factor, noise in zip(factors, drawn, strict=True)
            ),
            *self._style_weights(),
        )
        self.output = TensorSpec(TEXTURE, torch.uint8, ("N", *_scaled(factors[0]), 3))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map noise `[N, H / k, W / k, 3]` in [-1/2, 1/2], named `noise_k`, fine to coarse, to `uint8 [N, H, W, 3]`.

        H and W are multiples of the network's `multiple`; a network of several styles has `style_weights` `[N, S]`
        after the noise. The coarsest noise determines the size of the image: finer noise of another size is cropped,
        or repeated at its edge.
        """
        count = len(self.inputs) - len(self._style_weights())
        noise = [grid.permute(0, 3, 1, 2) for grid in inputs[count - 1 :: -1]]
        rows, columns = noise[0].shape[2:]
        noise[1:] = [_fitted(grid, rows * 2**step, columns * 2**step) for step, grid in enumerate(noise[1:], start=1)]
        y = self.network(
            torch.zeros_like(noise[-1]), _normalized(inputs[count] if count < len(inputs) else None), noise
        )
        return _to_pixels(y)


class StatisticsModel(Exportable):
    """Means and variances of every normalization, from a small copy of the whole image.

    Thumbnail Instance Normalization (Chen et al. 2022, *Towards Ultra-Resolution Neural Style Transfer
    via Thumbnail Instance Normalization*, section 3): tiles that share these statistics join without seams.
    """

    purpose = Purpose.STATISTICS

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__(copy.deepcopy(network))
        self.recorded: list[Tensor] = []
        _replace_norms(self.network, lambda norm: _RecordedNorm(norm, self.recorded))
        self.inputs = (self._image(), *self._style_weights())
        self.sizes = self._sizes()
        self.output = TensorSpec(STATISTICS, torch.float32, ("N", sum(self.sizes)))

    def forward(self, image: Tensor, style_weights: Tensor | None = None) -> Tensor:
        """Return the means and variances of each normalization in turn, `[N, K]`, for images `uint8 [N, H, W, 3]`."""
        self.recorded.clear()
        self.network(to_values(image, self.network), _normalized(style_weights))
        return torch.cat(self.recorded, dim=1)

    @torch.no_grad()
    def _sizes(self) -> list[int]:
        """Return the number of statistics of each normalization, in the order in which they run."""
        side, styles = self.network.min_side, self.network.styles
        self(torch.zeros(1, side, side, 3, dtype=torch.uint8), torch.ones(1, styles) if styles > 1 else None)
        return [statistics.shape[1] for statistics in self.recorded]


class TiledModel(Exportable):
    """`ServedModel` for a tile of an image, with the statistics of the whole image.

    A tile begins at multiples of the network's `multiple`. Its result is that of the whole image from `overlap` pixels
    inside of those borders that are not borders of the image.
    """

    purpose = Purpose.TILED

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__(copy.deepcopy(network))
        sizes = StatisticsModel(network).sizes
        self.sizes, self.given = sizes, list[Tensor]()
        _replace_norms(self.network, lambda norm: _GivenNorm(norm, self.given))
        self.overlap = _receptive_reach(self)
        self.inputs = (self._image(), TensorSpec(STATISTICS, torch.float32, ("N", sum(sizes))), *self._style_weights())
        self.output = TensorSpec(STYLIZED, torch.uint8, ("N", "H", "W", 3))

    def forward(self, image: Tensor, statistics: Tensor, style_weights: Tensor | None = None) -> Tensor:
        """Stylize a tile `uint8 [N, H, W, 3]` with the statistics `[N, K]` of `StatisticsModel`."""
        height, width = image.shape[1], image.shape[2]
        y = self.stylize(to_values(image, self.network), statistics, _normalized(style_weights))
        return _to_pixels(y[:, :, :height, :width])

    def stylize(self, x: Tensor, statistics: Tensor, style_weights: Tensor | None) -> Tensor:
        """Run the network with given statistics; see `StyledNetwork.forward`."""
        self.given[:] = torch.split(statistics, self.sizes, dim=1)
        y: Tensor = self.network(x, style_weights)
        return y


class _RecordedNorm(nn.Module):
    """A normalization that appends its statistics to `recorded`."""

    def __init__(self, norm: ConditionalInstanceNorm, recorded: list[Tensor]) -> None:
        super().__init__()
        self.norm, self.recorded = norm, recorded

    def forward(self, x: Tensor, style_weights: Tensor | None) -> Tensor:
        mean = x.mean(dim=(2, 3))
        variance = (x - mean[:, :, None, None]).square().mean(dim=(2, 3))
        self.recorded.append(torch.cat([mean, variance], dim=1))
        return self.norm.with_statistics(x, mean, variance, style_weights)


class _GivenNorm(nn.Module):
    """A normalization that takes its statistics from `given`."""

    def __init__(self, norm: ConditionalInstanceNorm, given: list[Tensor]) -> None:
        super().__init__()
        self.norm, self.given = norm, given

    def forward(self, x: Tensor, style_weights: Tensor | None) -> Tensor:
        mean, variance = self.given.pop(0).chunk(2, dim=1)
        return self.norm.with_statistics(x, mean, variance, style_weights)


def _replace_norms(module: nn.Module, make: Callable[[ConditionalInstanceNorm], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConditionalInstanceNorm):
            setattr(module, name, make(child))
        else:
            _replace_norms(child, make)


def _receptive_reach(model: TiledModel) -> int:
    """Return the distance up to which an input pixel changes an output pixel, as a multiple of `multiple`.

    It is measured with the gradient of a copy whose weights and values are all positive, so that nothing cancels out
    and every ReLU is active, and small, so that the last layer is not saturated.
    """
    network, multiple = copy.deepcopy(model), model.network.multiple
    network.double()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.fill_(1.0 / module.weight[0].numel())
            if module.bias is not None:
                module.bias.data.fill_(0.0)
        if isinstance(module, ConditionalInstanceNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.fill_(0.0)
    # Mean 0 and variance 1 everywhere: a normalization that changes nothing.
    statistics = torch.cat([torch.arange(size).ge(size // 2).double() for size in network.sizes])[None]
    styles = network.network.styles
    style_weights = torch.full((1, styles), 1.0 / styles, dtype=torch.float64) if styles > 1 else None
    reach = side = 4 * multiple
    while reach >= side - multiple:
        side *= 2
        line = torch.full((1, 3, model.network.min_side, 2 * side), 0.501, dtype=torch.float64, requires_grad=True)
        middle = network.stylize(line, statistics, style_weights)[..., side : side + multiple]
        (gradient,) = torch.autograd.grad(middle.sum(), line)
        touched = gradient.abs().sum(dim=(0, 1, 2)).nonzero()
        reach = max(side - int(touched.min()), int(touched.max()) - (side + multiple - 1))
    return round_up(reach, multiple)


def to_values(image: Tensor, network: StyledNetwork) -> Tensor:
    """Convert pixels `uint8 [N, H, W, 3]` to values `[N, 3, H', W']` in [0, 1], padded to the size the network needs.

    H' and W' are the next multiples of the network's `multiple`, and at least its `min_side`. An engine that fails on a
    small image in the middle of the graph may also fail on the next image, so no small image reaches it.
    """
    # TensorRT does not transpose UINT8: cast before the transposition here, and after it at the end.
    x = image.float().permute(0, 3, 1, 2) / 255.0
    sides, multiple = image.shape[1:3], network.multiple
    grid = [(side + multiple - 1) // multiple * multiple for side in sides]
    below, right = (_missing(wanted, network.min_side) for wanted in grid)
    x = F.pad(x, (0, right, 0, below), mode="replicate")
    below, right = (wanted - side for wanted, side in zip(grid, sides, strict=True))
    return F.pad(x, (0, right, 0, below), mode="reflect")


def _fitted(noise: Tensor, rows: int, columns: int) -> Tensor:
    """Crop `[N, C, h, w]` to `[N, C, rows, columns]`, or repeat its last row and column.

    Grids of noise that do not fit together would fail in the middle of the graph (see `to_values`).
    """
    height, width = noise.shape[2:]
    missing = (0, _missing(width, columns), 0, _missing(height, rows))
    return F.pad(noise, missing, mode="replicate")[:, :, :rows, :columns]


def _missing(side: int, wanted: int) -> int:
    """Return how much `side` is short of `wanted`, or 0; the built-in `max` would make it a constant in the graph."""
    missing: int = torch.sym_max(0, wanted - side)  # type: ignore[no-untyped-call]
    return missing


def _to_pixels(y: Tensor) -> Tensor:
    """Convert values `[N, 3, H, W]` in [0, 1] to pixels `uint8 [N, H, W, 3]`."""
    return (y * 255.0).clamp(0.0, 255.0).round().permute(0, 2, 3, 1).to(torch.uint8)


def _normalized(weights: Tensor | None) -> Tensor | None:
    """Clamp style weights at 0, and normalize each row to a sum of 1."""
    if weights is None:
        return None
    weights = weights.clamp(min=0.0)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


def _scaled(factor: int) -> tuple[str, str]:
    """Return the axes of a grid whose sides are `factor` times those of the coarsest grid."""
    return ("h", "w") if factor == 1 else (f"{factor}h", f"{factor}w")


def round_up(number: int, multiple: int) -> int:
    """Round `number` up to a multiple of `multiple`."""
    return (number + multiple - 1) // multiple * multiple
