"""The shipped styles by name, in a folder that is no checkout."""

import os
import subprocess
from pathlib import Path

import pytest

from nst_core.images import sample_photographs
from nst_core.shipped import shipped_styles
from nst_trainer.checkpoint import load

from .serving import BIN


def nst(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([BIN / "nst", *words], cwd=folder, capture_output=True, encoding="utf-8", env=environment)


@pytest.mark.parametrize("name", shipped_styles())
def test_the_list_says_what_the_checkpoint_holds(name: str) -> None:
    shipped, checkpoint = shipped_styles()[name], load(Path(name))
    assert shipped.network == checkpoint.network.name
    if len(checkpoint.styles) > 1:
        assert shipped.styles == checkpoint.styles


def test_they_are_listed_exported_and_used_by_name(tmp_path: Path) -> None:
    listed = nst(tmp_path, "styles", "--shipped")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(shipped_styles())
    exported = nst(tmp_path, "export", "great-wave-fast")
    assert not exported.returncode, exported.stderr
    photograph = str(sample_photographs()[0])
    options = ("--style", "great-wave-fast", "--url", "local:model_repository", "--max-side", "64")
    stylized = nst(tmp_path, "stylize", photograph, *options, "-o", "stylized.png")
    assert not stylized.returncode and (tmp_path / "stylized.png").exists(), stylized.stderr


def test_a_misspelled_style_is_one_line_that_names_the_nearest(tmp_path: Path) -> None:
    refused = nst(tmp_path, "export", "stary-night-fast")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        "error: stary-night-fast: no such file; did you mean starry-night-fast? "
        "nst styles --shipped lists the styles that ship"
    )


def test_a_style_is_added_to_the_shipped_gallery_in_a_file_of_ones_own(tmp_path: Path) -> None:
    before = shipped_styles()["gallery"].checkpoint.read_bytes()
    short = ("--iterations", "2", "--batch", "1", "--crop", "64", "--style-size", "64")
    added = nst(tmp_path, "train", "--add", str(sample_photographs()[0]), "--to", "gallery", *short)
    assert not added.returncode, added.stderr
    assert len(load(tmp_path / "gallery.pth").styles) == 11
    assert shipped_styles()["gallery"].checkpoint.read_bytes() == before
