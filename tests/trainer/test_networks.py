import pytest
import torch

from nst_trainer.checkpoint import parameters
from nst_trainer.losses import checkerboard_loss
from nst_trainer.networks import Fast, Johnson, StyledNetwork, Ulyanov
from nst_trainer.networks.styled import ConditionalInstanceNorm


@pytest.mark.parametrize("network", [Johnson(width=0.25), Fast(width=0.25)], ids=lambda network: network.name)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 48), (20, 132)])
def test_the_shape_stays_and_values_are_colours(network: StyledNetwork, height: int, width: int) -> None:
    stylized = network(torch.rand(2, 3, height, width))
    assert stylized.shape == (2, 3, height, width)
    assert stylized.min() > 0
    assert stylized.max() < 1


def test_the_papers_network_has_the_papers_layers() -> None:
    network = Johnson()
    shapes = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    ends, down, up = [(32, 3, 9, 9)], [(64, 32, 3, 3), (128, 64, 3, 3)], [(64, 128, 3, 3), (32, 64, 3, 3)]
    assert shapes == [*ends, *down, *[(128, 128, 3, 3)] * 10, *up, (3, 32, 9, 9)]
    assert parameters(network) == 1_677_635


def test_the_fast_network_begins_without_a_checkerboard() -> None:
    """The pixels of a 2x2 block are initialised alike, so that training starts without a checkerboard."""
    torch.manual_seed(0)
    network, content, style_weights = Fast(styles=2).eval(), torch.rand(1, 3, 64, 64), torch.tensor([[0.5, 0.5]])
    with torch.no_grad():
        assert checkerboard_loss(network(content, style_weights), 2) < 1e-12
        network.last.weight[0] += 0.1  # one of a block's four pixels differs from the others
        assert checkerboard_loss(network(content, style_weights), 2) > 1e-6
    assert parameters(Fast()) == 206_540


def test_width_scales_the_channels() -> None:
    assert Johnson(width=0.5).encoder[0].convolution.out_channels == 16
    assert parameters(Johnson(width=0.5)) == 424_099


@pytest.mark.parametrize("width", [0.375, 0.5])
def test_a_wider_network_stylizes_the_same(width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Net2WiderNet is exact without noise, also if the channels are not a multiple; with noise it is close."""
    torch.manual_seed(0)
    network, content = Johnson(width=0.25, styles=2).eval(), torch.rand(1, 3, 32, 32)
    for norm in network.norms():
        torch.nn.init.normal_(norm.weight)
    style_weights, generator = torch.tensor([[0.3, 0.7]]), torch.Generator()
    near = network.widened(width, generator).eval()
    monkeypatch.setattr("nst_trainer.networks.johnson.NET2NET_NOISE", 0.0)
    same = network.widened(width, generator).eval()
    assert same.arguments["width"] == width
    with torch.no_grad():
        wanted = network(content, style_weights)
        assert torch.allclose(same(content, style_weights), wanted, atol=1e-5)
        assert 0.0 < (near(content, style_weights) - wanted).abs().mean() < 0.1
    with pytest.raises(ValueError, match="narrower"):
        network.widened(0.125, generator)


def test_contrast_of_the_photograph_does_not_matter() -> None:
    """Instance normalisation: half the contrast gives nearly the same image (Ulyanov et al. 2016)."""
    torch.manual_seed(0)
    network = Johnson(width=0.25).eval()
    content = torch.rand(1, 3, 64, 64)
    grey = 0.5 + 0.5 * (content - 0.5)
    with torch.no_grad():
        assert (network(content) - network(grey)).abs().mean() < 0.01


def test_a_norm_of_several_styles_is_instance_normalisation_with_interpolated_scales() -> None:
    """Compared with the definition: (x - mean) / deviation * scale + shift, for each image and channel."""
    torch.manual_seed(0)
    norm = ConditionalInstanceNorm(3, styles=2)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 5, 4)
    style_weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    got = norm(x, style_weights)
    for image in range(2):
        for channel in range(3):
            values = x[image, channel]
            scale = sum(style_weights[image, style] * norm.weight[style, channel] for style in range(2))
            shift = sum(style_weights[image, style] * norm.bias[style, channel] for style in range(2))
            wanted = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt() * scale + shift
            assert torch.allclose(got[image, channel], wanted, atol=1e-5)


@pytest.mark.parametrize("network", [Johnson(width=0.25, styles=2), Ulyanov(styles=2)], ids=["johnson", "ulyanov"])
def test_more_styles_leave_the_old_ones_as_they_are(network: Johnson | Ulyanov) -> None:
    for norm in network.norms():
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    grown = network.with_styles(2)
    content = torch.rand(1, 3, 64, 64)
    assert grown.styles == 4
    with torch.no_grad():
        for style in range(2):
            old = network(content, torch.eye(2)[style][None])
            assert torch.equal(grown(content, torch.eye(4)[style][None]), old)
        mean = network(content, torch.tensor([[0.5, 0.5]]))
        assert torch.allclose(grown(content, torch.eye(4)[3:]), mean, atol=1e-4)


def test_the_pyramid_has_the_papers_shape() -> None:
    """Five sizes for a texture, six for stylisation; eight more channels at each (section 4.1)."""
    texture = Ulyanov(texture=True)
    assert [block.convolutions[0].in_channels for block in texture.first] == [3] * 5
    assert [block.convolutions[0].out_channels for block in texture.merged] == [16, 24, 32, 40]
    assert len(Ulyanov().first) == 6
    assert parameters(texture) == 71_203


def test_noise_decides_a_texture_and_a_stylised_image_needs_none() -> None:
    torch.manual_seed(0)
    texture, stylised = Ulyanov(texture=True).eval(), Ulyanov().eval()
    content = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        noise = [texture.draw_noise(content, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        first, same, other = (texture(content, None, drawn) for drawn in noise)
        assert torch.equal(first, same)
        assert (first - other).abs().mean() > 0.01
        assert torch.equal(stylised(content), stylised(content))
        assert stylised(content).shape == content.shape
        rolled = texture(content.roll((16, 32), (2, 3)), None, noise[0])
    assert torch.equal(rolled, first)  # of the image only the shape counts
