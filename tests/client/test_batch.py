"""What `nst batch` paints, and how it writes; tests/end_to_end/test_batch.py has Ray and models."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nst_client import MockTransport, StyleClient
from nst_client.batch import JOB, Batch
from nst_client.batch_cli import batch_app
from nst_client.jobs import Recipe
from nst_client.storage import OWN, Folder
from nst_core.errors import InputError, NstError, PictureError, WriteError
from nst_core.images import open_picture, process_of_file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("one.png", "deep/er/two.jpg", "deep/three.bmp", ".hidden/four.png", "deep/.five.png", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "notes.txt":
            (root / name).write_text("no picture")
        else:
            Image.fromarray(np.full((20, 30, 3), 40, np.uint8)).save(root / name)
    (root / "deep" / "loop").symlink_to(root)
    return root


@pytest.fixture
def client() -> StyleClient:
    return StyleClient(transport=MockTransport(lambda request: 255 - request.inputs["image"]))


def batch_of(source: Path | str, target: Path | str, **recipe: float) -> Batch:
    return Batch(Folder.at(str(source)), Folder.at(str(target)), Recipe({"style": 1.0}, **recipe))  # type: ignore[arg-type]


def todo(batch: Batch) -> list[str]:
    return [photo for photos, _ in batch.missing(batch.begin()) for photo in photos]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_input_less_the_output_is_what_is_to_be_done(photos: Path, tmp_path: Path, client: StyleClient) -> None:
    batch = batch_of(photos, tmp_path / "out")
    assert todo(batch) == ["one.png", "deep/three.bmp", "deep/er/two.jpg"]
    assert not (tmp_path / "out").exists()  # nothing is written before it is claimed
    batch.claim()
    batch.paint("deep/three.bmp", client)
    batch.paint("deep/er/two.jpg", client)
    assert todo(batch) == ["one.png"]
    assert files(tmp_path / "out") == {"deep/three.png", "deep/er/two.jpg", JOB}
    assert (open_picture(tmp_path / "out" / "deep/three.png").pixels == 215).all()
    assert process_of_file(tmp_path / "out" / "deep/three.png") == batch.recipe.record


def test_an_output_inside_the_input_is_no_photograph(photos: Path, client: StyleClient) -> None:
    batch = batch_of(photos, photos / "deep" / "out")
    batch.claim()
    batch.paint("one.png", client)
    assert todo(batch) == ["deep/three.bmp", "deep/er/two.jpg"]


def test_object_storage(photos: Path, client: StyleClient) -> None:
    source, target = "memory://bucket/photos", "memory://bucket/paintings"
    batch = batch_of(source, target)
    for name in ("one.png", "deep/er/two.jpg"):
        batch.source.file_system.pipe_file(f"/bucket/photos/{name}", (photos / name).read_bytes())
    assert todo(batch) == ["one.png", "deep/er/two.jpg"]
    batch.claim()
    batch.paint("deep/er/two.jpg", client)
    assert todo(batch) == ["one.png"]
    assert sorted(batch.target.file_system.find("/bucket/paintings")) == [
        f"/bucket/paintings/{JOB}",
        "/bucket/paintings/deep/er/two.jpg",
    ]


def test_what_a_killed_run_began_is_removed(photos: Path, tmp_path: Path) -> None:
    batch = batch_of(photos, tmp_path / "out")
    batch.claim()
    (tmp_path / "out" / OWN / "beside" / "0123.png").write_bytes(b"half a pict")
    assert len(todo(batch)) == 3
    batch.claim()
    assert files(tmp_path / "out") == {JOB}


def test_a_disk_without_a_place_is_an_error_and_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    batch = batch_of(photos, tmp_path / "out")
    batch.claim()
    (tmp_path / "out" / "deep").write_text("a file where a folder should be")
    with pytest.raises(WriteError, match=r"cannot write deep/x\.png"):
        batch.target.write("deep/x.png", b"data")


@pytest.mark.parametrize("name", ["missing.png", "notes.txt"])
def test_what_is_no_picture(photos: Path, tmp_path: Path, client: StyleClient, name: str) -> None:
    batch = batch_of(photos, tmp_path / "out")
    with pytest.raises(NstError, match=name) as caught:
        batch.paint(name, client)
    assert isinstance(caught.value, PictureError if name == "notes.txt" else InputError)
    assert not (tmp_path / "out").exists()


def test_an_output_has_one_job(photos: Path, tmp_path: Path, client: StyleClient) -> None:
    batch = batch_of(photos, tmp_path / "out")
    batch.claim()
    assert json.loads((tmp_path / "out" / JOB).read_text()) == batch.record
    with pytest.raises(InputError, match=r"is of another job \(nst stylize --style style:1"):
        batch_of(photos, tmp_path / "out", strength=0.5).begin()
    (tmp_path / "out" / JOB).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        batch.begin()


def test_what_would_be_overwritten_or_become_one(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the photographs in it"):
        batch_of(photos, photos).begin()
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "three.png").write_bytes(b"somebody's")
    with pytest.raises(InputError, match=r"has deep/three\.png already, and not from nst batch"):
        todo(batch_of(photos, tmp_path / "out"))
    (photos / "deep" / "three.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"deep/three\.bmp and deep/three\.png would both become deep/three\.png"):
        todo(batch_of(photos, tmp_path / "other"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("s3://bucket/photos", "s3://bucket/photos: Install s3fs"),
        ("gopher://photos", "gopher://photos: Protocol not known: gopher"),
    ],
)
def test_a_wrong_input(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        todo(batch_of(url, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_the_extra(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "nst_client.batch")
    result = CliRunner().invoke(batch_app, [str(photos), str(tmp_path / "out"), "--style", "x"])
    assert result.exit_code == 1
    assert result.stderr == "error: this needs the package 'pyarrow': pip install 'nst[batch]'\n"
