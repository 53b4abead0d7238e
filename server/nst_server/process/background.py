"""Run a server in the background: the terminal gets its prompt back when the server is ready."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import typer

from nst_server.errors import ServerError
from nst_server.state import State

READY = b"ready"

PR_SET_PDEATHSIG = 1
"""Constant of prctl(2)."""

STOP_TIMEOUT_SECONDS = 60.0
"""Maximum time for a server to end, which first answers its pending requests."""


def end_as_ctrl_c() -> None:
    """Handle a supervisor's SIGTERM and a closed terminal's SIGHUP like Ctrl-C.

    SIGHUP stays ignored under `nohup`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def detached(serve: Callable[[Callable[[], None]], None], log: Path) -> None:
    """Run `serve(ready)` in a separate process, and return when it calls `ready`.

    Until then it writes to our terminal, and ends when we end, however that happens; afterwards it writes to `log`. If
    it ends without calling `ready`, it has printed why, and this process exits with its status.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        _end_with_parent(signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the call
            raise KeyboardInterrupt
        serve(lambda: _let_go(writing, log))
        return
    try:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            ready = pipe.read() == READY
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if not ready:
        _, status = os.waitpid(child, 0)
        raise typer.Exit(os.waitstatus_to_exitcode(status) or 1)


def _end_with_parent(sign: int) -> None:
    """Ask Linux to send `sign` when the parent process ends; 0 cancels that."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, sign)


def _let_go(writing: int, log: Path) -> None:
    """Detach from the terminal and the parent process: read nothing, and write messages to the log."""
    nothing = os.open(os.devnull, os.O_RDWR)
    messages = os.open(log, os.O_WRONLY | os.O_APPEND)
    for source, target in ((nothing, 0), (nothing, 1), (messages, 2)):
        os.dup2(source, target)
    _end_with_parent(0)
    os.write(writing, READY)
    os.close(writing)


def stop(state: State) -> None:
    """End a running server and wait for it; `ServerError` if it does not end in time."""
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while state.running():
        if time.monotonic() > deadline:
            raise ServerError(
                f"process {state.pid} has not ended after {STOP_TIMEOUT_SECONDS:.0f} s; see the log {state.log}"
            )
        time.sleep(0.05)
