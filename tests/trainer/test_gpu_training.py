"""`dev/gpu_training.py`: everything for a GPU that is there for minutes, rehearsed on a CPU."""

import importlib.util
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nst_core.images import fit, open_image, save_image
from nst_core.shipped import shipped_styles
from nst_trainer.checkpoint import load
from nst_trainer.cuda_graph import CudaGraphReplay
from nst_trainer.training import step as steps

SCRIPT = Path(__file__).parents[2] / "dev" / "gpu_training.py"
STYLES = shipped_styles()["gallery"].styles


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in an empty folder."""
    found = importlib.util.spec_from_file_location("gpu_training", SCRIPT)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(__import__("sys").modules, "gpu_training", module)  # dataclasses look for their module
    found.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    return module


@pytest.fixture
def packed(queue: ModuleType, tmp_path: Path, photographs: dict[str, Path]) -> Path:
    """The pack of four photographs, three flowers and ten styles that are four photographs."""
    pictures = list(photographs.values())
    for folder in ("photos", "styles"):
        (tmp_path / folder).mkdir()
    for path in pictures:
        save_image(fit(open_image(path), 320, 300), tmp_path / "photos" / f"{path.stem}.png")
    for number in range(3):
        save_image(fit(open_image(pictures[0]), 300, 300), tmp_path / "photos" / f"flowers_{number}.png")
    (tmp_path / "photos" / "broken.jpg").write_text("no photograph")
    for number, name in enumerate(STYLES):
        save_image(fit(open_image(pictures[number % len(pictures)]), 128, 96), tmp_path / "styles" / f"{name}.png")
    queue.main("pack", "photos", "styles")
    return tmp_path / ".gpu-training"


def test_a_pack_holds_what_a_bare_machine_lacks(
    queue: ModuleType, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The photographs, of flowers one in three; the styles at their size; the loss network without its last block."""
    queue.main("pack", "photos", "styles")
    printed = capsys.readouterr().out
    assert "skipped" in printed
    assert "broken.jpg" in printed
    assert "packed .gpu-training" in printed
    with tarfile.open(packed / "photos.tar") as archive:
        names = archive.getnames()
    assert "flowers_2.webp" in names
    assert len(names) == 5
    assert sorted(path.stem for path in (packed / "styles").iterdir()) == sorted(STYLES)
    assert "conv4_3.weight" in torch.load(packed / "vgg16.pth", weights_only=True)
    assert sum(path.stat().st_size for path in packed.rglob("*") if path.is_file()) < 40e6


def test_batches_of_decoded_photographs_depend_on_their_number_alone(queue: ModuleType) -> None:
    pixels = torch.randint(0, 256, (5, 3, 96, 96), dtype=torch.uint8)
    photos = queue.DecodedPhotos(pixels, batch=2, crop=64, seed=1)
    whole = list(photos.batches(range(6)))
    later = list(queue.DecodedPhotos(pixels, batch=2, crop=64, seed=1).batches(range(4, 6)))
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], later, strict=True))
    assert whole[0].shape == (2, 3, 64, 64)
    assert 0.0 <= min(float(batch.min()) for batch in whole) <= max(float(batch.max()) for batch in whole) <= 1.0
    seen = [number for epoch in (0, 1) for number in photos._order(epoch)]
    assert sorted(seen) == sorted([*range(5)] * 2)


def test_every_shipped_style_is_trained_from_what_ships(queue: ModuleType, packed: Path, tmp_path: Path) -> None:
    """Every job can begin: its styles, its network and its checkpoint fit."""
    queue.decode(tmp_path / queue.PHOTOS)
    ships = [name for name, style in shipped_styles().items() if style.network != "ulyanov"]
    assert sorted(job.name for job in queue.JOBS) == sorted(ships)
    for job in queue.JOBS:
        training = queue.training_of(job, tmp_path, queue.Team(), None, 2, captured=False)
        before = load(Path(job.name)).network.state_dict()
        for name, values in training.state.network.state_dict().items():
            torch.testing.assert_close(values, before[name])


def test_a_rehearsal_leaves_checkpoints_and_logs_and_the_next_goes_on_from_them(
    queue: ModuleType, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = next(job for job in queue.JOBS if job.name == "great-wave-fast")
    monkeypatch.setattr(queue, "JOBS", [job])
    queue.main("rehearse", "runs/gpu-training")
    with tarfile.open(tmp_path / "runs/gpu-training/checkpoints.tar") as archive:
        assert archive.getnames() == ["great-wave-fast.pth"]
    with tarfile.open(tmp_path / "runs/gpu-training/logs.tar") as archive:
        assert archive.getnames() == ["great-wave-fast-preview.png", "great-wave-fast.log"]
        log = archive.extractfile("great-wave-fast.log")
        assert log is not None
        assert b"2 iterations" in log.read()
    assert [path.name for path in (tmp_path / "runs/gpu-training").iterdir()] == ["checkpoints.tar", "logs.tar"]
    queue.main("pack", "photos", "styles")
    trained = load(packed / "start" / "great-wave-fast.pth")
    assert trained.training["photos"] == 5
    assert json.dumps(trained.training["iterations_done"]) == "2"
    queue.decode(tmp_path / queue.PHOTOS)
    training = queue.training_of(job, tmp_path, queue.Team(), None, 2, captured=False)
    for name, values in training.state.network.state_dict().items():
        assert torch.equal(values, trained.network.state_dict()[name]), name


@pytest.mark.parametrize("fails", [False, True])
def test_graphs_are_compared_with_plain_steps_and_left_out_if_they_fail(
    queue: ModuleType,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: bool,
) -> None:
    class Replayed(CudaGraphReplay):
        """A stand-in for a GPU's graph."""

        def warm_up(self) -> None:
            self.work()

        def capture(self) -> Callable[[], None]:
            if fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            return self.work

    monkeypatch.setattr(steps, "CudaGraphReplay", Replayed)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    queue.decode(tmp_path / queue.PHOTOS)
    job = next(job for job in queue.JOBS if job.name == "starry-night-fast")
    training = queue.training_of(job, tmp_path, queue.Team(), None, 2, captured=False)
    assert queue.graphs_agree(training, count=3) is not fails
    assert ("stream is capturing" if fails else "the same") in capsys.readouterr().out
