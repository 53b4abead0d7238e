import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nst_core.errors import InputError
from nst_core.images import open_picture
from nst_trainer import training
from nst_trainer.checkpoint import load
from nst_trainer.losses import PerceptualLoss
from nst_trainer.networks import Johnson
from nst_trainer.photos import Photos, to_picture, to_tensor
from nst_trainer.settings import TrainingSettings
from nst_trainer.training import Progress, TrainingError, train
from nst_trainer.vgg import Vgg16

SMALL = TrainingSettings(width=0.25, iterations=30, batch=2, crop=64, style_size=128, learning_rate=5e-3)


@pytest.fixture
def folder(tmp_path: Path, photographs: dict[str, Path]) -> Path:
    """Three photographs and a text file that calls itself one."""
    folder = tmp_path / "photos" / "deeper"
    folder.mkdir(parents=True)
    for name in ("astronaut", "coffee", "rocket"):
        (folder / f"{name}.jpg").symlink_to(photographs[name])
    (folder / "a-broken.jpg").write_text("no photograph")
    return tmp_path / "photos"


def history(steps: list[Progress]) -> list[tuple[int, float, float]]:
    return [(step.iteration, step.content, step.style) for step in steps]


def test_crops_depend_on_their_number_alone(folder: Path) -> None:
    paths = sorted(folder.rglob("*.jpg"))
    readers = [Photos(paths, batch=2, crop_of=lambda i: 64, seed=3, workers=workers) for workers in (1, 3)]
    whole, again = (list(reader.batches(0, 6)) for reader in readers)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    later = list(readers[0].batches(4, 6))
    assert torch.equal(later[0], whole[4])
    assert torch.equal(later[1], whole[5])
    assert not torch.equal(whole[0], whole[1])
    assert [path.name for path in readers[1].broken] == ["a-broken.jpg"]
    assert whole[0].shape == (2, 3, 64, 64)
    assert 0 <= whole[0].min() <= whole[0].max() <= 1


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    reader = Photos([tmp_path / "a.jpg"], batch=1, crop_of=lambda i: 64, seed=0, workers=1)
    with pytest.raises(InputError, match="none of the 1 files"):
        next(reader.batches(0, 1))


def test_pixels_survive_the_way_to_a_tensor_and_back(photographs: dict[str, Path]) -> None:
    picture = open_picture(photographs["chelsea"])
    assert (to_picture(to_tensor(picture)).pixels == picture.pixels).all()


def test_the_network_learns(tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]) -> None:
    """In thirty steps the style loss falls to under a third, with the real loss network."""
    steps: list[Progress] = []
    output = tmp_path / "out" / "learned.pth"
    result = train(photographs["chelsea"], folder, output, vgg, SMALL, every=10, on_iteration=steps.append)
    assert [step.iteration for step in steps] == list(range(1, 31))
    photo = to_tensor(open_picture(photographs["astronaut"], max_side=128))  # now on the whole picture
    loss = PerceptualLoss(vgg, to_tensor(open_picture(photographs["chelsea"], max_side=128)), SMALL.loss_weights)
    torch.manual_seed(SMALL.seed)
    with torch.no_grad():
        before, after = (
            loss(network(photo), loss.content_target(photo)).style.item()
            for network in (Johnson(width=SMALL.width), result.network)
        )
    assert after < before / 3
    assert steps[-1].skipped == 1
    assert sorted(path.name for path in output.parent.iterdir()) == ["learned-preview.png", "learned.pth"]
    again = load(output)
    assert again.styles == ("learned",)
    assert again.training["skipped"] == result.training["skipped"] == 1
    assert again.training["photos"] == 4
    assert again.training["iterations_done"] == 30
    assert str(tmp_path) not in json.dumps(again.training)  # no path of this machine
    preview = open_picture(output.with_name("learned-preview.png"))
    assert preview.width > 2 * 500


def test_resuming_gives_the_uninterrupted_run(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    style = photographs["coffee"]
    whole: list[Progress] = []
    first = train(style, folder, tmp_path / "whole.pth", vgg, SMALL, on_iteration=whole.append)

    def interrupt(step: Progress) -> None:
        parts.append(step)
        if step.iteration == 13:
            raise KeyboardInterrupt

    parts: list[Progress] = []
    output = tmp_path / "parts.pth"
    with pytest.raises(KeyboardInterrupt):
        train(style, folder, output, vgg, SMALL, on_iteration=interrupt)
    assert load(output).training["iterations_done"] == 13  # usable at once
    with pytest.raises(InputError, match="--resume"):
        train(style, folder, output, vgg, SMALL)
    with pytest.raises(InputError, match=r"seed was 0, is 5"):
        train(style, folder, output, vgg, TrainingSettings(**{**vars(SMALL), "seed": 5}), resume=True)
    second = train(style, folder, output, vgg, SMALL, resume=True, on_iteration=parts.append)
    assert history(parts) == history(whole)
    one, two = first.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (tmp_path / "parts.pth.resume").exists()


def test_a_folder_that_cannot_be_written_is_found_out_before_the_first_step(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    (tmp_path / "file").write_text("in the way")
    steps: list[Progress] = []
    with pytest.raises(InputError, match="cannot write"):
        train(photographs["coffee"], folder, tmp_path / "file" / "a.pth", vgg, SMALL, on_iteration=steps.append)
    assert not steps


def test_it_begins_with_another_checkpoint(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    style, short = photographs["coffee"], replace(SMALL, iterations=2)
    learned = train(style, folder, tmp_path / "learned.pth", vgg, SMALL)
    steps: dict[str, list[Progress]] = {"fresh": [], "warm": []}
    train(style, folder, tmp_path / "fresh.pth", vgg, short, on_iteration=steps["fresh"].append)
    warm = train(
        style, folder, tmp_path / "w.pth", vgg, short, start=tmp_path / "learned.pth", on_iteration=steps["warm"].append
    )
    assert steps["warm"][0].style < 0.5 * steps["fresh"][0].style
    assert warm.training["from"] == "learned.pth"
    assert learned.training.get("from") is None
    with pytest.raises(InputError, match="give the same --width"):
        train(style, folder, tmp_path / "o.pth", vgg, replace(short, width=0.5), start=tmp_path / "learned.pth")


def test_nothing_to_resume(tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, SMALL, resume=True)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_network(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the sixth batch on the loss network returns NaN, as after an overflow."""
    genuine = PerceptualLoss.__call__
    calls = 0

    def poisoned(self: PerceptualLoss, pictures: torch.Tensor, target: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        return genuine(self, pictures * (math.nan if calls > 5 else 1.0), target)

    monkeypatch.setattr(training.PerceptualLoss, "__call__", poisoned)
    with pytest.raises(TrainingError, match=r"iteration 5: the loss is nan.*last good checkpoint"):
        train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, SMALL)
    kept = load(tmp_path / "a.pth")
    assert kept.training["iterations_done"] == 5
    assert all(tensor.isfinite().all() for tensor in kept.network.state_dict().values())


@pytest.mark.parametrize(
    ("setting", "value"), [("width", 0.0), ("iterations", 0), ("batch", -1), ("crop", 100), ("crop", 32)]
)
def test_settings_that_cannot_be(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{setting} is {value}"):
        TrainingSettings(**{setting: value})


def test_the_plan() -> None:
    settings = TrainingSettings(iterations=100, crop=256)
    assert [settings.crop_at(i) for i in (0, 59, 60, 84, 85, 99)] == [128, 128, 192, 192, 256, 256]
    assert settings.work_shares()[60] == pytest.approx(60 / (60 + 25 * 1.5**2 + 15 * 4))
    assert settings.learning_rate_at(0) < settings.learning_rate_at(49) > settings.learning_rate_at(99) > 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_stops_cleanly_and_resumes(
    tmp_path: Path, folder: Path, photographs: dict[str, Path], stop: signal.Signals
) -> None:
    """As a person uses it: a real process, Ctrl-C (or a supervisor's SIGTERM), then --resume."""
    output = tmp_path / "a.pth"
    command = [
        *(str(Path(sys.executable).parent / "nst-train"), "--style", str(photographs["chelsea"])),
        *("--photos", str(folder), "-o", str(output), "--width", "0.125", "--crop", "64", "--batch", "1"),
        *("--iterations", "60", "--every", "3"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, stop)  # as a terminal does: to the whole group
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    done = load(output).training["iterations_done"]
    assert 3 <= done < 60
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert load(output).training["iterations_done"] == 60
    assert "learned from 4 files, of which 1 could not be read" in again.stderr
