"""Blank images among the photographs, steps that come to nothing, and what is kept then."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nst_core.errors import InputError
from nst_core.images import ImageData, fit, open_image, save_image
from nst_trainer.checkpoint import load
from nst_trainer.cli import app, optimize_app, texture_app
from nst_trainer.networks import ARCHITECTURES
from nst_trainer.training import data as reading
from nst_trainer.training.data import Photos
from nst_trainer.training.loop import Training
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.soap import Soap, soap
from nst_trainer.training.step import CLIP_RATIO, TrainingError
from nst_trainer.vgg import Vgg16

SMALL = TrainingSettings(width=0.25, iterations=12, batch=2, crop=64, style_size=96)
BLANK = {"white": (255, 255, 255), "black": (0, 0, 0), "red": (200, 10, 10)}
NEARLY = {"one-level": 1, "spot": 40}
"""By how much of 255 some pixels differ from the rest."""


def save(pixels: np.ndarray, path: Path) -> None:
    save_image(ImageData(pixels.astype(np.uint8)), path)


@pytest.fixture
def folder(tmp_path: Path, photographs: dict[str, Path]) -> Path:
    """Four photographs, three blank images and two nearly blank ones."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, path in photographs.items():
        save(fit(open_image(path), 96, 96).pixels, folder / f"{name}.png")
    for name, color in BLANK.items():
        save(np.full((96, 96, 3), color), folder / f"{name}.png")
    for name, levels in NEARLY.items():
        pixels = np.full((96, 96, 3), 255)
        pixels[40:44, 50:54] -= levels
        save(pixels, folder / f"{name}.png")
    return folder


HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "temporal": {"temporal_weight": 100.0},
    "style alone": {"content_weight": 0.0, "tv_weight": 0.0},
    "much": {"content_weight": 1e-2, "style_weight": 1e4},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_blank_images_among_the_photographs_end_no_training(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path], arch: Any, how: str
) -> None:
    settings = replace(SMALL, arch=arch, **HOW[how])
    training = Training([photographs["chelsea"]], folder, tmp_path / "a.pth", vgg, settings)
    losses = [step.style + step.content for step in training.steps()]
    assert len(losses) == 12
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert all(values.isfinite().all() for values in training.state.network.state_dict().values())
    assert set(BLANK) <= {path.stem for path in training.reader.blank} <= {*BLANK, "one-level"}
    assert "spot" not in {path.stem for path in training.reader.blank}


def test_one_blank_image_in_thirty(tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path]) -> None:
    """As a person uses it: the command names the file once, and its checkpoint says how many there were."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(29):
        (folder / f"{number}.jpg").symlink_to([*photographs.values()][number % 4])
    save(np.full((200, 300, 3), 255), folder / "page.png")
    (folder / "new.jxl").write_bytes(b"")
    command = ["--style", str(photographs["chelsea"]), "--photos", str(folder), "-o", str(tmp_path / "a.pth")]
    options = ["--width", "0.125", "--crop", "64", "--batch", "2", "--iterations", "20", "--arch", "fast"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    output = " ".join(result.stderr.split())
    assert output.count("1 file was not read: 1 .jxl") == 1
    assert output.count("page.png: has a crop of one colour") == 1
    assert "skipped 0 unreadable files and 1 with a crop of one colour" in output
    assert load(tmp_path / "a.pth").training["blank"] == 1


def test_nothing_but_blank_images_is_one_error(tmp_path: Path) -> None:
    for name, color in BLANK.items():
        save(np.full((80, 80, 3), color), tmp_path / f"{name}.png")
    reader = Photos(sorted(tmp_path.glob("*.png")), batch=1, crop_of=lambda i: 64, seed=0)
    with pytest.raises(
        InputError, match="none of the 3 photographs is usable: 0 cannot be read, 3 are one colour all over"
    ):
        next(reader.batches(range(1)))


def test_a_blank_style_is_refused(tmp_path: Path, photographs: dict[str, Path]) -> None:
    white = tmp_path / "white.png"
    noise = np.random.default_rng(0).integers(0, 2, (64, 64, 3))  # as JPEG's compression leaves it
    save(np.full((64, 64, 3), 254) + noise, white)
    output, photo = str(tmp_path / "a.png"), str(photographs["coffee"])
    for command, words in (
        (app, ["--style", str(white), "-o", str(tmp_path / "a.pth")]),
        (optimize_app, [photo, str(white), "-o", output, "--size", "64"]),
        (texture_app, [str(white), "-o", output, "--shape", "64x64"]),
    ):
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 1
        assert "white.png is one colour all over and has no style" in " ".join(result.stderr.split())


def test_a_blank_content_image_is_stylized(tmp_path: Path, photographs: dict[str, Path]) -> None:
    save(np.full((48, 64, 3), 0), tmp_path / "black.png")
    for colors in ("style", "luminance", "histogram"):
        command = [str(tmp_path / "black.png"), str(photographs["chelsea"]), "-o", str(tmp_path / f"{colors}.png")]
        result = CliRunner().invoke(optimize_app, [*command, "--size", "64", "--iterations", "3", "--colors", colors])
        assert result.exit_code == 0, result.output


def test_a_gradient_far_longer_than_the_last_ones_is_shortened(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    """The seventh is a million times too long; what SOAP sees of it is ten times the mean of those before."""
    training = Training([photographs["chelsea"]], None, tmp_path / "a.pth", vgg, SMALL)
    genuine, seen = training.objective, []

    def steep(*given: Any, **how: Any) -> Any:
        total, terms = genuine(*given, **how)
        return total * (1e6 if training.state.iteration == 6 else 1.0), terms

    training.objective = steep
    step = training.state.optimizer.step

    def watched() -> Any:
        gradients = [values.grad for values in training.state.network.parameters() if values.grad is not None]
        seen.append((torch.nn.utils.get_total_norm(gradients).item(), training.state.gradient_norm))
        return step()

    training.state.optimizer.step = watched  # type: ignore[method-assign, assignment]
    losses = [progress.style for progress in training.steps()]
    length, mean = seen[6]
    assert mean is not None
    assert length == pytest.approx(CLIP_RATIO * mean, rel=1e-3)
    assert all(map(math.isfinite, losses))


def test_a_step_that_is_not_finite_changes_neither_network_nor_files(
    tmp_path: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    """Not even by momentum; then --resume goes on from the last check, with a lower learning rate too."""
    output = tmp_path / "a.pth"
    training = Training([photographs["chelsea"]], None, output, vgg, SMALL, every=4)
    genuine = training.objective
    kept: dict[Any, Any] = {}

    def poisoned(*given: Any, **how: Any) -> Any:
        total, terms = genuine(*given, **how)
        if training.state.iteration == 6:
            weights = {name: values.clone() for name, values in training.state.network.state_dict().items()}
            kept.update(weights=weights, files=[output.read_bytes(), training.state_file.read_bytes()])
            return total * math.nan, terms
        return total, terms

    training.objective = poisoned
    with pytest.raises(TrainingError, match=r"iteration 6: the loss is nan.*--resume --learning-rate 0\.0015 \(it was"):
        training.run()
    for name, values in training.state.network.state_dict().items():
        assert torch.equal(values, kept["weights"][name]), name
    assert [output.read_bytes(), training.state_file.read_bytes()] == kept["files"]
    assert load(output).training["iterations_done"] == 4
    lower = replace(SMALL, learning_rate=SMALL.learning_rate / 2)
    again = Training([photographs["chelsea"]], None, output, vgg, lower, resume=True)
    assert again.settings.learning_rate == SMALL.learning_rate / 2
    assert again.run().training["iterations_done"] == 12


def test_soap_goes_on_without_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAPACK may give up on a matrix; the bases stay what they are."""
    network = ARCHITECTURES["fast"](width=0.25)
    optimizer = soap(network, 1e-3)

    def fails(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: failed to converge")  # type: ignore[attr-defined]

    def step() -> None:
        optimizer.zero_grad()
        network(torch.rand(1, 3, 32, 32)).square().mean().backward()
        optimizer.step()

    for broken in ("eigh", "qr"):
        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, broken, fails)
            for _ in range(12):
                step()
    assert isinstance(optimizer, Soap)
    assert all(values.isfinite().all() for values in network.state_dict().values())


def test_threads_may_ask_for_an_epochs_order_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads across many epochs of two photographs, and Python switches between them all the time."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    dots = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    monkeypatch.setattr(reading, "read_crop", lambda path, size, choice: dots)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        reader = Photos(paths, batch=64, crop_of=lambda i: 64, seed=0, workers=8)
        assert sum(len(batch) for batch in reader.batches(range(40))) == 64 * 40
    finally:
        sys.setswitchinterval(before)
