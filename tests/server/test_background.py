"""A server in the background, and what becomes of it when the command that waits for it is ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nst_server import state

PROGRAM = """
import os, sys, time, typer
from pathlib import Path
from nst_core.console import one_line_errors
from nst_server.process import background

def serve(ready):
    Path(sys.argv[1], "child").write_text(str(os.getpid()))
    if sys.argv[2] == "ready":
        ready()
    time.sleep(60)

app = typer.Typer(add_completion=False)

@app.command()
def command(folder: str, what: str):
    background.end_as_ctrl_c()
    with one_line_errors("all"):
        background.detached(serve, Path(folder, "log"))

app()
"""


@pytest.fixture(autouse=True)
def hang_ups() -> Iterator[None]:
    """As a terminal has them: a program that is started by nohup hands on that they are ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def started(tmp_path: Path, what: str, *before: str) -> tuple[subprocess.Popen[bytes], int]:
    """The command, and the process that it waits for."""
    (tmp_path / "log").touch()
    command = [*before, sys.executable, "-c", PROGRAM, str(tmp_path), what]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline, child = time.monotonic() + 60, tmp_path / "child"
    while not (child.exists() and child.read_text()):
        assert process.poll() in (None, 0) and time.monotonic() < deadline
        time.sleep(0.02)
    return process, int(child.read_text())


def ends(pid: int, timeout_seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while state.started(pid) is not None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_while_it_waits_leaves_no_server(tmp_path: Path, sign: signal.Signals) -> None:
    process, child = started(tmp_path, "never")
    process.send_signal(sign)
    assert process.wait(60) == (-9 if sign == signal.SIGKILL else 130)
    assert ends(child)


def test_a_server_that_is_ready_outlives_the_command(tmp_path: Path) -> None:
    process, child = started(tmp_path, "ready")
    assert process.wait(60) == 0
    time.sleep(0.2)
    assert state.started(child) is not None
    os.kill(child, signal.SIGTERM)
    assert ends(child)


def test_nohup_keeps_it_from_a_closed_terminal(tmp_path: Path) -> None:
    process, child = started(tmp_path, "never", "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None and state.started(child) is not None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130 and ends(child)
