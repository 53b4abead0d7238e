import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from nst_bench import report, results
from nst_bench.cli import app
from nst_bench.equal_loss import Comparison, equivalent_iterations, stylizer
from nst_bench.suites import quality
from nst_bench.suites.quality import border_artifact, checkerboard_artifact, warping_error
from nst_core.errors import InputError
from nst_core.images import fit, open_image, save_image
from nst_trainer.checkpoint import Checkpoint, save
from nst_trainer.images import to_tensor
from nst_trainer.loss_settings import LossWeights
from nst_trainer.losses import PerceptualLoss
from nst_trainer.networks import Johnson, Ulyanov
from nst_trainer.vgg import Vgg16
from nst_trainer.weights import vgg16_weights


def test_equivalent_is_the_first_iteration_at_or_below() -> None:
    assert equivalent_iterations([5.0, 3.0, 2.0, 2.5], 3.0) == 2
    assert equivalent_iterations([5.0, 3.0, 2.0, 2.5], 2.9) == 3
    assert equivalent_iterations([5.0, 3.0], 1.0) is None


def test_a_network_that_does_nothing_has_no_warping_error_but_the_noise() -> None:
    """The noise of both frames is left: 2 sqrt(2) of 255. Noise of its own adds to it."""
    image = torch.rand(1, 3, 96, 96) * 0.8 + 0.1
    assert warping_error(lambda x: x, image) == pytest.approx(2.0 * 2**0.5, rel=0.05)
    assert warping_error(lambda x: 0.5 * x, image) == pytest.approx(2**0.5, rel=0.05)

    def flickering(x: Tensor) -> Tensor:
        return x + torch.rand(1) * 0.2

    torch.manual_seed(0)
    assert warping_error(flickering, image) > 10


def test_a_grid_is_seen() -> None:
    flat = torch.full((1, 3, 64, 64), 0.5)
    assert checkerboard_artifact(flat) == 0
    flat[:, :, ::4, ::4] += 16 / 255  # one phase of sixteen: a deviation of 16 * sqrt(15) / 16
    assert checkerboard_artifact(flat) == pytest.approx(15**0.5, rel=1e-3)


@pytest.mark.parametrize("wide", [1, 8, 16])
def test_a_border_is_seen(wide: int) -> None:
    """A line or a band along one side of every image, but not what the photographs show there."""
    photo = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    photo[:, :, :20] -= 0.3

    def framed(image: Tensor) -> Tensor:
        image = image.clone()
        image[:, :, :, -wide:] -= 20 / 255
        return image

    assert border_artifact(framed, [photo]) == pytest.approx(20, rel=1e-3)
    assert border_artifact(lambda image: image, [photo]) == 0
    assert border_artifact(lambda image: image + 0.1, [photo, photo.flip(2)]) == pytest.approx(0, abs=1e-3)


def test_the_command_measures_a_network(
    tmp_path: Path, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that learned nothing is equivalent to little; with several styles the file's name chooses."""
    monkeypatch.setattr(quality, "CURVE", 3)
    monkeypatch.setattr(quality, "LONGEST", 4)
    (tmp_path / "photos").mkdir()
    for name in ("coffee", "rocket"):
        (tmp_path / "photos" / f"{name}.jpg").symlink_to(photographs[name])
    torch.manual_seed(0)
    save(Checkpoint(Johnson(width=0.125, styles=2), ("chelsea", "other")), tmp_path / "two.pth")
    command = [
        "quality",
        str(tmp_path / "two.pth"),
        "--photos",
        str(tmp_path / "photos"),
        "-o",
        str(tmp_path / "q.json"),
    ]
    result = CliRunner().invoke(app, [*command, "--style", str(photographs["chelsea"])])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.splitlines()[-1])
    assert document == results.read(tmp_path / "q.json")
    assert [row["photo"] for row in document["photos"]] == ["coffee.jpg", "rocket.jpg"]
    for row in document["photos"]:
        assert row["loss"] == pytest.approx(row["content"] + row["style"] + row["total_variation"])
        assert row["style"] == pytest.approx(sum(row["style_by_layer"].values()))
        assert len(row["curve"]) == len(row["curve_in_range"]) == 3
        assert row["curve"][0] == pytest.approx(row["curve_in_range"][0])  # noise is within the range
    assert document["equivalent_iterations"]["median"] <= 4
    assert 0 <= document["border"] < 255
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    shown = report.markdown(document)
    assert "equivalent iterations** of the optimisation at 256²" in shown
    assert f"brighter or darker by at most {document['border']:.1f} of 255" in shown
    earlier = {name: value for name, value in document.items() if name != "border"}
    assert "of 255." in report.markdown(earlier)
    wrong = CliRunner().invoke(app, [*command, "--style", str(photographs["rocket"])])
    assert wrong.exit_code == 1
    assert "no style 'rocket' in the checkpoint; it has chelsea, other" in wrong.stderr


@pytest.mark.parametrize("side", [48, 96])
def test_the_style_is_what_the_training_had(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path], side: int
) -> None:
    """A style image of 48 pixels is not enlarged to the 64 of the training's settings, one of 96 is made smaller."""
    style = tmp_path / "coffee.png"
    save_image(fit(open_image(photographs["coffee"]), side, side), style)
    checkpoint = Checkpoint(Johnson(width=0.125), ("coffee",), {"style_size": 64})
    learned = PerceptualLoss(vgg, to_tensor(open_image(style, max_side=64)), LossWeights())
    comparison = Comparison(checkpoint, style)
    run = comparison.optimization(photographs["rocket"], 32, 1, vgg16_weights(), torch.device("cpu"))
    for layer, target in learned.style_targets.items():
        assert torch.allclose(run.loss.style_targets[layer], target, rtol=1e-3, atol=1e-5 * float(target.max())), layer


def test_a_texture_network_has_nothing_to_compare() -> None:
    with pytest.raises(InputError, match="stylizes no photographs"):
        stylizer(Checkpoint(Ulyanov(texture=True), ("t",)), "t")
