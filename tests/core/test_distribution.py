"""The command that adds an extra, by what nst was installed from."""

import json
import shlex
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from nst_core.distribution import install_command
from nst_core.errors import MissingExtra

HERE = "/path/to/nst[train]"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of an installation of nst that is found in place of the real record."""
    record = tmp_path / "packages" / "nst-0.1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Name: nst\nVersion: 0.1.0\n")
    (record / "INSTALLER").write_text("pip\n")
    monkeypatch.setattr(sys, "path", [str(record.parent)])
    return record


def advice(installed: Path, origin: object) -> list[str]:
    (installed / "direct_url.json").write_text(json.dumps(origin))
    return shlex.split(install_command("train"))


@pytest.mark.parametrize("editable", [True, False])
@pytest.mark.parametrize("name", ["nst", "my own nst", "it's", "$HOME", "mödel"])
def test_a_folder(installed: Path, tmp_path: Path, name: str, editable: bool) -> None:
    (tmp_path / name).mkdir()
    found = advice(installed, {"url": (tmp_path / name).as_uri(), "dir_info": {"editable": True} if editable else {}})
    assert found == ["pip", "install", *["--editable"] * editable, f"{tmp_path / name}[train]"]


def test_a_folder_that_is_gone(installed: Path, tmp_path: Path) -> None:
    assert advice(installed, {"url": (tmp_path / "gone").as_uri(), "dir_info": {}}) == ["pip", "install", HERE]


def test_a_wheel(installed: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "nst-0.1.0-py3-none-any.whl"
    wheel.touch()
    assert advice(installed, {"url": wheel.as_uri(), "archive_info": {}}) == ["pip", "install", f"{wheel}[train]"]
    url = "https://example.org/nst-0.1.0-py3-none-any.whl"
    assert advice(installed, {"url": url, "archive_info": {}}) == ["pip", "install", f"nst[train] @ {url}"]


def test_a_repository(installed: Path) -> None:
    git = {"url": "https://example.org/nst.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}
    assert advice(installed, git)[2] == "nst[train] @ git+https://example.org/nst.git@abc123"
    assert advice(installed, {**git, "subdirectory": "a/b"})[2].endswith("@abc123#subdirectory=a/b")


def test_an_environment_of_uv_has_no_pip(installed: Path, tmp_path: Path) -> None:
    (installed / "INSTALLER").write_text("uv")
    found = advice(installed, {"url": tmp_path.as_uri(), "dir_info": {}})
    assert found == ["uv", "pip", "install", f"{tmp_path}[train]"]


def test_where_nothing_is_known_the_path_is_left_to_the_reader(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shlex.split(install_command("train")) == ["pip", "install", HERE], "an index has sent it"
    (installed / "direct_url.json").write_text("{")
    assert shlex.split(install_command("train")) == ["pip", "install", HERE]
    monkeypatch.setattr(sys, "path", [])
    assert shlex.split(install_command("train")) == ["pip", "install", HERE]


def test_this_installation_is_named_with_its_own_folder() -> None:
    origin = json.loads(distribution("nst").read_text("direct_url.json") or "{}")
    path = Path(shlex.split(install_command("web"))[-1].removesuffix("[web]"))
    assert origin["url"] == path.as_uri() and (path / "pyproject.toml").exists()
    assert (
        str(MissingExtra("web", "aiohttp")) == f"the package 'aiohttp' is not installed; run {install_command('web')}"
    )
