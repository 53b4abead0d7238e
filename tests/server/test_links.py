"""The names that Triton gets in place of a user's."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from nst_server.access import Access
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.installation.triton import Installation
from nst_server.repository import links
from nst_server.triton_command import Launch

ODD = ["My Projects", "it's", '"quoted"', "$HOME", "$(touch pwned)", "mödel", "a:b", "new\nline", "; exit", "\udcff"]


@pytest.mark.parametrize("name", ODD)
def test_triton_gets_plain_names_for_any(tmp_path: Path, name: str) -> None:
    repository, environment = tmp_path / name / "repository", tmp_path / name / "cpu"
    repository.mkdir(parents=True)
    environment.mkdir()
    installation = Installation(
        (str(environment / "bin" / "tritonserver"), "--backend-directory", str(environment / "backends")),
        {"LD_LIBRARY_PATH": f"{environment}/lib/libs:{environment}/lib:/usr/lib", "PATH": f"{environment}/bin:/bin"},
        environment,
    )
    launch = Launch(repository, Endpoints(), access=Access("key"), models=("starry",))
    with links.linked(repository, environment) as linked:
        given = linked.command(installation.command(launch))
        variables = linked.variables(installation.environment)
        assert not any(name in text for text in [*given, *variables.values()])
        assert f"--model-repository={linked.models}" in given and linked.models.samefile(repository)
        libraries = variables["LD_LIBRARY_PATH"].split(":")
        assert libraries == [f"{linked.folder}/environment/lib/libs", f"{linked.folder}/environment/lib", "/usr/lib"]
        assert (linked.folder / "environment").samefile(environment)
        message = f"{linked.models}/starry/1/model.onnx and {linked.folder}/environment/lib"
        assert linked.outward(message) == f"{repository}/starry/1/model.onnx and {environment}/lib"
        assert links.outward(message, "models").startswith("models/starry/1/model.onnx")
        assert links.PLAIN.fullmatch(str(linked.folder))
    assert not linked.folder.exists() and repository.exists()


def test_a_folder_whose_name_begins_alike_is_another(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    with links.linked(tmp_path, tmp_path / "cpu") as linked:
        assert linked.variables({"PATH": f"{tmp_path}/cpu2/bin"}) == {"PATH": f"{tmp_path}/cpu2/bin"}


def test_a_folder_for_temporary_files_with_an_odd_name_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my files").mkdir()
    for place, used in ((tmp_path / "my files", False), (tmp_path / "none", False), (tmp_path, True)):
        monkeypatch.setenv("TMPDIR", str(place))
        with links.linked(tmp_path, None) as linked:
            assert (linked.folder.parent == place) == used
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr(links, "TEMPORARY", ())
    with pytest.raises(ServerError, match="set TMPDIR to a folder"), links.linked(tmp_path, None):
        pass


def test_what_a_killed_server_left_goes_with_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left, held, young = (tmp_path / f"{links.PREFIX}{name}" for name in ("left", "held", "young"))
    for folder in (left, held, young):
        folder.mkdir()
        (folder / "models").symlink_to(Path(__file__).parent)
        if folder != young:
            os.utime(folder, (time.time() - 3600,) * 2)
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with links.linked(tmp_path, None):
        assert not left.exists() and held.exists() and young.exists()
    os.close(lock)
    assert Path(__file__).exists()
