"""Quality over time: small networks with random weights, the real loss network, exporter and runtime."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nst_bench import report
from nst_bench.results import rows
from nst_bench.suite import Context, Document
from nst_bench.suites import frontier
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Fast, Johnson


def test_two_networks_by_time_and_equivalent_iterations(
    tmp_path: Path,
    photographs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    cpu: Device,
    measured: Callable[..., Document],
) -> None:
    monkeypatch.setattr(frontier, "LONGEST", 4)
    monkeypatch.setattr(frontier, "ROUNDS", 5)
    torch.manual_seed(0)
    files = [tmp_path / "slow.pth", tmp_path / "quick.pth"]
    save(Checkpoint(frozen(Johnson(width=0.5)), ("slow",)), files[0])
    save(Checkpoint(frozen(Fast(width=0.125)), ("quick",)), files[1])
    (photos := tmp_path / "photos").mkdir()
    for name in ("chelsea", "rocket"):
        shutil.copy(photographs[name], photos)
    context = Context(cpu, frontier.FrontierEffort(quality_size=64, size=256))
    document = measured(frontier.SUITE, context, checkpoints=files, style=photographs["coffee"], photos=photos)
    quick, slow = document["rows"]
    assert (quick["name"], slow["name"]) == ("quick", "slow")
    assert quick["median"] < slow["median"]
    assert quick["best_for_its_time"] and slow["best_for_its_time"] is (slow["loss"] < quick["loss"])
    assert all(1 <= row["equivalent_iterations"] <= 4 and row["loss"] > row["style"] > 0 for row in (quick, slow))
    assert len(rows(document)) == 2
    plot = report.plots(document)[0]
    assert plot.name == "frontier" and "quick" in plot.alt
    assert "| slow | johnson, width 0.5 |" in report.markdown(document).replace("**", "")


def test_two_files_of_one_name(tmp_path: Path, cpu: Device) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(Checkpoint(frozen(Fast(width=0.125)), ("x",)), tmp_path / folder / "x.pth")
    files = [tmp_path / "a" / "x.pth", tmp_path / "b" / "x.pth"]
    with pytest.raises(InputError, match="the same file name"):
        frontier.SUITE.run(Context(cpu, frontier.FrontierEffort()), checkpoints=files, style=tmp_path / "no.jpg")
