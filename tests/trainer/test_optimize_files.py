import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from nst_core.errors import InputError
from nst_core.images import ImageData, open_image, save_image
from nst_trainer.cli import optimize_app, texture_app
from nst_trainer.losses import PerceptualLoss
from nst_trainer.optimization import memory
from nst_trainer.optimization.files import optimize_files
from nst_trainer.optimization.lbfgs import Lbfgs
from nst_trainer.optimization.masks import read_masks
from nst_trainer.optimization.memory import check_memory
from nst_trainer.optimization.settings import preset
from nst_trainer.weights import vgg16_weights

CPU = torch.device("cpu")
SMALL = ["--size", "64", "--scales", "2", "--coarse-iterations", "6", "--iterations", "8"]


def test_optimize_writes_an_image_a_trace_and_a_plot(tmp_path: Path, photographs: dict[str, Path]) -> None:
    output, trace = tmp_path / "a.png", tmp_path / "trace.json"
    command = [str(photographs["coffee"]), str(photographs["chelsea"]), str(photographs["rocket"])]
    result = CliRunner().invoke(
        optimize_app, [*command, "-o", str(output), *SMALL, "--style-blend-weights", "2,1", "--trace", str(trace)]
    )
    assert result.exit_code == 0, result.output
    assert (open_image(output).width, open_image(output).height) == (64, 43)
    points = json.loads(trace.read_text())["iterations"]
    assert [point["iteration"] for point in points] == list(range(1, 15))
    assert [point["width"] for point in points] == [45] * 6 + [64] * 8
    assert all(
        point["total"] == pytest.approx(point["content"] + point["style"] + point["total_variation"])
        for point in points
    )
    assert open_image(tmp_path / "trace.png").width > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "trace.json", "trace.png"]


def test_a_texture_of_the_size_that_was_asked_for(tmp_path: Path, photographs: dict[str, Path]) -> None:
    output = tmp_path / "t.webp"
    command = [str(photographs["chelsea"]), "-o", str(output), "--shape", "96x48", "--iterations", "3", "--tileable"]
    result = CliRunner().invoke(texture_app, [*command, "--style-scale", "1"])
    assert result.exit_code == 0, result.output
    assert (open_image(output).width, open_image(output).height) == (96, 48)


def test_ctrl_c_writes_the_best_so_far_and_resume_goes_on(tmp_path: Path, photographs: dict[str, Path]) -> None:
    """As a person uses it; the resumed run ends with the image of an uninterrupted run."""
    nst = str(Path(sys.executable).parent / "nst")
    given = ["optimize", str(photographs["coffee"]), str(photographs["chelsea"]), "--preset", "johnson2016-baseline"]
    given += ["--size", "96", "--iterations", "60", "--save-every", "2"]
    output, whole = tmp_path / "a.png", tmp_path / "whole.png"
    process = subprocess.Popen([nst, *given, "-o", str(output)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "with --resume to continue" in messages
    assert open_image(output).width == 96
    assert (tmp_path / "a.png.resume").exists()
    again = CliRunner().invoke(optimize_app, [*given[1:], "-o", str(output)])
    assert "continue it with --resume, or remove it" in again.stderr
    other = CliRunner().invoke(optimize_app, [*given[1:], "-o", str(output), "--resume", "--seed", "4"])
    assert "seed was 0, is 4" in other.stderr
    for command in ([*given, "-o", str(output), "--resume"], [*given, "-o", str(whole)]):
        result = subprocess.run([nst, *command], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert np.array_equal(open_image(output).pixels, open_image(whole).pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "whole.png"]


def test_a_state_of_another_version_is_refused(tmp_path: Path, photographs: dict[str, Path]) -> None:
    state = tmp_path / "a.png.resume"
    torch.save({"settings": {}, "run": {}, "points": []}, state)
    command = [str(photographs["coffee"]), str(photographs["chelsea"]), "-o", str(tmp_path / "a.png")]
    result = CliRunner().invoke(optimize_app, [*command, *SMALL, "--resume"])
    assert result.exit_code != 0
    assert f"{state} was written by another version of nst" in " ".join(result.stderr.split())


@pytest.mark.parametrize("app", [optimize_app, texture_app])
def test_the_device_is_shown_with_its_reason(
    app: typer.Typer, tmp_path: Path, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [str(photographs["coffee"]), *([str(photographs["chelsea"])] if app is optimize_app else [])]
    command += ["-o", str(tmp_path / "a.png"), "--iterations", "1", *(["--size", "32"] if app is optimize_app else [])]
    for wanted, reason in (("cpu", "device cpu: chosen with --device cpu"), ("auto", "device cpu: ")):
        result = CliRunner().invoke(app, [*command, "--device", wanted])
        assert result.exit_code == 0, result.output
        assert reason in result.stderr
    result = CliRunner().invoke(app, [*command, "--device", "gpu"])
    assert result.exit_code != 0
    assert "--device gpu: " in result.stderr and "use --device cpu" in " ".join(result.stderr.split())


def test_regions_are_found_by_colour(tmp_path: Path) -> None:
    colors = np.zeros((4, 6, 3), np.uint8)
    colors[:, 3:] = (255, 0, 0)
    Image.fromarray(colors).save(tmp_path / "content.png")
    Image.fromarray(colors[:, ::-1]).save(tmp_path / "style.png")
    content, (style,) = read_masks(tmp_path / "content.png", [tmp_path / "style.png"])
    assert content.shape == (2, 1, 4, 6)
    assert content[0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert style[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    Image.fromarray(colors[:, :2]).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="lacks the colour #ff0000"):
        read_masks(tmp_path / "content.png", [tmp_path / "small.png"])


def test_a_photograph_is_no_mask(photographs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="at most 16"):
        read_masks(photographs["coffee"], [])


def test_a_size_beyond_memory_is_refused_with_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 4 * 2**30)
    with pytest.raises(InputError, match=r"use --size (\d+) or smaller, or add --low-memory") as error:
        check_memory(preset("best", {"size": 4000}), (3000, 4000), CPU)
    largest = int(str(error.value).split("use --size ")[1].split()[0])
    check_memory(preset("best", {"size": largest}), (3000, 4000), CPU)
    with pytest.raises(InputError):
        check_memory(preset("best", {"size": largest + 32}), (3000, 4000), CPU)
    check_memory(preset("best", {"size": largest + 32, "low_memory": True}), (3000, 4000), CPU)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "worst"], "--preset is 'worst'; choose from best"),
        (["--style-blend-weights", "1,2,3"], "one weight per style"),
        (["--style-blend-weights", "a"], "--style-blend-weights is 'a'; give numbers"),
        (["--content-mask", "m.png"], "--style-mask once per style image"),
        (["--init", "nowhere.png"], "nowhere.png: no such file"),
        (["--style-layers", "relu9_9"], "has no layer relu9_9"),
        (["--optimizer", "sgd"], "sgd"),
        (["--size", "0"], "size is 0"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, photographs: dict[str, Path], options: list[str], words: str
) -> None:
    image = tmp_path / "p.png"
    save_image(ImageData(np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3)), image)
    result = CliRunner().invoke(optimize_app, [*[str(image)] * 3, "-o", str(tmp_path / "a.png"), *options])
    assert result.exit_code != 0
    assert words in result.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("app", "options", "words"),
    [
        (texture_app, ["a.png", "--size", "64"], "--size has no effect for a texture, whose width"),
        (texture_app, ["a.png", "--content-weight", "1"], "--content-weight has no effect for a texture"),
        (texture_app, ["a.pth", "--tileable"], "--tileable has no effect for a trained network (a.pth)"),
        (texture_app, ["a.pth", "--resume"], "--resume has no effect for a trained network"),
        (texture_app, ["a.model", "--preset", "best"], "--preset has no effect for a trained network (a.model)"),
        (texture_app, ["a.pt", "--iterations", "9"], "--iterations has no effect for a trained network"),
        (optimize_app, ["a.png", "b.png", "--learning-rate", "1"], "--learning-rate has no effect with --optimizer lb"),
        (optimize_app, ["a.png", "b.png", "--optimizer", "adam", "--step", "1"], "--step has no effect with --optim"),
        (optimize_app, ["a.png", "b.png", "--coarse-iterations", "9"], "--coarse-iterations has no effect with --sca"),
        (optimize_app, ["a.png", "b.png", "--seed", "9"], "--seed has no effect with --init recolored"),
        (
            optimize_app,
            ["a.png", "b.png", "--style-blend-weights", "1"],
            "--style-blend-weights has no effect with one style",
        ),
    ],
)
def test_an_option_without_effect_is_refused(app: typer.Typer, options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, [*options, "-o", "o.png"])
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())


def test_the_second_ctrl_c_saves_nothing(
    tmp_path: Path, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in the middle of a step of L-BFGS: the image has moved, and its history has not."""
    genuine = Lbfgs.step

    def interrupted(self: Lbfgs) -> None:
        if int(self.taken) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        genuine(self)

    monkeypatch.setattr(Lbfgs, "step", interrupted)
    settings = preset("best", {"size": 64, "iterations": 4})
    with pytest.raises(KeyboardInterrupt):
        optimize_files(photographs["coffee"], [photographs["chelsea"]], tmp_path / "a.png", settings, vgg16_weights())
    assert not list(tmp_path.iterdir())


def test_ctrl_c_between_two_sizes_can_be_resumed(
    tmp_path: Path, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loss of the larger size is made: the state is of one size."""
    given = (photographs["coffee"], [photographs["chelsea"]])
    settings = preset("best", {"size": 64, "scales": 2, "iterations": 3, "coarse_iterations": 3})
    optimize_files(*given, tmp_path / "whole.png", settings, vgg16_weights())
    with monkeypatch.context() as patch:
        genuine, scales = PerceptualLoss.content_target, []

        def interrupted(self: PerceptualLoss, content: torch.Tensor) -> dict[str, torch.Tensor]:
            scales.append(content.shape)
            if len(scales) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return genuine(self, content)

        patch.setattr(PerceptualLoss, "content_target", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimize_files(*given, tmp_path / "a.png", settings, vgg16_weights())
    optimize_files(*given, tmp_path / "a.png", settings, vgg16_weights(), resume=True)
    assert np.array_equal(open_image(tmp_path / "a.png").pixels, open_image(tmp_path / "whole.png").pixels)
