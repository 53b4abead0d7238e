import pytest
import torch

from nst_trainer.checkpoint import parameters
from nst_trainer.networks import Johnson


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 48), (20, 132)])
def test_the_shape_stays_and_values_are_colours(height: int, width: int) -> None:
    painted = Johnson(width=0.25)(torch.rand(2, 3, height, width))
    assert painted.shape == (2, 3, height, width)
    assert painted.min() > 0
    assert painted.max() < 1


def test_the_papers_network_has_the_papers_layers() -> None:
    network = Johnson()
    shapes = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    ends, down, up = [(32, 3, 9, 9)], [(64, 32, 3, 3), (128, 64, 3, 3)], [(64, 128, 3, 3), (32, 64, 3, 3)]
    assert shapes == [*ends, *down, *[(128, 128, 3, 3)] * 10, *up, (3, 32, 9, 9)]
    assert parameters(network) == 1_677_635


def test_width_scales_the_channels() -> None:
    assert Johnson(width=0.5).encoder[0].convolution.out_channels == 16
    assert parameters(Johnson(width=0.5)) == 424_099


def test_contrast_of_the_photograph_does_not_matter() -> None:
    """Instance normalisation: half the contrast gives nearly the same picture (Ulyanov et al. 2016)."""
    torch.manual_seed(0)
    network = Johnson(width=0.25).eval()
    photo = torch.rand(1, 3, 64, 64)
    grey = 0.5 + 0.5 * (photo - 0.5)
    with torch.no_grad():
        assert (network(photo) - network(grey)).abs().mean() < 0.01
