"""The styles that ship: every checkpoint is listed, and a name stands for its file."""

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from nst_core.shipped import FOLDER, checkpoint_path, shipped_styles, suggestion


def test_every_checkpoint_is_listed_and_every_listed_one_is_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.pth")} == set(shipped_styles())
    assert all(style.checkpoint.is_file() for style in shipped_styles().values())


def test_a_name_stands_for_the_file_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path(Path("gallery")) == FOLDER / "gallery.pth"
    for own in ("gallery.pth", "./here/gallery", "unknown"):
        assert checkpoint_path(Path(own)) == Path(own)
    Path("gallery").touch()
    assert checkpoint_path(Path("gallery")) == Path("gallery"), "a file of one's own comes first"


def test_a_misspelled_name_gets_the_nearest() -> None:
    assert suggestion(Path("stary-night-fast")).startswith("did you mean starry-night-fast? nst styles --shipped")
    assert suggestion(Path("xyz")) == "nst styles --shipped lists the styles that ship"
    assert suggestion(Path("models/starry-night-fast.pth")).startswith("did you mean starry-night-fast? ")
    assert suggestion(Path("runs/mine.pth")) == ""


def test_a_wheel_holds_them(tmp_path: Path) -> None:
    root = FOLDER.resolve().parent
    builder = WheelBuilder(str(root))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"nst_core/models/{name}.pth" for name in shipped_styles()} <= names
    assert "nst_core/models/styles.toml" in names
