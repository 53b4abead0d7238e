"""SOAP in stacks, and training steps that are launched as a whole."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_optimizer import SOAP

from nst_trainer.cuda_graph import CudaGraphReplay
from nst_trainer.networks import ARCHITECTURES, StyledNetwork
from nst_trainer.training import step as steps
from nst_trainer.training.loop import Progress, Training
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.soap import NORM_FACTOR, rotate, soap
from nst_trainer.vgg import Vgg16

SMALL = TrainingSettings(arch="fast", width=0.25, iterations=12, batch=2, crop=96, style_size=96)


def give_gradients(network: StyledNetwork, number: int) -> None:
    """Give every parameter random gradients, which are the same in networks of the same shape."""
    generator = torch.Generator().manual_seed(number)
    for values in network.parameters():
        values.grad = torch.randn(values.shape, generator=generator)


@pytest.mark.parametrize("styles", [1, 3])
def test_stacks_move_as_each_parameter_by_itself(styles: int) -> None:
    """As in pytorch-optimizer's SOAP of convolutions with the positions of a kernel as one axis."""
    network = ARCHITECTURES["fast"](width=0.25, styles=styles)
    other = copy.deepcopy(network)
    own = soap(network, 3e-3)
    own.param_groups[1]["lr"] = 3e-3 * own.param_groups[1]["factor"]
    norms = {id(values) for norm in other.norms() for values in (norm.weight, norm.bias)}
    flat = {
        name: torch.nn.Parameter(values.detach().flatten(2) if values.ndim == 4 else values.detach().clone())
        for name, values in other.named_parameters()
    }
    alone: list[torch.Tensor] = []
    normalised: list[torch.Tensor] = []
    for name, values in other.named_parameters():
        (normalised if id(values) in norms else alone).append(flat[name])
    rate = 3e-3 * (1.0 if styles == 1 else NORM_FACTOR)
    wanted = SOAP(
        [{"params": alone}, {"params": normalised, "max_precondition_dim": 0, "lr": rate}], lr=3e-3, weight_decay=0.0
    )
    for number in range(14):  # past the first update of the bases
        give_gradients(network, number)
        for name, values in network.named_parameters():
            assert values.grad is not None
            flat[name].grad = values.grad.reshape(flat[name].shape).clone()
        own.step()
        wanted.step()
        for name, values in network.named_parameters():
            torch.testing.assert_close(values.reshape(flat[name].shape), flat[name], atol=1e-3, rtol=0.0)
    moved = max(
        float((a - b).detach().abs().max()) for a, b in zip(network.parameters(), other.parameters(), strict=True)
    )
    assert moved > 0.02  # twenty times the tolerance


def test_rotation_follows_every_axis() -> None:
    values = torch.randn(2, 5, 4, 3, 6)
    bases = [torch.randn(5, side, side) for side in (4, 3, 6)]
    wanted = torch.einsum("znabc,naA,nbB,ncC->znABC", values, *bases)
    torch.testing.assert_close(rotate(values, bases), wanted, atol=1e-4, rtol=1e-4)


def test_saved_steps_go_on_as_if_never_saved() -> None:
    network = ARCHITECTURES["fast"](width=0.25)
    whole = soap(network, 1e-3)
    for number in range(12):
        give_gradients(network, number)
        whole.step()
    again = copy.deepcopy(network)
    restored = soap(again, 1e-3)
    restored.load_state_dict(copy.deepcopy(whole.state_dict()))
    for number in range(12, 24):
        for model, optimizer in ((network, whole), (again, restored)):
            give_gradients(model, number)
            optimizer.step()
    for values, others in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(values, others)


class Replayed(CudaGraphReplay):
    """A stand-in for a GPU's graph, which calls the work again."""

    def warm_up(self) -> None:
        self.work()

    def capture(self) -> Callable[[], None]:
        return self.work


@pytest.mark.parametrize(
    "how", [{}, {"styles": 3}, {"grow": False, "content_weight": 1e-2}], ids=["one", "three", "whole crops"]
)
def test_captured_steps_learn_the_same(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """To the last bit, at crops that grow and with several styles."""
    monkeypatch.setattr(steps, "CudaGraphReplay", Replayed)
    images = [photographs[name] for name in ("chelsea", "coffee", "rocket")[: how.pop("styles", 1)]]
    settings = replace(SMALL, **how)

    def learned(name: str, *, captured: bool) -> tuple[list[Progress], dict[str, torch.Tensor]]:
        training = Training(images, None, tmp_path / f"{name}.pth", vgg, settings, captured=captured)
        seen = [replace(progress, images_per_second=0.0) for progress in training.steps()]
        return seen, training.state.network.state_dict()

    seen, network = learned("plain", captured=False)
    again, same = learned("captured", captured=True)
    assert again == seen
    assert len(seen) == 12
    for name, values in network.items():
        assert torch.equal(values, same[name]), name


def test_a_captured_step_that_is_not_finite_changes_nothing(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "CudaGraphReplay", Replayed)
    training = Training([photographs["chelsea"]], None, tmp_path / "a.pth", vgg, SMALL, captured=True)
    running = training.steps()
    for _ in range(5):
        next(running)
    genuine = training.objective

    def poisoned(*given: Any, **options: Any) -> Any:
        total, terms = genuine(*given, **options)
        return total * torch.nan, terms

    assert isinstance(training.take_step, steps.CapturedSteps)
    for graph in training.take_step.graphs.values():
        graph.objective = poisoned
    with pytest.raises(steps.TrainingError, match="iteration 5: the loss is nan"):
        next(running)
    assert training.state.iteration == 5
    assert all(values.isfinite().all() for values in training.state.network.state_dict().values())
