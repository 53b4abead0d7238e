import json
import os
import re
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from nst_trainer.checkpoint import FORMAT, Checkpoint, CheckpointError, load, read_plain_data, save


def document(checkpoint: Checkpoint, **changes: object) -> dict[str, object]:
    network = checkpoint.network
    architecture = {"name": network.name, "arguments": network.arguments}
    return {
        "format": FORMAT,
        "architecture": architecture,
        "styles": ["seven"],
        "state_dict": network.state_dict(),
        **changes,
    }


def test_a_round_trip_keeps_all_but_the_second_half_of_the_digits(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    save(small_checkpoint, tmp_path / "a.pth")
    again = load(tmp_path / "a.pth")
    assert again.styles == ("seven",)
    assert again.training == {"style_weight": 2.5}
    assert again.metrics == {"style": 1.0}
    assert again.network.arguments == small_checkpoint.network.arguments
    for name, tensor in small_checkpoint.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor.half().float()), name
    save(again, tmp_path / "b.pth")
    twice = load(tmp_path / "b.pth").network.state_dict()
    assert all(torch.equal(twice[name], tensor) for name, tensor in again.network.state_dict().items())


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.victim}",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"format": FORMAT, "styles": Malicious(tmp_path / "victim")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"would run code.*state_dict"):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "victim").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    save(small_checkpoint, tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 6650000\n"
    (tmp_path / "pointer.pth").write_text(pointer)
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html>\n<html lang='en'><title>GitHub</title></html>")
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "tensors.pth").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("saved_models/candy.pth", "weights")
    with warnings.catch_warnings():  # PyTorch would rather have no more of them, and people have them
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(tmp_path / "script.pth"))
    for name, words in {
        "truncated.pth": "truncated",
        "text.pth": "not a PyTorch checkpoint",
        "empty.pth": "an empty file",
        "pointer.pth": "a Git LFS pointer.*git lfs pull",
        "page.pth": r"a web page \(HTML\)",
        "tensors.pth": "a safetensors file",
        "zip.pth": "a zip archive.*use saved_models/candy.pth",
        "script.pth": "TorchScript",
        "list.pth": "not an nst checkpoint",
        "none.pth": "no such file",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path / name)


def test_documents_that_do_not_fit(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    wrong = {key: tensor[:1] for key, tensor in small_checkpoint.network.state_dict().items()}
    for changes, words in (
        ({"styles": ["one", "two"]}, "names 2 styles, but its network has 1"),
        ({"format": "nst-style/9"}, "nst-style/9"),
        ({"architecture": {"name": "mystery", "arguments": {}}}, "unknown architecture 'mystery'"),
        ({"architecture": {"name": "johnson", "arguments": {"height": 3}}}, "incomplete or damaged"),
        ({"architecture": None}, "incomplete or damaged"),
        ({"state_dict": wrong}, "do not fit"),
        ({"state_dict": {}}, "do not fit"),
    ):
        torch.save(document(small_checkpoint, **changes), tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path / "a.pth")


def test_the_first_version_is_read(tmp_path: Path, small_checkpoint: Checkpoint) -> None:
    """One style per network, and normalisations without an axis for styles."""
    state = {
        key: tensor[0] if ".norm." in key else tensor for key, tensor in small_checkpoint.network.state_dict().items()
    }
    old = {"name": "johnson", "arguments": {"width": 0.125, "blocks": 5, "ends": 9}}
    torch.save(document(small_checkpoint, format="nst-style/1", architecture=old, state_dict=state), tmp_path / "a.pth")
    again = load(tmp_path / "a.pth")
    for key, tensor in small_checkpoint.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["composition-vii-fast", "gravel", "strawberries"])
@pytest.mark.parametrize("temporal", [False, True])
def test_a_checkpoint_with_former_names_is_read(tmp_path: Path, name: str, temporal: bool) -> None:
    """Shipped models were written before settings and loss terms got their present names."""
    file = Path(__file__).parents[2] / "models" / f"{name}.pth"
    written = read_plain_data(file)
    if temporal:  # as a training for video wrote it
        written["training"]["steady"], written["metrics"]["steady"] = 150.0, 0.2
        file = tmp_path / file.name
        torch.save(written, file)
    assert {"steady", "style_pictures"} <= set(written["training"]) and "lattice" in written["metrics"]
    training, metrics = load(file).training, load(file).metrics
    assert training["temporal_weight"] == written["training"]["steady"]
    assert training["style_images"] == written["training"]["style_pictures"]
    assert metrics["checkerboard"] == written["metrics"]["lattice"]
    assert metrics.get("border") == written["metrics"].get("frame")
    assert metrics.get("temporal") == written["metrics"].get("steady")
    assert len(metrics) == len(written["metrics"])
    if "before_that" in training:
        assert training["before_that"]["style_images"] == written["training"]["before_that"]["style_pictures"]
    history = json.dumps([training, metrics])
    assert not re.search(r'"(steady|style_pictures|lattice|frame|taught)"', history)
