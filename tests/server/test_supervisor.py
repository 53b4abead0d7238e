"""Running a Triton, with programs in its place, and what becomes of its failures."""

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_server.cli import app
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.installation.triton import Installation
from nst_server.process.supervisor import run_triton


def test_a_missing_or_empty_repository_says_how_to_fill_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    for folder, words in ((tmp_path, "no models found"), (tmp_path / "none", "no such model repository")):
        result = CliRunner().invoke(app, ["-r", str(folder)])
        assert result.exit_code == 1
        assert words in result.stderr
        assert "nst export" in result.stderr
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
    messages: list[str] = []
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log", on_error=messages.append)
    with pytest.raises(ServerError, match="failed to load seven"), running:
        pass
    assert messages == ["failed to load seven"]
    assert "failed to load seven" in (tmp_path / "log").read_text()


def test_a_server_that_ends_without_an_error_is_quoted(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, "echo starting; echo 'docker: no daemon' >&2; exit 125")
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log")
    with pytest.raises(ServerError, match="exit status 125, docker: no daemon"), running:
        pass


def test_a_server_that_never_is_ready_is_ended_with_its_children(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait")
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log", ready_timeout_seconds=1.0)
    with pytest.raises(ServerError, match="not ready after 1 s"), running:
        pass
    assert ended(int((tmp_path / "child").read_text()))


def test_a_process_of_a_model_that_dies_at_the_start_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """It says why and ends, and the Triton that has started it waits for it for ever."""
    installation, models = server_that(
        tmp_path, "(echo 'stub: error while loading shared libraries: libpython3.so.1' >&2) & exec sleep 600"
    )
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log")
    with pytest.raises(ServerError) as raised, running:
        pass
    assert str(raised.value) == (
        "seven cannot be served: its process ended during loading: stub: error while loading shared libraries: "
        f"libpython3.so.1 (log: {tmp_path / 'log'})"
    )


def test_triton_gets_what_to_load_and_never_what_a_name_makes_bash_do(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/arguments; exit 3')
    for name in ("my copy", "x$(touch${IFS}pwned)", "eight"):
        (models / name).mkdir()
        (models / name / "config.pbtxt").write_text("")
    messages: list[str] = []
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log", poll=1.0, on_error=messages.append)
    with pytest.raises(ServerError), running:
        pass
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert [word for word in arguments if "load-model" in word] == ["--load-model=eight", "--load-model=seven"]
    assert "--model-control-mode=explicit" in arguments, "it looks for nothing itself"
    assert [line.partition(" is not served")[0] for line in messages] == [
        f"{models}/my copy",
        f"{models}/x$(touch${{IFS}}pwned)",
    ]


def ended(pid: int, timeout_seconds: float = 10.0) -> bool:
    """Whether a process is gone or a zombie; a killed one needs a moment on a busy machine."""
    status = Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + timeout_seconds
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
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "file" / "log")
    with pytest.raises(Exception, match="cannot write the log"), running:
        pass
