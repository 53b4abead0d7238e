import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nst_core.errors import InputError, WriteError
from nst_core.events import EventReader
from nst_core.images import ImageData, fit, open_image, save_image
from nst_trainer.checkpoint import Checkpoint, load, save
from nst_trainer.cli import app
from nst_trainer.images import to_image, to_tensor
from nst_trainer.losses import Losses, PerceptualLoss, border_loss, checkerboard_loss
from nst_trainer.networks import Fast, Johnson, Ulyanov
from nst_trainer.training.artifacts import BORDER_WEIGHT, CHECKERBOARD_WEIGHT, temporal_consistency_loss
from nst_trainer.training.data import Photos
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.loop import Progress, Training
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.step import TrainingError
from nst_trainer.training.validation import Validation
from nst_trainer.vgg import Vgg16

SMALL = TrainingSettings(width=0.25, iterations=30, batch=2, crop=64, style_size=128, learning_rate=5e-3)


@pytest.fixture
def folder(tmp_path: Path, photographs: dict[str, Path]) -> Path:
    """Three photographs and a text file that claims to be a photograph."""
    folder = tmp_path / "photos" / "deeper"
    folder.mkdir(parents=True)
    for name in ("astronaut", "coffee", "rocket"):
        (folder / f"{name}.jpg").symlink_to(photographs[name])
    (folder / "a-broken.jpg").write_text("no photograph")
    return tmp_path / "photos"


def train(
    styles: Path | list[Path],
    photos: Path | None,
    output: Path,
    vgg: Vgg16,
    settings: TrainingSettings,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    **how: Any,
) -> Checkpoint:
    images = [styles] if isinstance(styles, Path) else styles
    return Training(images, photos, output, vgg, settings, **how).run(on_progress)


def history(steps: list[Progress]) -> list[tuple[int, float, float]]:
    return [(step.iteration, step.content, step.style) for step in steps]


def write_former_names(state_file: Path) -> None:
    """Rename settings and loss terms of a saved training to their names in earlier versions."""
    state = torch.load(state_file, weights_only=True)
    state["settings"]["steady"] = state["settings"].pop("temporal_weight")
    state["averages"]["lattice"] = state["averages"].pop("checkerboard")
    state["averages"]["frame"] = state["averages"].pop("border")
    torch.save(state, state_file)


def test_crops_depend_on_their_number_alone(folder: Path) -> None:
    paths = sorted(folder.rglob("*.jpg"))
    readers = [Photos(paths, batch=2, crop_of=lambda i: 64, seed=3, workers=workers) for workers in (1, 3)]
    whole, again = (list(reader.batches(range(6))) for reader in readers)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    later = list(readers[0].batches(range(4, 6)))
    assert torch.equal(later[0], whole[4])
    assert torch.equal(later[1], whole[5])
    assert not torch.equal(whole[0], whole[1])
    assert [path.name for path in readers[1].broken] == ["a-broken.jpg"]
    assert whole[0].shape == (2, 3, 64, 64)
    assert 0 <= whole[0].min() <= whole[0].max() <= 1


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    reader = Photos([tmp_path / "a.jpg"], batch=1, crop_of=lambda i: 64, seed=0, workers=1)
    with pytest.raises(InputError, match="none of the 1 photographs is usable: 1 cannot be read, 0 are one colour"):
        next(reader.batches(range(1)))


def test_pixels_survive_the_way_to_a_tensor_and_back(photographs: dict[str, Path]) -> None:
    image = open_image(photographs["chelsea"])
    assert (to_image(to_tensor(image)).pixels == image.pixels).all()


def test_the_network_learns(tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]) -> None:
    """In thirty steps the style loss falls to under a third, with the real loss network."""
    steps: list[Progress] = []
    output = tmp_path / "out" / "learned.pth"
    result = train(photographs["chelsea"], folder, output, vgg, SMALL, every=10, on_progress=steps.append)
    assert [step.iteration for step in steps] == list(range(1, 31))
    content = to_tensor(open_image(photographs["astronaut"], max_side=128))  # now on the whole image
    loss = PerceptualLoss(vgg, to_tensor(open_image(photographs["chelsea"], max_side=128)), SMALL.loss_weights)
    torch.manual_seed(SMALL.seed)
    with torch.no_grad():
        before, after = (
            loss(network(content), loss.content_target(content)).style.item()
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
    assert again.training["seconds"] > 0
    assert str(tmp_path) not in json.dumps(again.training)  # no path of this machine
    preview = open_image(output.with_name("learned-preview.png"))
    assert preview.width > 2 * 500


def test_resuming_gives_the_uninterrupted_run(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    style = photographs["coffee"]
    whole: list[Progress] = []
    first = train(style, folder, tmp_path / "whole.pth", vgg, SMALL, on_progress=whole.append)

    def interrupt(step: Progress) -> None:
        parts.append(step)
        if step.iteration == 13:
            raise KeyboardInterrupt

    parts: list[Progress] = []
    output = tmp_path / "parts.pth"
    with pytest.raises(KeyboardInterrupt):
        train(style, folder, output, vgg, SMALL, on_progress=interrupt)
    assert load(output).training["iterations_done"] == 13  # usable at once
    with pytest.raises(InputError, match="--resume"):
        train(style, folder, output, vgg, SMALL)
    with pytest.raises(InputError, match=r"seed was 0, is 5"):
        train(style, folder, output, vgg, TrainingSettings(**{**vars(SMALL), "seed": 5}), resume=True)
    state_file = tmp_path / "parts.pth.resume"
    kept = state_file.read_bytes()
    state = torch.load(state_file, weights_only=True)
    del state["stepped by"]  # as a version that learned by Adam left it
    torch.save(state, state_file)
    with pytest.raises(InputError, match=r"started with other settings \(stepped by was None, is SOAP"):
        train(style, folder, output, vgg, SMALL, resume=True)
    state_file.write_bytes(kept)
    write_former_names(state_file)
    second = train(style, folder, output, vgg, SMALL, resume=True, on_progress=parts.append)
    assert history(parts) == history(whole)
    assert second.metrics == first.metrics
    weights, again = first.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not (tmp_path / "parts.pth.resume").exists()


def test_a_folder_that_cannot_be_written_is_found_out_before_the_first_step(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    (tmp_path / "file").write_text("in the way")
    steps: list[Progress] = []
    with pytest.raises(InputError, match="cannot write"):
        train(photographs["coffee"], folder, tmp_path / "file" / "a.pth", vgg, SMALL, on_progress=steps.append)
    assert not steps


def test_it_begins_with_another_checkpoint(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    style, short = photographs["coffee"], replace(SMALL, iterations=2)
    learned = train(style, folder, tmp_path / "learned.pth", vgg, SMALL)
    steps: dict[str, list[Progress]] = {"fresh": [], "warm": [], "wider": []}
    train(style, folder, tmp_path / "fresh.pth", vgg, short, on_progress=steps["fresh"].append)
    warm = train(
        style, folder, tmp_path / "w.pth", vgg, short, start=tmp_path / "learned.pth", on_progress=steps["warm"].append
    )
    assert steps["warm"][0].style < 0.5 * steps["fresh"][0].style
    assert warm.training["from"] == "learned.pth"
    assert learned.training.get("from") is None
    wider = replace(short, width=2 * short.width)
    train(
        style,
        folder,
        tmp_path / "o.pth",
        vgg,
        wider,
        start=tmp_path / "learned.pth",
        on_progress=steps["wider"].append,
    )
    assert steps["wider"][0].style < 0.6 * steps["fresh"][0].style
    with pytest.raises(InputError, match="a larger --width works too"):
        narrower = replace(short, width=0.5 * short.width)
        train(style, folder, tmp_path / "n.pth", vgg, narrower, start=tmp_path / "learned.pth")


def test_it_begins_with_a_network_that_has_other_arguments(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    """As pytorch/examples' networks, which are linear at their end."""
    other = Johnson(width=SMALL.width, blocks=2, bounded=False)
    save(Checkpoint(other, ("mosaic",)), tmp_path / "mosaic.pth")
    settings = replace(SMALL, iterations=1)
    result = train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, settings, start=tmp_path / "mosaic.pth")
    assert result.network.arguments == other.arguments


@pytest.mark.parametrize(
    ("network", "options", "architecture", "width"),
    [
        (Fast(width=0.25), [], "fast", 0.25),
        (Johnson(width=0.125), [], "johnson", 0.125),
        (Johnson(width=0.125), ["--width", "0.25"], "johnson", 0.25),
        (Ulyanov(width=0.5, texture=True), [], "ulyanov", 0.5),
    ],
)
def test_without_arch_and_width_it_has_those_of_the_checkpoint_that_it_starts_from(
    tmp_path: Path,
    photographs: dict[str, Path],
    network: Fast | Johnson | Ulyanov,
    options: list[str],
    architecture: str,
    width: float,
) -> None:
    save(Checkpoint(network, ("other",)), tmp_path / "other.pth")
    output = tmp_path / "new.pth"
    command = [f"--style={photographs['coffee']}", f"--output={output}", "--iterations=1", "--crop=64", "--batch=1"]
    result = CliRunner().invoke(app, [*command, f"--from={tmp_path / 'other.pth'}", *options])
    assert result.exit_code == 0, result.stderr
    assert f"network: {architecture}, width {width:g}, from " in result.stderr
    learned = load(output).network
    assert (learned.name, learned.arguments["width"]) == (architecture, width)
    assert learned.arguments.get("texture") == network.arguments.get("texture")


def test_bfloat16_learns_what_fp32_does(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same steps in both: the losses stay within two percent of each other."""
    losses: dict[torch.dtype, list[float]] = {}
    calm = replace(SMALL, learning_rate=3e-3)  # two paths that part by rounding part faster with longer steps
    for precision in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(Team, "precision", lambda self, chosen=precision: (chosen, "for this test"))
        steps: list[Progress] = []
        train(photographs["coffee"], folder, tmp_path / f"{precision}.pth", vgg, calm, on_progress=steps.append)
        losses[precision] = [step.style + step.content for step in steps]
    assert losses[torch.bfloat16] != losses[torch.float32]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.02)


def test_nothing_to_resume(tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, SMALL, resume=True)


def test_a_loss_that_is_not_finite_stops_with_the_last_check(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the sixth batch on the loss network returns NaN, as after an overflow."""
    genuine = PerceptualLoss.__call__
    calls = 0

    def poisoned(self: PerceptualLoss, images: torch.Tensor, *rest: object) -> object:
        nonlocal calls
        calls += 1
        return genuine(self, images * (math.nan if calls > 5 else 1.0), *rest)

    monkeypatch.setattr(PerceptualLoss, "__call__", poisoned)
    with pytest.raises(TrainingError, match=r"iteration 5: the loss is nan.*continue from the last checkpoint"):
        train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, SMALL)
    assert torch.load(tmp_path / "a.pth.resume", weights_only=True)["iteration"] == 0


def test_a_gradient_that_is_not_finite_stops_too(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root of zero is finite, but its slope is not: training would continue and learn nothing."""
    genuine = PerceptualLoss.__call__

    def steep(self: PerceptualLoss, images: torch.Tensor, *rest: object) -> Losses:
        losses = genuine(self, images, *rest)
        return replace(losses, content=losses.content + (0.0 * images).sqrt().mean())

    monkeypatch.setattr(PerceptualLoss, "__call__", steep)
    with pytest.raises(TrainingError, match=r"iteration 0: the loss is \d.*, the norm of its gradient nan"):
        train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, SMALL)


@pytest.mark.parametrize(
    ("setting", "value"), [("width", 0.0), ("iterations", 0), ("batch", -1), ("crop", 100), ("crop", 32)]
)
def test_settings_that_cannot_be(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{setting} is {value}"):
        TrainingSettings(**{setting: value})


def test_the_plan() -> None:
    settings = TrainingSettings(iterations=100, crop=256)
    assert [settings.crop_at(i) for i in (0, 59, 60, 84, 85, 99)] == [128, 128, 192, 192, 256, 256]
    assert replace(settings, grow=False).crops() == {256: 100}
    assert settings.work_shares()[60] == pytest.approx(60 / (60 + 25 * 1.5**2 + 15 * 4))
    assert settings.learning_rate_at(0) < settings.learning_rate_at(49) > settings.learning_rate_at(99) > 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_stops_cleanly_and_resumes(
    tmp_path: Path, folder: Path, photographs: dict[str, Path], stop: signal.Signals
) -> None:
    """As a user runs it: a real process, Ctrl-C (or a supervisor's SIGTERM), then --resume."""
    output = tmp_path / "a.pth"
    command = [
        str(Path(sys.executable).parent / "nst-train"),
        f"--style={photographs['chelsea']}",
        f"--photos={folder}",
        f"--output={output}",
        "--width=0.125",
        "--crop=64",
        "--batch=1",
        "--iterations=30",
        "--every=3",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, stop)  # as a terminal does: to the whole group
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "Traceback" not in messages
    done = load(output).training["iterations_done"]
    assert 3 <= done < 30
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert load(output).training["iterations_done"] == 30
    assert "trained on 4 photographs; skipped 1 unreadable files and 0 with a crop of one colour" in again.stderr


def test_ctrl_c_waits_for_the_end_of_a_step_and_a_second_one_does_not(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    """In the middle of the optimiser's step: half a step is never written."""
    style, output, short = photographs["coffee"], tmp_path / "a.pth", replace(SMALL, iterations=6)
    whole: list[Progress] = []
    first = train(style, folder, tmp_path / "whole.pth", vgg, short, on_progress=whole.append)

    def stopped(times: int, **how: Any) -> list[Progress]:
        parts: list[Progress] = []
        run = Training([style], folder, output, vgg, short, **how)
        genuine = run.state.optimizer.step

        def interrupted() -> None:
            for _ in range(times if run.state.iteration == 3 else 0):
                os.kill(os.getpid(), signal.SIGINT)
            genuine()

        run.state.optimizer.step = interrupted  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            run.run(parts.append)
        return parts

    stopped(2)
    assert torch.load(f"{output}.resume", weights_only=True)["iteration"] == 0
    assert not output.exists()
    parts = stopped(1, resume=True)
    assert torch.load(f"{output}.resume", weights_only=True)["iteration"] == 4
    second = train(style, folder, output, vgg, short, resume=True, on_progress=parts.append)
    assert history(parts) == [step for step in history(whole) if step[0] != 4]  # its progress was not reported
    weights, again = first.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_full_disk_leaves_the_old_files(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    """A limit on the size of files stands in for the disk."""
    run = Training([photographs["coffee"]], folder, tmp_path / "a.pth", vgg, replace(SMALL, iterations=4), every=2)
    before: list[bytes] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: Progress) -> None:
        if step.iteration == 3:
            before.extend((tmp_path / name).read_bytes() for name in ("a.pth", "a.pth.resume"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    try:
        with pytest.raises(WriteError, match=r"cannot write .*a\.pth: File too large"):
            run.run(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(tmp_path / name).read_bytes() for name in ("a.pth", "a.pth.resume")] == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "a-preview.png",
        "a.pth",
        "a.pth.resume",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--style", "a.png", "--minutes", "1", "--iterations", "9"], "--iterations has no effect with --minutes"),
        (["--add", "a.png", "--to", "b.pth", "--width", "0.5"], "--width has no effect with --add"),
        (["--add", "a.png", "--to", "b.pth", "--from", "c.pth"], "--from has no effect with --add"),
        (
            ["--style", "a.png", "--arch", "ulyanov", "--texture", "--photos", "p"],
            "--photos has no effect for a texture network",
        ),
    ],
)
def test_an_option_without_effect_is_refused(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())


def test_a_killed_training_goes_on_exactly(tmp_path: Path, folder: Path, photographs: dict[str, Path]) -> None:
    """kill -9 leaves the last checkpoint; --resume from it gives the weights of an uninterrupted run."""

    def command(output: Path) -> list[str]:
        return [
            str(Path(sys.executable).parent / "nst-train"),
            f"--style={photographs['chelsea']}",
            f"--photos={folder}",
            f"--output={output}",
            "--width=0.125",
            "--crop=64",
            "--batch=1",
            "--iterations=40",
            "--every=5",
            f"--progress-json={output.with_suffix('.events')}",
        ]

    killed, whole = tmp_path / "a.pth", tmp_path / "b.pth"
    process = subprocess.Popen(command(killed), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not killed.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert 5 <= load(killed).training["iterations_done"] < 40
    for words in ([*command(killed), "--resume"], command(whole)):
        result = subprocess.run(words, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    of_killed, of_whole = (EventReader(output.with_suffix(".events")).read() for output in (killed, whole))
    assert [event["event"] for event in of_killed if event["event"] != "progress"] == ["started", "started", "finished"]
    started, *steps, finished = of_whole
    assert (started["command"], finished["output"], finished["styles"]) == ("nst train", str(whole), ["b"])
    assert {(step["task"], step["total"], step["unit"]) for step in steps} == {("training", 40, "steps")}
    assert (steps[-1]["done"], steps[-1]["fraction"]) == (40, 1.0)
    assert {"iteration", "images_per_second", "style_loss", "content_loss"} <= steps[-1].keys()
    resumed, undisturbed = load(killed), load(whole)
    assert resumed.metrics == undisturbed.metrics
    for name, tensor in resumed.network.state_dict().items():
        assert torch.equal(tensor, undisturbed.network.state_dict()[name]), name


def losses_of(
    network: Any, content: torch.Tensor, style: Path, vgg: Vgg16, style_weights: torch.Tensor | None
) -> float:
    loss = PerceptualLoss(vgg, to_tensor(open_image(style, max_side=128)), SMALL.loss_weights)
    with torch.no_grad():
        return loss(network(content, style_weights), loss.content_target(content)).style.item()


@pytest.fixture(scope="module")
def style_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three clearly different styles: red bars, blue bars across, a green grain."""
    folder = tmp_path_factory.mktemp("style_images")
    across = np.indices((128, 128))[1] // 6 % 2 * 200
    dark = np.full_like(across, 20)
    grain = np.random.default_rng(0).integers(0, 255, (128, 128))
    colors = {"red": (across + 50, dark, dark), "blue": (dark, dark, across.T + 50), "green": (dark, grain, dark)}
    for name, channels in colors.items():
        save_image(ImageData(np.stack(channels, axis=2).astype(np.uint8)), folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in colors}


@pytest.fixture(scope="module")
def gallery(
    tmp_path_factory: pytest.TempPathFactory, style_images: dict[str, Path], photographs: dict[str, Path], vgg: Vgg16
) -> Path:
    """Two styles in one network, a hundred steps each."""
    output = tmp_path_factory.mktemp("gallery") / "gallery.pth"
    styles = [style_images["red"], style_images["blue"]]
    train(styles, photographs["coffee"].parent, output, vgg, replace(SMALL, iterations=200))
    return output


def test_two_styles_do_not_leak_into_each_other(
    gallery: Path, vgg: Vgg16, style_images: dict[str, Path], photographs: dict[str, Path]
) -> None:
    """Each style gives its own image: its loss is under 0.7 of the other style's against it."""
    result = load(gallery)
    assert result.styles == ("red", "blue")
    content = to_tensor(open_image(photographs["astronaut"], max_side=128))
    own, other = torch.eye(2)[:1], torch.eye(2)[1:]
    for style, right, wrong in (("red", own, other), ("blue", other, own)):
        values = [
            losses_of(result.network, content, style_images[style], vgg, style_weights)
            for style_weights in (right, wrong)
        ]
        assert values[0] < 0.7 * values[1], (style, values)


def test_one_more_style_leaves_the_others_as_they_are(
    tmp_path: Path, gallery: Path, vgg: Vgg16, style_images: dict[str, Path], photographs: dict[str, Path]
) -> None:
    output = tmp_path / "more.pth"
    before = load(gallery)
    how = {"add_to": gallery, "on_progress": lambda step: None}
    result = train(style_images["green"], None, output, vgg, replace(SMALL, iterations=40), **how)
    assert result.styles == ("red", "blue", "green")
    assert result.training["before"]["style_images"] == ["red.png", "blue.png"]
    after = load(output)
    content = to_tensor(open_image(photographs["astronaut"], max_side=128))
    with torch.no_grad():
        for style in range(2):
            old = before.network(content, torch.eye(2)[style][None])
            assert torch.equal(after.network(content, torch.eye(3)[style][None]), old)
    changed = {
        name
        for name, tensor in before.network.state_dict().items()
        if not torch.equal(after.network.state_dict()[name][: len(tensor)], tensor)
    }
    assert not changed
    mean = torch.tensor([[0.5, 0.5, 0.0]])  # what the new style began as
    new, began = (
        losses_of(after.network, content, style_images["green"], vgg, style_weights)
        for style_weights in (torch.eye(3)[2:], mean)
    )
    assert new < 0.75 * began
    with pytest.raises(InputError, match="two styles would be named green"):
        train(style_images["green"], None, tmp_path / "again.pth", vgg, SMALL, add_to=output)


def test_styles_added_are_written_at_the_end_only(
    tmp_path: Path, gallery: Path, vgg: Vgg16, style_images: dict[str, Path], photographs: dict[str, Path]
) -> None:
    """A stop in the middle leaves the gallery as it was; --resume finishes."""
    output = tmp_path / "gallery.pth"
    output.write_bytes(gallery.read_bytes())

    def interrupt(step: Progress) -> None:
        if step.iteration == 3:
            raise KeyboardInterrupt

    short = replace(SMALL, iterations=6)
    with pytest.raises(KeyboardInterrupt):
        train(style_images["green"], None, output, vgg, short, add_to=output, every=2, on_progress=interrupt)
    assert output.read_bytes() == gallery.read_bytes()
    train(style_images["green"], None, output, vgg, short, add_to=output, resume=True)
    assert load(output).styles == ("red", "blue", "green")


def test_ulyanovs_network_learns_to_stylise(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    settings = replace(SMALL, arch="ulyanov", width=1.0, iterations=40)
    result = train(photographs["chelsea"], folder, tmp_path / "u.pth", vgg, settings)
    torch.manual_seed(settings.seed)
    content = to_tensor(fit(open_image(photographs["astronaut"]), 128, 128))
    after, before = (
        losses_of(network, content, photographs["chelsea"], vgg, None) for network in (result.network, Ulyanov())
    )
    assert after < before / 2.5
    assert load(tmp_path / "u.pth").network.name == "ulyanov"


def test_the_fast_network_learns_from_a_teacher_and_then_by_itself(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    """It learns the teacher's images on half-size crops, and with the loss network on the larger crops."""
    train(photographs["chelsea"], folder, tmp_path / "teacher.pth", vgg, SMALL)
    settings = replace(SMALL, arch="fast", width=0.5, iterations=60, crop=128)
    steps: list[Progress] = []
    how = {"teacher": tmp_path / "teacher.pth", "on_progress": steps.append}
    result = train(photographs["chelsea"], folder, tmp_path / "pupil.pth", vgg, settings, **how)
    distillation = [step.distillation for step in steps]
    assert distillation[35] < distillation[0] / 2
    assert distillation[36:] == [0.0] * 24
    assert all((step.style > 0) == (step.distillation == 0) for step in steps)
    torch.manual_seed(settings.seed)
    content = to_tensor(fit(open_image(photographs["astronaut"]), 128, 128))
    after, before = (
        losses_of(network, content, photographs["chelsea"], vgg, None) for network in (result.network, Fast(width=0.5))
    )
    assert after < before / 2.5
    assert result.training["teacher"] == "teacher.pth"
    assert load(tmp_path / "pupil.pth").network.arguments == {"width": 0.5, "blocks": 4, "styles": 1}
    both = [photographs["chelsea"], photographs["coffee"]]
    with pytest.raises(InputError, match=r"teacher\.pth has 1 styles and the new network 2"):
        train(both, folder, tmp_path / "two.pth", vgg, settings, teacher=tmp_path / "teacher.pth")
    with pytest.raises(InputError, match="small crops"):
        train(both[0], folder, tmp_path / "n.pth", vgg, replace(settings, grow=False), teacher=tmp_path / "teacher.pth")


def test_a_texture_network_learns_and_samples(tmp_path: Path, vgg: Vgg16, style_images: dict[str, Path]) -> None:
    """Its samples differ with the seed and are equal for the same seed; they tile."""
    settings = replace(SMALL, arch="ulyanov", texture=True, width=1.0, iterations=50)
    output = tmp_path / "texture.pth"
    result = train(style_images["red"], None, output, vgg, settings)
    empty = torch.zeros(1, 3, 128, 128)
    torch.manual_seed(settings.seed)
    fresh = Ulyanov(texture=True)

    def sample(network: Ulyanov, seed: int) -> torch.Tensor:
        with torch.no_grad():
            return network(empty, None, network.draw_noise(empty, torch.Generator().manual_seed(seed)))

    loss = PerceptualLoss(vgg, to_tensor(open_image(style_images["red"], max_side=128)), settings.loss_weights)
    with torch.no_grad():
        after, before = (loss(sample(network, 1), {}).style.item() for network in (result.network, fresh))
    assert after < before / 3
    command = [str(Path(sys.executable).parent / "nst"), "texture", str(output), "--shape", "96x64"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        subprocess.run([*command, "-o", str(tmp_path / f"{name}.png"), "--seed", str(seed)], check=True)
    a, b, c = (open_image(tmp_path / f"{name}.png").pixels.astype(float) for name in "abc")
    assert a.shape == (64, 96, 3)
    assert (a == b).all()
    assert abs(a - c).mean() > 5
    seam, inside = abs(a[:, 0] - a[:, -1]).mean(), abs(a[:, 40] - a[:, 41]).mean()
    assert seam < 3 * inside


def test_a_temporally_consistent_network_changes_less(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    style, content = photographs["chelsea"], to_tensor(fit(open_image(photographs["rocket"]), 128, 96))
    values = []
    for temporal_weight in (0.0, 1000.0):
        settings = replace(SMALL, temporal_weight=temporal_weight)
        network = train(style, folder, tmp_path / f"{temporal_weight}.pth", vgg, settings).network
        with torch.no_grad():
            stylized = network(content)
            values.append(
                sum(
                    temporal_consistency_loss(
                        network, content, stylized, None, torch.Generator().manual_seed(seed)
                    ).item()
                    for seed in range(4)
                )
            )
    assert values[1] < 0.6 * values[0]


def test_tensorboard_gets_losses_by_layer_and_images(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, SMALL, every=15, log=tmp_path / "log")
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    tags = events.Tags()
    assert {"training/content", "training/style relu4_3", "held out/total"} <= set(tags["scalars"])
    assert tags["images"] == ["held out"]
    assert [point.step for point in events.Scalars("held out/total")] == [15, 30]


def test_the_best_on_held_out_photographs_is_kept(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From iteration 20 on the validation loss is higher, so the network of iteration 10 is the result."""
    weights: list[dict[str, torch.Tensor]] = []
    genuine = Validation.__call__

    def worse(self: Validation, network: Johnson) -> object:
        losses, stylized = genuine(self, network)
        weights.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return losses | {"objective": float(len(weights))}, stylized

    monkeypatch.setattr(Validation, "__call__", worse)
    result = train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, SMALL, every=10)
    assert result.training["best_iteration"] == 10
    assert result.training["iterations_done"] == 30
    for name, tensor in load(tmp_path / "a.pth").network.state_dict().items():
        assert torch.equal(tensor, weights[0][name].half().float()), name


def test_validation_has_every_term_that_is_minimised(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    """Without the temporal loss it would keep the less steady of two networks, without the border's one with bands."""
    settings = replace(SMALL, iterations=2, temporal_weight=1000.0)
    metrics = train(photographs["coffee"], folder, tmp_path / "a.pth", vgg, settings).metrics
    terms = ("content", "style", "total_variation", "checkerboard", "border", "temporal")
    assert all(metrics[f"held out {term}"] > 0 for term in terms)
    assert metrics["held out objective"] == pytest.approx(sum(metrics[f"held out {term}"] for term in terms))
    assert metrics["held out total"] == pytest.approx(sum(metrics[f"held out {term}"] for term in terms[:3]))


def test_two_processes_give_the_gradients_of_one(tmp_path: Path, folder: Path, photographs: dict[str, Path]) -> None:
    """torchrun, gloo, half of the batch each: the gradients equal those of one process, up to rounding."""
    gradients = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.pt"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            *map(str, (Path(__file__).with_name("gradients.py"), photographs["chelsea"], folder, output)),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        gradients.append(torch.load(output, weights_only=True))
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() < 1e-3 * gradient.norm(), name
    wrong = Team(rank=0, size=3)
    with pytest.raises(InputError, match="multiple of 3, the number of processes"):
        wrong.part(4)


def test_a_teams_mean_gradient_is_the_whole_batchs(folder: Path, vgg: Vgg16, photographs: dict[str, Path]) -> None:
    """Its arithmetic without processes: the averaged gradients of two halves, compared with the whole batch's."""
    torch.manual_seed(0)
    network = Johnson(width=0.25)
    style = to_tensor(open_image(photographs["coffee"], max_side=96))
    loss = PerceptualLoss(vgg, style, SMALL.loss_weights)
    batch = next(Photos(sorted(folder.rglob("*.jpg")), batch=4, crop_of=lambda i: 64, seed=0).batches(range(1)))

    def gradient(images: torch.Tensor) -> torch.Tensor:
        stylized = network(images)
        total = loss(stylized, loss.content_target(images)).total + CHECKERBOARD_WEIGHT * checkerboard_loss(stylized)
        total = total + BORDER_WEIGHT * border_loss(stylized, images)
        return torch.cat([values.flatten() for values in torch.autograd.grad(total, list(network.parameters()))])

    whole, halves = gradient(batch), (gradient(batch[:2]) + gradient(batch[2:])) / 2
    assert (whole - halves).norm() < 1e-3 * whole.norm()


@pytest.mark.gpu
def test_it_trains_on_the_gpu_in_mixed_precision(
    tmp_path: Path, folder: Path, vgg: Vgg16, photographs: dict[str, Path]
) -> None:
    steps: list[Progress] = []
    team = Team(device=torch.device("cuda"))
    train(photographs["chelsea"], folder, tmp_path / "a.pth", vgg, SMALL, team=team, on_progress=steps.append)
    assert steps[-1].style < steps[0].style / 2
