"""PyTorch's device for a choice; the driver's GPU is made up."""

import pytest
import torch

from nst_core.devices import Device, Gpu
from nst_core.errors import InputError
from nst_trainer import devices
from nst_trainer.devices import choose_device
from nst_trainer.training.distributed.team import join_team

H100 = Gpu(0, "NVIDIA H100", "GPU-0", "9.0", 80 << 30, "535.54.03", (12, 2))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver has a GPU, and PyTorch cannot use it."""
    monkeypatch.setattr(devices, "choose", lambda wanted: Device("gpu", H100.name, H100))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("built_for", "reason"),
    [
        (None, "is built without CUDA; run pip install --force-reinstall torch"),
        ("13.0", "is built for CUDA 13.0, and the driver 535.54.03 supports CUDA up to 12.2"),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_named(
    built_for: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    device, chosen = choose_device("auto")
    assert (device.type, chosen.kind) == ("cpu", "cpu")
    assert f"this machine has NVIDIA H100, but PyTorch {torch.__version__} {reason}" in chosen.reason
    with pytest.raises(InputError, match="--device gpu: this machine has NVIDIA H100") as error:
        choose_device("gpu")
    assert reason in str(error.value)


def test_a_team_is_on_the_device_that_was_chosen() -> None:
    with join_team("cpu") as processes:
        assert processes.device.type == "cpu"
        assert str(processes.chosen) == "cpu: chosen with --device cpu"


def test_a_gpu_that_pytorch_can_use_is_taken(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device, chosen = choose_device("auto")
    assert (device.type, chosen.gpu) == ("cuda", H100)
