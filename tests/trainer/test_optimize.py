import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from nst_core.errors import InputError
from nst_core.images import open_image
from nst_trainer.cuda_graph import WARM_UP_ITERATIONS, CudaGraphReplay
from nst_trainer.images import to_tensor
from nst_trainer.loss_settings import LossWeights
from nst_trainer.losses import PerceptualLoss
from nst_trainer.optimization import color
from nst_trainer.optimization.gatys import ImageOptimization, Iteration, OptimizationError, optimize
from nst_trainer.optimization.scale import Precision
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings, preset
from nst_trainer.vgg import Vgg16, Weights
from nst_trainer.weights import vgg16_weights

TINY = replace(PRESETS["best"], size=48, scales=1, iterations=12, init="noise", average=0.0)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return vgg16_weights()


@pytest.fixture(scope="module")
def content(photographs: dict[str, Path]) -> torch.Tensor:
    return to_tensor(open_image(photographs["coffee"], max_side=96))


@pytest.fixture(scope="module")
def style(photographs: dict[str, Path]) -> torch.Tensor:
    return to_tensor(open_image(photographs["chelsea"], max_side=96))


def run(
    content: torch.Tensor | None,
    style: torch.Tensor,
    settings: OptimizationSettings,
    weights: Weights,
    **more: object,
) -> tuple[torch.Tensor, list[Iteration]]:
    """Return the image, and the reports of all iterations."""
    seen: list[Iteration] = []
    image = optimize(content, [style], settings, weights=weights, on_iteration=seen.append, **more)  # type: ignore[arg-type]
    return image, seen


@pytest.mark.parametrize("name", ["johnson2016-baseline", "gatys2016", "best"])
def test_presets_lower_their_loss(name: str, content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    changes = {"size": 48, "iterations": 40, "scales": 1, "init": "noise"}
    image, seen = run(content, style, preset(name, changes), weights)
    assert [iteration.number for iteration in seen] == list(range(1, 41))
    assert min(iteration.total for iteration in seen) < 0.25 * seen[0].total
    assert image.shape == (1, 3, 32, 48)
    assert 0 <= image.min() <= image.max() <= 1


def test_the_steps_are_those_of_pytorchs_lbfgs(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    """The same losses for as long as rounding allows, then the same loss in the end."""
    settings = preset("johnson2016-baseline", {"size": 48, "iterations": 40})
    reference = ImageOptimization(content, [style], settings, weights)
    values = reference.current.parameters.values
    optimizer = torch.optim.LBFGS(
        [values],
        settings.step,
        max_iter=1,
        max_eval=2,
        history_size=20,
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )

    def evaluate() -> float:
        values.grad = None
        loss = reference.loss(values, reference.target).total
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    wanted = [float(optimizer.step(evaluate)) for _ in range(settings.iterations)]
    own = [iteration.total for iteration in run(content, style, settings, weights)[1]]
    assert own[:20] == pytest.approx(wanted[:20], rel=0.01)
    assert own[-1] == pytest.approx(wanted[-1], rel=0.03)


class Replayed(CudaGraphReplay):
    """A stand-in for a GPU's graph, which calls the work again."""

    captures = 0

    def warm_up(self) -> None:
        self.work()

    def capture(self) -> Callable[[], None]:
        self.captures += 1
        return self.work


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_an_iteration_can_be_repeated_as_a_whole(
    content: torch.Tensor, style: torch.Tensor, weights: Weights, optimizer: str
) -> None:
    """As one function of tensors at fixed addresses, captured once after the first calls."""
    settings = replace(TINY, optimizer=optimizer, average=0.5)
    image, seen = run(content, style, settings, weights)
    repeated = ImageOptimization(content, [style], settings, weights)
    repeated.graph = graph = Replayed(repeated.current.iterate, torch.device("cpu"))
    places = [
        tensor.data_ptr()
        for tensor in (repeated.current.parameters.values, repeated.current.best, repeated.current.losses)
    ]
    losses: list[float] = []
    while repeated.step(lambda iteration: losses.append(iteration.total)):
        assert graph.captures == (graph.calls > WARM_UP_ITERATIONS)
    assert losses == [iteration.total for iteration in seen]
    assert torch.equal(repeated.image(), image)
    static = (repeated.current.parameters.values, repeated.current.best, repeated.current.losses)
    assert [tensor.data_ptr() for tensor in static] == places


def test_ctrl_c_waits_for_the_end_of_a_step(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    """Otherwise an image could change without counting its step, and resuming would give another result."""
    whole, _ = run(content, style, TINY, weights)
    stopped = ImageOptimization(content, [style], TINY, weights)
    numbers: list[int] = []
    genuine = stopped.current.optimizer.step

    def interrupted() -> None:
        genuine()
        if len(numbers) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    stopped.current.optimizer.step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        while stopped.step(lambda iteration: numbers.append(iteration.number)):
            pass
    assert numbers == [1, 2, 3, 4, 5]
    image, rest = run(content, style, TINY, weights, resume=stopped.state())
    assert [iteration.number for iteration in rest] == list(range(6, TINY.iterations + 1))
    assert torch.equal(image, whole)


def test_bfloat16_rounds_the_loss_network_alone(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    exact, rounded = (
        run(content, style, TINY, weights, precision=precision)[1][0].total for precision in ("fp32", "bf16")
    )
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.03)
    with pytest.raises(InputError, match="precision is 'tf32'; choose fp32 or bf16, or tf32 on a GPU"):
        ImageOptimization(content, [style], TINY, weights, precision="tf32")


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"optimizer": "adam"}, {"frequency_decay": 0.25, "average": 0.6}])
def test_the_graph_computes_what_its_operations_do(
    content: torch.Tensor, style: torch.Tensor, weights: Weights, changes: dict[str, Any]
) -> None:
    settings = preset("johnson2016-baseline", {"size": 128, "iterations": 30} | changes)
    losses: list[list[float]] = []
    for graph in (True, False):
        optimization = ImageOptimization(
            content, [style], settings, weights, device=torch.device("cuda"), precision="fp32"
        )
        assert optimization.graph is not None
        optimization.graph = optimization.graph if graph else None
        losses.append([])
        while optimization.step(lambda iteration: losses[-1].append(iteration.total)):
            pass
    assert losses[0][:15] == pytest.approx(losses[1][:15], rel=0.01)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.03)


@pytest.mark.gpu
def test_every_precision_reaches_the_same_loss(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    """Judged in FP32, at a size that keeps a GPU busy; the figures are printed (pytest -s)."""
    device = torch.device("cuda")
    settings = preset("johnson2016-baseline", {"size": 512, "iterations": 100})
    judge = ImageOptimization(content, [style], settings, weights, device=device, precision="fp32")
    reached: dict[str, float] = {}
    for precision in get_args(Precision):
        image, seen = run(content, style, settings, weights, device=device, precision=precision)
        with torch.no_grad():
            reached[precision] = judge.loss(image, judge.target).total.item()
        milliseconds = 1000.0 * (seen[-1].seconds - seen[9].seconds) / (len(seen) - 10)
        print(f"{precision}: loss {reached[precision]:.4f} after 100 iterations, {milliseconds:.2f} ms each")
    assert reached["tf32"] == pytest.approx(reached["fp32"], rel=0.02)
    assert reached["bf16"] == pytest.approx(reached["fp32"], rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("colors", ["style", "luminance", "histogram"])
def test_it_optimises_on_the_gpu_as_on_the_cpu(
    colors: str, content: torch.Tensor, style: torch.Tensor, weights: Weights
) -> None:
    """Two sizes, a spectrum and regions; convolutions on the GPU may round their inputs to TF32."""
    settings = preset("best", {"size": 64, "iterations": 20, "scales": 2, "colors": colors})
    halves = torch.zeros(2, 1, 64, 64)
    halves[0, :, :, :32] = halves[1, :, :, 32:] = 1.0
    more = {"guides": (halves, [halves])}
    _, cpu = run(content, style, settings, weights, **more)
    image, gpu = run(content, style, settings, weights, **more, device=torch.device("cuda"))
    assert image.device.type == "cuda"
    assert gpu[0].total == pytest.approx(cpu[0].total, rel=0.01)
    assert gpu[-1].total == pytest.approx(cpu[-1].total, rel=0.05)


def test_a_texture_has_the_exemplars_statistics(style: torch.Tensor, weights: Weights) -> None:
    settings = preset("gatys2015-texture", {"size": 64, "iterations": 150})
    image, seen = run(None, style, settings, weights, shape=(2, 3))
    assert image.shape == (1, 3, 43, 64)
    assert min(iteration.style for iteration in seen) < 0.05 * seen[0].style
    assert all(iteration.content == 0 for iteration in seen)


def test_a_tileable_texture_has_no_edges(style: torch.Tensor, weights: Weights) -> None:
    """Rolled by any multiple of the poolings it is the same texture; with edges it is not quite."""
    image = style[..., :64, :64]
    rolled = image.roll((16, 32), dims=(2, 3))
    for tileable in (True, False):
        vgg = Vgg16(weights, tileable=tileable)
        loss = PerceptualLoss(vgg, image, LossWeights(0.0, 1.0, 0.0), content_layers={})
        difference = loss(rolled, {}).style.item()
        assert (difference < 1e-8) == tileable, difference
    texture, _ = run(
        None, style, preset("gatys2015-texture", {"size": 32, "iterations": 2}), weights, shape=(1, 1), tileable=True
    )
    assert texture.shape == (1, 3, 32, 32)


def test_the_same_seed_gives_the_same_image(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    image, again, other = (run(content, style, replace(TINY, seed=seed), weights)[0] for seed in (0, 0, 1))
    assert torch.equal(image, again)
    assert not torch.equal(image, other)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("stop", [5, 14])
def test_resuming_gives_the_uninterrupted_run(
    content: torch.Tensor, style: torch.Tensor, weights: Weights, optimizer: str, stop: int, tmp_path: Path
) -> None:
    """Stopped at the first scale and at the second; the state goes through a file."""
    average = 0.9 if optimizer == "adam" else 0.0
    settings = preset(
        "best",
        {
            **{"size": 64, "scales": 2, "coarse_iterations": 8, "iterations": 10, "init": "noise"},
            **{"optimizer": optimizer, "average": average},
        },
    )
    whole, seen = run(content, style, settings, weights)
    parts: list[Iteration] = []

    def interrupt(iteration: Iteration) -> None:
        parts.append(iteration)
        if iteration.number == stop:
            torch.save(iteration.optimization.state(), tmp_path / "state")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize(content, [style], settings, weights=weights, on_iteration=interrupt)
    state = torch.load(tmp_path / "state", weights_only=True)
    image, rest = run(content, style, settings, weights, resume=state)
    assert [(iteration.number, iteration.total) for iteration in [*parts, *rest]] == [
        (iteration.number, iteration.total) for iteration in seen
    ]
    assert torch.equal(image, whole)


def test_scales_go_up_by_the_root_of_two(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    settings = replace(TINY, size=96, scales=3, coarse_iterations=2, iterations=3)
    assert settings.sizes() == [48, 68, 96]
    assert settings.total_iterations() == 7
    _, seen = run(content, style, settings, weights)
    assert [iteration.size for iteration in seen] == [(32, 48)] * 2 + [(45, 68)] * 2 + [(64, 96)] * 3


def test_recomputation_changes_nothing(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    kept, recomputed = (
        [iteration.total for iteration in run(content, style, replace(TINY, low_memory=low), weights)[1]]
        for low in (False, True)
    )
    assert kept == pytest.approx(recomputed, rel=1e-3)


def test_luminance_keeps_the_contents_colours(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    image, _ = run(content, style, replace(TINY, colors="luminance", init="content"), weights)
    small = torch.nn.functional.interpolate(content, image.shape[2:], mode="bicubic", antialias=True).clamp(0, 1)
    chroma = (image - color.luminance(image)) - (small - color.luminance(small))
    assert chroma.abs().mean() < 0.02  # but where the sum left 0-1
    assert (color.luminance(image) - color.luminance(small)).abs().mean() > 0.02


def test_match_colors_gives_mean_and_covariance(content: torch.Tensor, style: torch.Tensor) -> None:
    calm = 0.5 + 0.3 * (content - 0.5)  # so that nothing is cut at 0 and 1
    matched = color.match_colors(style, calm)[0].flatten(1)
    wanted = calm[0].flatten(1)
    assert torch.allclose(matched.mean(1), wanted.mean(1), atol=0.01)
    assert torch.allclose(torch.cov(matched), torch.cov(wanted), atol=0.002)


def test_a_region_takes_its_own_style(content: torch.Tensor, weights: Weights) -> None:
    """Noise on the left of the style and stripes on the right; the regions exchanged in the result."""
    style = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    style[..., 32:] = (torch.arange(64) // 4 % 2).view(1, 1, 64, 1)
    left = torch.zeros(1, 1, 64, 64)
    left[..., :32] = 1
    regions = torch.cat([left, 1 - left])
    settings = replace(TINY, iterations=40, content_weight=0.0, tv_weight=0.0, size=64)
    image, _ = run(content[..., :64, :64], style, settings, weights, guides=(regions.flip(0), [regions]))
    exchanged, straight = (
        PerceptualLoss(Vgg16(weights), style, LossWeights(), content_layers={}, guides=(guide, [regions]))
        for guide in (regions.flip(0), regions)
    )
    assert exchanged(image, {}).style < 0.5 * straight(image, {}).style


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_loss_that_is_not_finite_keeps_the_last_good_image(
    content: torch.Tensor, style: torch.Tensor, weights: Weights, monkeypatch: pytest.MonkeyPatch, average: float
) -> None:
    genuine, calls = PerceptualLoss.__call__, 0

    def poisoned(self: PerceptualLoss, images: torch.Tensor, target: dict[str, torch.Tensor]) -> object:
        nonlocal calls
        calls += 1
        return genuine(self, images * (math.inf if calls > 6 else 1.0), target)

    monkeypatch.setattr(PerceptualLoss, "__call__", poisoned)
    with pytest.raises(OptimizationError, match="iteration 7: the loss is") as error:
        run(content, style, replace(TINY, average=average), weights)
    assert error.value.image.isfinite().all()
    assert error.value.image.std() > 0


def test_settings_that_cannot_be(content: torch.Tensor, style: torch.Tensor, weights: Weights) -> None:
    for changes, words in (
        ({"size": 0}, "size is 0"),
        ({"average": 1.0}, r"average is 1\.0"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; choose from lbfgs, adam"),
        ({"size": 64, "scales": 9}, "starts at 4 pixels"),
        ({"style_layers": "relu1_1:much"}, "--style-layers has 'relu1_1:much'"),
    ):
        with pytest.raises(InputError, match=words):
            preset("best", changes)
    with pytest.raises(InputError, match="--preset is 'worst'; choose from best"):
        preset("worst", {})
    with pytest.raises(InputError, match="without a content image"):
        ImageOptimization(None, [style], TINY, weights)
    with pytest.raises(InputError, match=r"init is 'nowhere\.png'"):
        ImageOptimization(content, [style], replace(TINY, init="nowhere.png"), weights)
