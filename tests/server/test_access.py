import dataclasses
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_core.errors import InputError, WriteError
from nst_server import access, state
from nst_server.access import Access, read_token
from nst_server.cli import app
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.state import State

from .machines import CPU

GROUPS = {
    "metadata",
    "inference",
    "model-config",
    "statistics",
    "shared-memory",
    "model-repository",
    "trace",
    "logging",
}
"""All that Triton 2.51 knows, but `health`."""


def closed(access: Access, address: str) -> dict[str, set[str]]:
    """The groups that each secret guards, which must be the same for both protocols."""
    found: dict[str, dict[str, set[str]]] = {}
    for option in access.options(address):
        name, _, rest = option.partition("=")
        groups, _, pair = rest.partition(":")
        header, _, secret = pair.partition("=")
        assert header == "nst-token"
        found.setdefault(name, {})[secret] = set(groups.split(","))
    assert found["--http-restricted-api"] == found["--grpc-restricted-protocol"]
    return found["--http-restricted-api"]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_without_a_token_this_machine_may_call(address: str) -> None:
    assert closed(Access("key"), address) == {"key": {"model-repository", "trace", "logging"}}


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.7", "::", "server.example"])
def test_shared_memory_is_closed_to_other_machines(address: str) -> None:
    assert closed(Access("key"), address) == {"key": {"model-repository", "trace", "logging", "shared-memory"}}


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_with_a_token_everything_is_closed(address: str) -> None:
    groups = closed(Access("key", "token"), address)
    assert groups["key"] == {"model-repository", "trace", "logging"}
    assert groups["key"] | groups["token"] == GROUPS


def test_secrets_are_new_and_do_not_show() -> None:
    first, second = Access.new("sesame"), Access.new("sesame")
    assert first.key != second.key and len(first.key) >= 32
    assert first.key not in repr(first) and "sesame" not in repr(first)


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NST_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("NST_TOKEN", "from-environment")
    assert read_token(None) == "from-environment"
    (tmp_path / "token").write_text("Az09._~+/=-\n")
    assert read_token(tmp_path / "token") == "Az09._~+/=-"


@pytest.mark.parametrize("text", ["", "\n", "two words", "line\nline", "ümlaut", "a,b", 'a"b', "a:b"])
def test_a_token_that_no_header_takes_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(InputError, match="is not a token") as raised:
        read_token(tmp_path / "token")
    assert not text.strip() or text not in str(raised.value)


def test_the_key_is_found_for_this_machines_server_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_STATE", str(tmp_path))
    here = State.here(Endpoints("0.0.0.0", 8000, 8001), tmp_path, tmp_path / "log", Access("secret"), CPU)
    with state.kept(here, tmp_path, 8000):
        for url in ("http://127.0.0.1:8000", "grpc://localhost:8001", "grpcs://localhost:8001/", "http://0.0.0.0:8000"):
            assert state.key_for(url) == "secret"
        for url in ("http://server.example:8000", "grpc://127.0.0.1:9001", "http://127.0.0.1", "http://[", "nonsense"):
            assert state.key_for(url) is None
    assert state.key_for("http://127.0.0.1:8000") is None


def test_a_user_without_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenShift has them: a number without an entry, and no HOME."""
    for name in ("HOME", "NST_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_242_424)
    assert state.key_for("http://127.0.0.1:8000") is None
    for command in ("status", "stop"):
        result = CliRunner().invoke(app, [command])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: user id 4242424 has no home folder; set NST_STATE to a writable folder")
        assert result.stderr.count("\n") == 1
    with pytest.raises(WriteError, match="set NST_STATE to a writable folder"):
        state.check_folder(Path("/proc/none"))


def test_a_key_is_found_for_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_STATE", str(tmp_path))
    here = State.here(Endpoints("::1", 8000, 8001), tmp_path, tmp_path / "log", Access("secret"), CPU)
    with state.kept(here, tmp_path, 8000):
        for url in ("http://[::1]:8000", "grpc://localhost:8001"):
            assert state.key_for(url) == "secret"


def test_a_state_of_a_process_that_is_gone_is_none(tmp_path: Path) -> None:
    here = State.here(Endpoints(), tmp_path, tmp_path / "log", Access("secret"), CPU)
    later = dataclasses.replace(here, started=here.started + 1)  # another process got the number
    with state.kept(later, tmp_path, 8000):
        assert state.read(tmp_path, 8000) is None
    with state.kept(here, tmp_path, 8000):
        assert state.read(tmp_path, 8000) == here
    assert state.started(os.getpid()) == here.started
    (tmp_path / "serve-8000.json").write_text("{")
    with pytest.raises(ServerError, match=r"serve-8000\.json is not a server's state file; remove it"):
        state.read(tmp_path, 8000)


def test_hiding_arguments_of_a_process_that_is_gone_is_no_error() -> None:
    access.hide(2**22 + 1, ["secret"])
