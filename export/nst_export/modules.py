"""What is exported: networks with the arithmetic around them that spares a client any preprocessing.

`ServedModel` is contract 1, raw pixels in and raw pixels out. `TextureModel` makes pictures from
noise. `StatisticsModel` and `TiledModel` are contract 1 in two parts, for pictures that are too large
for one pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_trainer.networks import ConditionalInstanceNorm, StyledNetwork

INPUT = "image"
STYLE_WEIGHTS = "style_weights"
STATISTICS = "statistics"
OUTPUT = "stylized"
TEXTURE = "texture"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. `axes` are sizes, or symbols such as `H`, or multiples of one such as `2h`."""

    name: str
    dtype: torch.dtype
    axes: tuple[str | int, ...]

    def shown(self) -> str:
        """For a person: `image uint8 [N,H,W,3]`."""
        return f"{self.name} {str(self.dtype).removeprefix('torch.')} [{','.join(map(str, self.axes))}]"


class Exportable(nn.Module):
    """A module with named tensors; `forward` takes `inputs` in their order."""

    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    purpose = "style"

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__()
        self.network = network

    def _image(self) -> TensorSpec:
        return TensorSpec(INPUT, torch.uint8, ("N", "H", "W", 3))

    def _mixes(self) -> tuple[TensorSpec, ...]:
        """The input that only networks of several styles have."""
        styles = self.network.styles
        return (TensorSpec(STYLE_WEIGHTS, torch.float32, ("N", styles)),) if styles > 1 else ()


class ServedModel(Exportable):
    """A network with the picture's arithmetic around it: /255, padding, cropping, clamp, rounding."""

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__(network)
        self.inputs = (self._image(), *self._mixes())
        self.output = TensorSpec(OUTPUT, torch.uint8, ("N", "H", "W", 3))

    def forward(self, image: Tensor, style_weights: Tensor | None = None) -> Tensor:
        """SRGB `uint8 [N, H, W, 3]` to stylised `uint8 [N, H, W, 3]`, any H and W from 1 up.

        `style_weights` `[N, S]` are shares of the styles, for a network of several; they are cut at 0 and
        normalised here.
        """
        height, width = image.shape[1], image.shape[2]
        y = self.network(_values(image, self.network), _shares(style_weights))
        return _levels(y[:, :, :height, :width])


class TextureModel(Exportable):
    """A texture network: noise in, picture out."""

    purpose = "texture"

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__(network)
        side = network.min_side
        drawn = network.draw_noise(torch.zeros(1, 3, side, side), torch.Generator())[::-1]
        factors = [one.shape[2] // drawn[-1].shape[2] for one in drawn]
        self.inputs = (
            *(
                TensorSpec(f"noise_{factors[0] // factor}", torch.float32, ("N", *_scaled(factor), one.shape[1]))
                for factor, one in zip(factors, drawn, strict=True)
            ),
            *self._mixes(),
        )
        self.output = TensorSpec(TEXTURE, torch.uint8, ("N", *_scaled(factors[0]), 3))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Noise `[N, H / k, W / k, 3]` in [-1/2, 1/2], called `noise_k`, fine to coarse, to `uint8 [N, H, W, 3]`.

        H and W are multiples of the network's `multiple`; after the noise come `style_weights` `[N, S]` of a
        network of several styles. The coarsest noise says how large the picture is: finer ones of other sizes are
        cut, or repeated at their edge.
        """
        count = len(self.inputs) - len(self._mixes())
        noise = [one.permute(0, 3, 1, 2) for one in inputs[count - 1 :: -1]]
        rows, columns = noise[0].shape[2:]
        noise = [_fitted(one, rows * 2**step, columns * 2**step) if step else one for step, one in enumerate(noise)]
        y = self.network(torch.zeros_like(noise[-1]), _shares(inputs[count] if count < len(inputs) else None), noise)
        return _levels(y)


class StatisticsModel(Exportable):
    """Means and variances of every normalisation, from a small copy of the whole picture.

    Thumbnail Instance Normalization (Chen et al. 2022, *Towards Ultra-Resolution Neural Style Transfer
    via Thumbnail Instance Normalization*, section 3): tiles that share them join without seams.
    """

    purpose = "statistics"

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__(copy.deepcopy(network))
        self.seen: list[Tensor] = []
        _replace_norms(self.network, lambda norm: _Seeing(norm, self.seen))
        self.inputs = (self._image(), *self._mixes())
        self.sizes = self._sizes()
        self.output = TensorSpec(STATISTICS, torch.float32, ("N", sum(self.sizes)))

    def forward(self, image: Tensor, style_weights: Tensor | None = None) -> Tensor:
        """SRGB `uint8 [N, H, W, 3]` to `[N, K]`: means and variances, one normalisation after the other."""
        self.seen.clear()
        self.network(_values(image, self.network), _shares(style_weights))
        return torch.cat(self.seen, dim=1)

    @torch.no_grad()
    def _sizes(self) -> list[int]:
        """How many numbers each normalisation has, in the order in which they run."""
        side, styles = self.network.min_side, self.network.styles
        self(torch.zeros(1, side, side, 3, dtype=torch.uint8), torch.ones(1, styles) if styles > 1 else None)
        return [one.shape[1] for one in self.seen]


class TiledModel(Exportable):
    """`ServedModel` for a part of a picture, with the statistics of the whole one.

    Results are the whole picture's `overlap` pixels and more from those borders of a tile that are not
    the picture's own, where a tile begins at multiples of the network's `multiple`.
    """

    purpose = "tiled"

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__(copy.deepcopy(network))
        sizes = StatisticsModel(network).sizes
        self.sizes, self.given = sizes, list[Tensor]()
        _replace_norms(self.network, lambda norm: _Given(norm, self.given))
        self.overlap = _reach(self)
        self.inputs = (self._image(), TensorSpec(STATISTICS, torch.float32, ("N", sum(sizes))), *self._mixes())
        self.output = TensorSpec(OUTPUT, torch.uint8, ("N", "H", "W", 3))

    def forward(self, image: Tensor, statistics: Tensor, style_weights: Tensor | None = None) -> Tensor:
        """A tile `uint8 [N, H, W, 3]` and `StatisticsModel`'s `[N, K]` to the stylised tile."""
        height, width = image.shape[1], image.shape[2]
        y = self.paint(_values(image, self.network), statistics, _shares(style_weights))
        return _levels(y[:, :, :height, :width])

    def paint(self, pictures: Tensor, statistics: Tensor, mix: Tensor | None) -> Tensor:
        """The network itself with given statistics; see `StyledNetwork.forward`."""
        self.given[:] = torch.split(statistics, self.sizes, dim=1)
        y: Tensor = self.network(pictures, mix)
        return y


class _Seeing(nn.Module):
    """A normalisation that tells the statistics it finds."""

    def __init__(self, norm: ConditionalInstanceNorm, seen: list[Tensor]) -> None:
        super().__init__()
        self.norm, self.seen = norm, seen

    def forward(self, x: Tensor, mix: Tensor | None) -> Tensor:
        mean = x.mean(dim=(2, 3))
        variance = (x - mean[:, :, None, None]).square().mean(dim=(2, 3))
        self.seen.append(torch.cat([mean, variance], dim=1))
        return self.norm.with_statistics(x, mean, variance, mix)


class _Given(nn.Module):
    """A normalisation whose statistics are given."""

    def __init__(self, norm: ConditionalInstanceNorm, given: list[Tensor]) -> None:
        super().__init__()
        self.norm, self.given = norm, given

    def forward(self, x: Tensor, mix: Tensor | None) -> Tensor:
        mean, variance = self.given.pop(0).chunk(2, dim=1)
        return self.norm.with_statistics(x, mean, variance, mix)


def _replace_norms(module: nn.Module, make: Callable[[ConditionalInstanceNorm], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConditionalInstanceNorm):
            setattr(module, name, make(child))
        else:
            _replace_norms(child, make)


def _reach(model: TiledModel) -> int:
    """From how far away an input pixel changes an output pixel, given the statistics; a multiple of `multiple`.

    Found by the gradient of a copy whose weights and values are all positive, so that nothing cancels and no ReLU
    is shut, and small, so that the last layer is not saturated.
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
    # Mean 0 and variance 1 everywhere: a normalisation that changes nothing.
    statistics = torch.cat([torch.arange(size).ge(size // 2).double() for size in network.sizes])[None]
    styles = network.network.styles
    mix = torch.full((1, styles), 1.0 / styles, dtype=torch.float64) if styles > 1 else None
    reach = side = 4 * multiple
    while reach >= side - multiple:
        side *= 2
        line = torch.full((1, 3, model.network.min_side, 2 * side), 0.501, dtype=torch.float64, requires_grad=True)
        middle = network.paint(line, statistics, mix)[..., side : side + multiple]
        (gradient,) = torch.autograd.grad(middle.sum(), line)
        touched = gradient.abs().sum(dim=(0, 1, 2)).nonzero()
        reach = max(side - int(touched.min()), int(touched.max()) - (side + multiple - 1))
    return -(-reach // multiple) * multiple


def _values(image: Tensor, network: StyledNetwork) -> Tensor:
    """Levels `uint8 [N, H, W, 3]` to values `[N, 3, H', W']` in [0, 1], as large as the network needs them.

    H' and W' are the next multiples of the network's `multiple`, and at least its `min_side`. An engine that fails
    on a small image in the middle of the graph may fail on the next one as well, so that no small image reaches it.
    """
    # TensorRT transposes no UINT8: cast first, transpose after, the other way round at the end.
    x = image.float().permute(0, 3, 1, 2) / 255.0
    sides, multiple = image.shape[1:3], network.multiple
    grid = [(side + multiple - 1) // multiple * multiple for side in sides]
    below, right = (_missing(wanted, network.min_side) for wanted in grid)
    x = F.pad(x, (0, right, 0, below), mode="replicate")
    below, right = (wanted - side for wanted, side in zip(grid, sides, strict=True))
    return F.pad(x, (0, right, 0, below), mode="reflect")


def _fitted(noise: Tensor, rows: int, columns: int) -> Tensor:
    """`[N, C, h, w]` as `[N, C, rows, columns]`, cut or with its last row and column repeated.

    As in `_values`: noise that does not fit together would fail in the middle of the graph.
    """
    height, width = noise.shape[2:]
    missing = (0, _missing(width, columns), 0, _missing(height, rows))
    return F.pad(noise, missing, mode="replicate")[:, :, :rows, :columns]


def _missing(side: int, wanted: int) -> int:
    """How much `side` is short of `wanted`, 0 if it is not; `max` would decide it for the example of the export."""
    missing: int = torch.sym_max(0, wanted - side)  # type: ignore[no-untyped-call]
    return missing


def _levels(y: Tensor) -> Tensor:
    """Values `[N, 3, H, W]` to levels `uint8 [N, H, W, 3]`."""
    return (y * 255.0).clamp(0.0, 255.0).round().permute(0, 2, 3, 1).to(torch.uint8)


def _shares(weights: Tensor | None) -> Tensor | None:
    """Not negative, and rows that sum to 1."""
    if weights is None:
        return None
    weights = weights.clamp(min=0.0)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


def _scaled(factor: int) -> tuple[str, str]:
    """Axes of a grid that has `factor` times the sides of the coarsest."""
    return ("h", "w") if factor == 1 else (f"{factor}h", f"{factor}w")
