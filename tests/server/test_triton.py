import socket
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_server import triton
from nst_server.cli import app
from nst_server.triton import Endpoints, Installation, ServerError


def test_free_ports_are_free_and_different() -> None:
    endpoints = Endpoints.free()
    endpoints.check_free()
    assert len({endpoints.http_port, endpoints.grpc_port, endpoints.metrics_port}) == 3
    assert endpoints.address == "127.0.0.1"


@pytest.mark.parametrize("protocol", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named_with_its_option(tmp_path: Path, protocol: str) -> None:
    (tmp_path / "seven").mkdir()
    (tmp_path / "seven" / "config.pbtxt").write_text('name: "seven"')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["-r", str(tmp_path), f"--{protocol}-port", str(port)])
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert f"--{protocol}-port" in result.stderr


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ServerError, match=r"192\.0\.2\.1"):
        Endpoints(address="192.0.2.1").check_free()


def test_a_missing_or_empty_repository_says_how_to_fill_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    for folder, words in ((tmp_path, "no model in it"), (tmp_path / "none", "no such model repository")):
        result = CliRunner().invoke(app, ["-r", str(folder)])
        assert result.exit_code == 1
        assert words in result.stderr
        assert "nst-export" in result.stderr
        assert result.stderr.count("\n") == 1


def server_that(tmp_path: Path, does: str) -> tuple[Installation, Path]:
    """A repository, and a program in Triton's place, to see what becomes of its failures."""
    (tmp_path / "models" / "seven").mkdir(parents=True)
    (tmp_path / "models" / "seven" / "config.pbtxt").write_text('name: "seven"')
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    return Installation((str(program),)), tmp_path / "models"


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    installation, models = server_that(
        tmp_path, """echo 'E0101 00:00:00.000000 1 model.cc:1] "failed to load seven"'; exit 3"""
    )
    heard: list[str] = []
    running = triton.running(installation, models, Endpoints.free(), tmp_path / "log", on_error=heard.append)
    with pytest.raises(ServerError, match="failed to load seven"), running:
        pass
    assert heard == ["failed to load seven"]
    assert "failed to load seven" in (tmp_path / "log").read_text()


def test_a_server_that_ends_without_an_error_is_quoted(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, "echo starting; echo 'docker: no daemon' >&2; exit 125")
    running = triton.running(installation, models, Endpoints.free(), tmp_path / "log")
    with pytest.raises(ServerError, match="exit status 125, docker: no daemon"), running:
        pass


def test_a_server_that_never_is_ready_is_ended_with_its_children(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait")
    running = triton.running(installation, models, Endpoints.free(), tmp_path / "log", patience=1.0)
    with pytest.raises(ServerError, match="not ready after 1 s"), running:
        pass
    assert ended(int((tmp_path / "child").read_text()))


def ended(pid: int, patience: float = 10.0) -> bool:
    """Whether a process is gone or a zombie; a killed one needs a moment on a busy machine."""
    status = Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if "State:\tZ" in status.read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, "exit 0")
    (tmp_path / "file").write_text("")
    running = triton.running(installation, models, Endpoints.free(), tmp_path / "file" / "log")
    with pytest.raises(Exception, match="cannot write the log"), running:
        pass
