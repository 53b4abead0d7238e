import numpy as np
import pytest
import torch

from nst_core.errors import InputError
from nst_trainer.loss_settings import LossWeights
from nst_trainer.losses import (
    PerceptualLoss,
    border_loss,
    checkerboard_loss,
    content_loss,
    gram_matrix,
    style_loss,
    total_variation,
)
from nst_trainer.vgg import Vgg16


def test_gram_matrix_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # C=2, H=1, W=2
    expected = torch.tensor([[1 + 4, 3 + 8], [3 + 8, 9 + 16]]) / (2 * 1 * 2)
    assert torch.equal(gram_matrix(features)[0], expected)


def test_gram_matrix_does_not_mind_the_memory_layout() -> None:
    features = torch.rand(2, 5, 3, 4)
    assert torch.allclose(gram_matrix(features), gram_matrix(features.to(memory_format=torch.channels_last)))


def test_gram_matrix_forgets_where() -> None:
    features = torch.rand(1, 4, 6, 6)
    shuffled = features.flatten(2)[:, :, torch.randperm(36)].view_as(features)
    assert torch.allclose(gram_matrix(features), gram_matrix(shuffled))


def test_gram_matrix_of_bfloat16_has_the_sums_of_fp32() -> None:
    """And the process's own precision of products stays as it was."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 32, 40, 40, generator=generator).relu().to(torch.bfloat16).requires_grad_()
    exact = features.detach().double().requires_grad_()
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    gram, wanted = gram_matrix(features), gram_matrix(exact)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
    assert gram.dtype == torch.float32
    assert float((gram - wanted).detach().norm() / wanted.detach().norm()) < 1e-6
    weights = torch.randn(gram.shape, generator=generator)
    (gram * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert features.grad is not None
    assert exact.grad is not None
    assert float((features.grad - exact.grad).norm() / exact.grad.norm()) < 0.005


def test_content_loss_by_hand() -> None:
    assert content_loss(torch.tensor([[[[1.0, 5.0]]]]), torch.tensor([[[[2.0, 2.0]]]])).item() == (1 + 9) / 2


def test_style_loss_by_hand() -> None:
    assert style_loss(torch.tensor([[[1.0, 2.0], [2.0, 5.0]]]), torch.tensor([[[0.0, 2.0], [2.0, 3.0]]])).tolist() == [
        5.0
    ]


def test_a_guide_sees_its_region_alone() -> None:
    features = torch.rand(1, 4, 6, 8)
    left = torch.zeros(1, 1, 6, 8)
    left[..., :4] = 1.0
    both = torch.cat([left, 1.0 - left])
    guided = gram_matrix(features, both)
    assert torch.allclose(guided[0], gram_matrix(features[..., :4])[0], rtol=1e-5)
    assert torch.allclose(guided[1], gram_matrix(features[..., 4:])[0], rtol=1e-5)
    assert torch.allclose(gram_matrix(features, torch.ones(1, 1, 6, 8)), gram_matrix(features))


def test_the_relative_style_loss_does_not_depend_on_the_scale_of_the_style(vgg: Vgg16) -> None:
    """1 per layer for features that are all 0."""
    loss = PerceptualLoss(vgg, torch.rand(1, 3, 32, 32), LossWeights(1.0, 1.0, 0.0))
    for name, target in loss.style_targets.items():
        assert (loss.factors[name] * style_loss(torch.zeros_like(target), target)).item() == pytest.approx(1.0)


def test_styles_are_interpolated_by_their_weights(vgg: Vgg16) -> None:
    first, second = torch.rand(2, 1, 3, 32, 32)
    weights = LossWeights(1.0, 1.0, 0.0)
    alone = [PerceptualLoss(vgg, style, weights).style_targets["relu2_2"] for style in (first, second)]
    interpolated = PerceptualLoss(vgg, [first, second], weights, style_weights=[3.0, 1.0]).style_targets["relu2_2"]
    assert torch.allclose(interpolated, 0.75 * alone[0] + 0.25 * alone[1], rtol=1e-4)
    with pytest.raises(InputError, match="one weight per style"):
        PerceptualLoss(vgg, [first, second], weights, style_weights=[1.0])


def test_layers_have_their_weights(vgg: Vgg16) -> None:
    style, stylized = torch.rand(2, 1, 3, 32, 32)
    weights = LossWeights(1.0, 1.0, 0.0)
    even = PerceptualLoss(vgg, style, weights, style_layers={"relu1_2": 1.0, "relu2_2": 1.0})
    uneven = PerceptualLoss(
        vgg,
        style,
        weights,
        content_layers={"relu3_3": 3.0},
        style_layers={"relu1_2": 0.5, "relu2_2": 4.0},
    )
    before, after = even(stylized, even.content_target(style)), uneven(stylized, uneven.content_target(style))
    assert after.content.item() == pytest.approx(3.0 * before.content.item())
    for name, weight in (("relu1_2", 0.5), ("relu2_2", 4.0)):
        assert after.style_by_layer[name].item() == pytest.approx(weight * before.style_by_layer[name].item(), rel=1e-4)


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).expand(1, 3, 2, 2)
    assert total_variation(image).item() == pytest.approx((0.25 + 0.25) / 2 + (1.0 + 0.0) / 2)


def test_checkerboard_loss_by_hand() -> None:
    """Every fourth column 0.4 brighter: phases of 0, 0, 0 and 0.4 in each row."""
    image = torch.full((2, 3, 16, 24), 0.5)
    image[..., 3::4] += 0.4
    assert checkerboard_loss(image).item() == pytest.approx(np.var([0, 0, 0, 0.4]))
    assert checkerboard_loss(image.roll(1, 3)).item() == pytest.approx(np.var([0, 0, 0, 0.4]))
    assert checkerboard_loss(torch.full((1, 3, 16, 16), 0.3)).item() == pytest.approx(0.0)
    stripes = (torch.arange(24) % 3).expand(1, 3, 24, 24) / 2.0  # another period: no phase of 4 sees it
    assert checkerboard_loss(stripes).item() == pytest.approx(0.0)


def test_border_loss_by_hand() -> None:
    """The last row 0.4 brighter: one of 4 and one of 16 rows at one of four sides; any other side gives the same."""
    content = torch.full((2, 3, 48, 64), 0.5)
    line = content.clone()
    line[..., -1, :] += 0.4
    expected = 0.4**2 / 16 + 0.4**2 / 64
    assert border_loss(line, content).item() == pytest.approx(expected)
    assert border_loss(line.flip(2), content).item() == pytest.approx(expected)
    assert border_loss(line.transpose(2, 3), content.transpose(2, 3)).item() == pytest.approx(expected)


def test_border_loss_of_a_band() -> None:
    """A band of 16 rows is no line: only the wider strips see it, each of their rows at one of four sides."""
    content = torch.full((1, 3, 48, 64), 0.5)
    band = content.clone()
    band[..., :16, :] -= 0.2
    assert border_loss(band, content).item() == pytest.approx(0.2**2 / 4)


def test_border_loss_is_not_of_what_the_photograph_shows() -> None:
    """A dark sky's edge costs nothing if the photograph has it, and its absence does."""
    plain = torch.full((1, 3, 48, 64), 0.5)
    dark = plain.clone()
    dark[..., :16, :] -= 0.2
    assert border_loss(dark, dark).item() == pytest.approx(0.0)
    assert border_loss(dark - 0.3, dark).item() == pytest.approx(0.0, abs=1e-12)
    assert border_loss(plain, dark).item() == pytest.approx(0.2**2 / 4)


@pytest.mark.parametrize("loss", ["content", "style", "variation"])
def test_gradients_are_those_of_finite_differences(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    other = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    functions = {
        "content": lambda y: content_loss(y, other),
        "style": lambda y: style_loss(gram_matrix(y), gram_matrix(other)).mean(),
        "variation": total_variation,
    }
    assert torch.autograd.gradcheck(functions[loss], (x,))


def test_a_batchs_loss_is_the_mean_of_its_images(vgg: Vgg16) -> None:
    generator = torch.Generator().manual_seed(1)
    loss = PerceptualLoss(vgg, torch.rand(1, 3, 48, 48, generator=generator), LossWeights(1e-5, 2.0, 3.0))
    contents, stylized = torch.rand(2, 2, 3, 32, 32, generator=generator)
    both = loss(stylized, loss.content_target(contents))
    apart = [loss(stylized[i : i + 1], loss.content_target(contents[i : i + 1])) for i in range(2)]
    assert both.total.item() == pytest.approx(np.mean([losses.total.item() for losses in apart]), rel=1e-4)
    assert both.style.item() == pytest.approx(sum(part.item() for part in both.style_by_layer.values()), rel=1e-5)


def test_the_style_itself_has_no_style_loss_and_the_photo_no_content_loss(vgg: Vgg16) -> None:
    style = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    loss = PerceptualLoss(vgg, style, LossWeights(1.0, 1.0, 0.0))
    losses = loss(style, loss.content_target(style))
    assert losses.style.item() < 1e-9
    assert losses.content.item() < 1e-3


def test_a_rounded_loss_network_computes_the_same_under_autocast(vgg: Vgg16) -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loss = PerceptualLoss(vgg, images.flip(2), LossWeights())
    with torch.autocast("cpu", torch.bfloat16):
        whole, rounded = (
            each(images.flip(3), each.content_target(images)).total
            for each in (loss, loss.with_rounded_network(torch.bfloat16))
        )
    assert torch.equal(whole, rounded)
    assert vgg.convolutions["conv1_1"].weight.dtype == torch.float32
