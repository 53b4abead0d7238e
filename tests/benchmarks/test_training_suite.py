from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nst_bench import report
from nst_bench.suite import Context, Document
from nst_bench.suites import training as suite
from nst_core.devices import Device
from nst_core.images import sample_photographs
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.loop import Progress, Training
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.vgg import Vgg16
from nst_trainer.weights import vgg16_weights


def test_both_loops_train_the_same_network_on_the_same_loss(
    tmp_path: Path, vgg: Vgg16, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their first steps have the same loss, but for bfloat16's rounding: what is compared is how, not what."""
    monkeypatch.setattr(Team, "precision", lambda self: (torch.float32, "for this test"))
    settings = TrainingSettings(width=0.125, batch=2, crop=64, style_size=96, iterations=100)
    plain = next(suite.plain_loop(settings, vgg16_weights(), torch.device("cpu")))
    ours: Progress = next(Training([sample_photographs()[0]], None, tmp_path / "a.pth", vgg, settings).steps())
    assert plain == pytest.approx(ours.content + ours.style + ours.total_variation, rel=1e-3)


def test_the_suite_measures_both_in_processes_of_their_own(cpu: Device, measured: Callable[..., Document]) -> None:
    document = measured(suite.SUITE, Context(cpu, suite.TrainingEffort(width=0.125, batch=1, steps=3, crops=(64,))))
    (row,) = document["crops"]
    assert row["plain"]["n"] == row["nst"]["n"] == 3
    assert row["ratio"] == pytest.approx(row["nst"]["images_per_second"] / row["plain"]["images_per_second"])
    assert "| 64² |" in report.markdown(document)
