"""What is loaded and unloaded when a repository changes under a running server."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nst_server.control import Control, Model
from nst_server.errors import ServerError
from nst_server.process.watcher import RepositoryWatcher

from .machines import config


@dataclass(frozen=True)
class Notes(Control):
    """A server that only takes notes."""

    url: str = ""
    calls: list[str] = field(default_factory=list)

    def load(self, name: str, version: str | None = None) -> list[Model]:
        self.calls.append(f"load {name}")
        if name == "broken":
            raise ServerError("broken: no model")
        return []

    def forget(self, name: str) -> None:
        self.calls.append(f"unload {name}")


def test_what_is_new_changed_or_gone(tmp_path: Path) -> None:
    messages: list[str] = []
    watch, server = RepositoryWatcher(tmp_path, messages.append), Notes()

    def look() -> list[str]:
        server.calls.clear()
        watch.look(server)
        return list(server.calls)

    for name in ("a", "b"):
        config(tmp_path / name, f'name: "{name}"')
    assert watch.names() == ["a", "b"]
    assert look() == []
    config(tmp_path / "c", 'name: "c"')
    assert look() == ["load c"] and look() == []
    (tmp_path / "a" / "2").mkdir()
    (tmp_path / "a" / "2" / "model.onnx").write_bytes(b"new")
    assert look() == ["load a"] and look() == []
    (tmp_path / "b" / "config.pbtxt").write_text('name: "b" max_batch_size: 4')
    assert look() == ["load b"]
    config(tmp_path / "broken", "")
    assert look() == ["load broken"] and look() == [], "once for each change"
    shutil.rmtree(tmp_path / "c")
    shutil.rmtree(tmp_path / "a" / "2")
    assert look() == ["load a", "unload c"] and look() == []
    assert messages == []


def test_a_bad_name_and_a_bad_config_that_appear_later_are_reported_once_and_never_loaded(tmp_path: Path) -> None:
    messages: list[str] = []
    watch, server = RepositoryWatcher(tmp_path, messages.append), Notes()
    config(tmp_path / "a", 'name: "a"')
    watch.names()
    config(tmp_path / "x$(touch pwned)", "")
    (tmp_path / "a" / "config.pbtxt").write_text("name: {")
    for _ in range(3):
        watch.look(server)
    assert server.calls == [], "the old version stays"
    assert len(messages) == 2
    assert any(line.startswith(f"{tmp_path}/x$(touch pwned) is not served: rename the folder") for line in messages)
    assert any(line.startswith(f"a is not served: cannot read {tmp_path}/a/config.pbtxt: 1:") for line in messages)
    (tmp_path / "a" / "config.pbtxt").write_text('name: "a" max_batch_size: 2')
    watch.look(server)
    assert server.calls == ["load a"] and len(messages) == 2


def test_a_repository_that_is_away_for_a_moment_unloads_nothing(tmp_path: Path) -> None:
    messages: list[str] = []
    watch, server = RepositoryWatcher(tmp_path / "r", messages.append), Notes()
    config(tmp_path / "r" / "a", 'name: "a"')
    watch.names()
    (tmp_path / "r").rename(tmp_path / "elsewhere")
    for _ in range(2):
        watch.look(server)
    assert server.calls == [] and len(messages) == 1 and "no such model repository" in messages[0]
    (tmp_path / "elsewhere").rename(tmp_path / "r")
    watch.look(server)
    assert server.calls == []


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_version_that_is_a_link_counts_by_what_it_leads_to(tmp_path: Path, kind: str) -> None:
    watch, server = RepositoryWatcher(tmp_path / "r", print), Notes()
    version = config(tmp_path / "elsewhere", "")
    (tmp_path / "r" / "a").mkdir(parents=True)
    (tmp_path / "r" / "a" / "config.pbtxt").write_text('name: "a"')
    if kind == "link":
        (tmp_path / "r" / "a" / "1").symlink_to(version)
    else:
        (tmp_path / "r" / "a" / "1").mkdir()
        (tmp_path / "r" / "a" / "1" / "model.onnx").symlink_to(version / "model.onnx")
    watch.names()
    (version / "model.onnx").write_bytes(b"longer than it was")
    watch.look(server)
    assert server.calls == ["load a"]
