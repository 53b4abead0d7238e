"""Checkpoints of pytorch/examples' fast_neural_style, against that network written down here as it is there."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nst_trainer.checkpoint import CheckpointError, load


class ConvLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, upsample: int | None = None) -> None:
        super().__init__()
        self.upsample = upsample
        self.reflection_pad = nn.ReflectionPad2d(kernel // 2)
        self.conv2d = nn.Conv2d(inputs, outputs, kernel, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.upsample:
            x = F.interpolate(x, mode="nearest", scale_factor=self.upsample)
        return self.conv2d(self.reflection_pad(x))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.in1 = ConvLayer(channels, channels, 3, 1), nn.InstanceNorm2d(channels, affine=True)
        self.conv2, self.in2 = ConvLayer(channels, channels, 3, 1), nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.in2(self.conv2(F.relu(self.in1(self.conv1(x))))) + x


class TransformerNet(nn.Module):
    """Pixels 0-255 in, about 0-255 out."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 32, 9, 1, None), (32, 64, 3, 2, None), (64, 128, 3, 2, None)]
        for number, (inputs, outputs, kernel, stride, upsample) in enumerate(sizes, 1):
            setattr(self, f"conv{number}", ConvLayer(inputs, outputs, kernel, stride, upsample))
            setattr(self, f"in{number}", nn.InstanceNorm2d(outputs, affine=True))
        for number in range(1, 6):
            setattr(self, f"res{number}", Residual(128))
        self.deconv1, self.in4 = ConvLayer(128, 64, 3, 1, 2), nn.InstanceNorm2d(64, affine=True)
        self.deconv2, self.in5 = ConvLayer(64, 32, 3, 1, 2), nn.InstanceNorm2d(32, affine=True)
        self.deconv3 = ConvLayer(32, 3, 9, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(1, 4):
            x = F.relu(getattr(self, f"in{number}")(getattr(self, f"conv{number}")(x)))
        for number in range(1, 6):
            x = getattr(self, f"res{number}")(x)
        x = F.relu(self.in4(self.deconv1(x)))
        x = F.relu(self.in5(self.deconv2(x)))
        return self.deconv3(x)


@pytest.fixture
def theirs() -> TransformerNet:
    torch.manual_seed(0)
    network = TransformerNet().eval()
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    network.deconv3.conv2d.weight.data *= 100.0  # so that its output is in colours of 0-255
    return network


@pytest.mark.parametrize("old", [False, True], ids=["new", "with running statistics"])
def test_it_stylizes_as_the_original_does(tmp_path: Path, theirs: TransformerNet, old: bool) -> None:
    state = dict(theirs.state_dict())
    if old:
        state |= {"in1.running_mean": torch.zeros(32), "res3.in2.running_var": torch.ones(128)}
    torch.save(state, tmp_path / "mosaic.pth")
    checkpoint = load(tmp_path / "mosaic.pth")
    assert checkpoint.styles == ("mosaic",)
    content = torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        wanted, got = theirs(255.0 * content), 255.0 * checkpoint.network(content)
    assert wanted.std() > 20
    assert (got - wanted).abs().max() < 0.1


def test_one_that_is_incomplete_or_changed(tmp_path: Path, theirs: TransformerNet) -> None:
    for change, words in (("remove", "res4.conv1"), ("add", "unknown layers extra")):
        state = dict(theirs.state_dict())
        if change == "remove":
            del state["res4.conv1.conv2d.weight"]
        else:
            state["extra"] = torch.zeros(1)
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=f"incomplete or modified TransformerNet .*{words}"):
            load(tmp_path / "a.pth")


WAYS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "both": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "a compiled layer": lambda state: {key.replace("conv1.", "conv1._orig_mod.", 1): v for key, v in state.items()},
    "state_dict": lambda state: {"epoch": 2, "state_dict": OrderedDict(state)},
    "model": lambda state: {"model": state, "optimizer": {"param_groups": []}},
    "nested": lambda state: {"model": {"state_dict": {f"module.{key}": value for key, value in state.items()}}},
    "of a larger module": lambda state: {
        "state_dict": {"vgg.weight": torch.zeros(3)} | {f"model.net.{key}": value for key, value in state.items()}
    },
    "parameters": lambda state: {key: nn.Parameter(value) for key, value in state.items()},
    "half": lambda state: {key: value.half() for key, value in state.items()},
    "old statistics": lambda state: {"state_dict": state | {"module.in1.running_mean": torch.zeros(32)}},
}


@pytest.mark.parametrize("way", WAYS)
def test_as_people_have_it(tmp_path: Path, theirs: TransformerNet, way: str) -> None:
    """Wrapped, prefixed, as parameters: the same network."""
    torch.save(WAYS[way](dict(theirs.state_dict())), tmp_path / "a.pth")
    torch.save(theirs.state_dict(), tmp_path / "bare.pth")
    got, wanted = (load(tmp_path / name).network.state_dict() for name in ("a.pth", "bare.pth"))
    assert all(torch.allclose(got[name], wanted[name], rtol=1e-2, atol=1e-2) for name in wanted)
    assert not any(values.requires_grad for values in got.values())


def test_the_name_that_their_trainer_gives(tmp_path: Path, theirs: TransformerNet) -> None:
    """A date with colons, which would stand for weights in `--style`."""
    name = "epoch_2_Fri_Nov_27_00:20:36_2026_100000.0_10000000000.0.model"
    torch.save(theirs.state_dict(), tmp_path / name)
    assert load(tmp_path / name).styles == ("epoch_2_Fri_Nov_27_00-20-36_2026_100000.0_10000000000.0",)
