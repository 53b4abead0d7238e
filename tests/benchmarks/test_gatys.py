import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from nst_bench.cli import app
from nst_bench.suites.gatys import gflop
from nst_trainer.optimization.settings import PRESETS
from nst_trainer.vgg import Vgg16
from nst_trainer.weights import vgg16_weights


@pytest.mark.parametrize("name", ["johnson2016-baseline", "gatys2016"])
def test_the_arithmetic_is_what_pytorch_counts(vgg: Vgg16, name: str) -> None:
    """Forward as PyTorch's own counter has it; backward to the picture costs the same again."""
    settings = PRESETS[name]
    with FlopCounterMode(display=False) as counter:
        vgg(torch.rand(1, 3, 64, 64), [*settings.layers("content"), *settings.layers("style")])
    assert gflop(settings, vgg16_weights(), 64) == pytest.approx(2 * counter.get_total_flops() / 1e9, rel=1e-3)


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    output = tmp_path / "gatys.json"
    result = CliRunner().invoke(
        app, ["gatys", "-o", str(output), "--size", "64", "--iterations", "5", "--largest", "128"]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.splitlines()[-1])
    assert document == json.loads(output.read_text())
    (row,) = document["iterations"]
    assert row["size"] == 128
    assert row["n"] == 6
    assert row["peak_mib"] > 100
    assert document["result"]["baseline_seconds"] > 0
    assert document["result"]["best_lowest_loss"] > 0
