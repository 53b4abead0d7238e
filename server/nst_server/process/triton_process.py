"""Triton's process: start it, wait until its models are loaded and warm, and end it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nst_server import tls
from nst_server.control import Control
from nst_server.errors import ServerError
from nst_server.installation.triton import Installation
from nst_server.process.logs import LogReader, last_line, open_log
from nst_server.process.model_processes import ModelProcesses
from nst_server.repository.links import Links, linked
from nst_server.triton_command import ALLOCATOR_VARIABLES, START_SCRIPT, Launch, Runnable

logger = logging.getLogger(__name__)

READY_TIMEOUT_SECONDS = 300.0
"""Maximum time for Triton to load its models."""

READY_POLL_SECONDS = 0.1

END_GRACE_SECONDS = 20.0
"""Maximum time for Triton to answer its pending requests before it is killed."""


@dataclass(frozen=True)
class Start:
    """A Triton to start: its installation, launch, log, and maximum time until it is ready.

    `on_error` receives each error of Triton's log. The log is emptied first unless `keep_log`.
    """

    installation: Runnable
    launch: Launch
    log: Path
    ready_timeout_seconds: float = READY_TIMEOUT_SECONDS
    on_error: Callable[[str], None] = lambda line: None
    keep_log: bool = False


class ModelProcessDied(Exception):
    """The processes of these models ended during loading, and Triton would wait for them forever.

    `models` is empty if they are unknown.
    """

    def __init__(self, models: set[str], reason: str) -> None:
        super().__init__(reason)
        self.models = models


@contextmanager
def ready_triton(start: Start) -> Iterator[tuple[subprocess.Popen[str], Control]]:
    """Yield a Triton whose models are loaded and warm; end it with the block.

    Raises `ModelProcessDied` when the process of a model ends during loading, and `ServerError` when Triton ends, takes
    too long, or no model is ready.
    """
    launch = start.launch
    with ExitStack() as resources:
        file = resources.enter_context(open_log(start.log, keep=start.keep_log))
        links = None
        if isinstance(start.installation, Installation):  # a container has its own paths
            links = resources.enter_context(linked(launch.repository, start.installation.folder))
        if launch.certificate and launch.endpoints.plain:
            address, _ = launch.endpoints.listening["grpc"]
            ports = (launch.endpoints.http_port, launch.endpoints.metrics_port)
            plain = dict(zip(ports, launch.endpoints.plain, strict=True))
            resources.enter_context(tls.terminate(launch.certificate, address, plain))
        process = _spawn(start.installation, launch, links)
        reader = LogReader(file, links, start.on_error, launch.access.secrets if launch.access else [])
        reading = threading.Thread(target=reader.read, args=(process,), name="triton-log", daemon=True)
        reading.start()
        try:
            control = Control.of_launch(launch)
            begun = time.monotonic()
            _wait_until_ready(process, control, start, reader)
            logger.info("Triton (process %d) is ready after %.1f s", process.pid, time.monotonic() - begun)
            yield process, control
        finally:
            _end(process)
            reading.join(timeout=5.0)
            if process.stdout:
                process.stdout.close()


def _spawn(installation: Runnable, launch: Launch, links: Links | None) -> subprocess.Popen[str]:
    command, variables = installation.command(launch), dict(installation.environment)
    if links:
        command, variables = links.command(command), links.variables(variables)
    logger.info("starting %s on %s", command[0], launch.repository)
    return subprocess.Popen(
        [sys.executable, "-c", START_SCRIPT, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**ALLOCATOR_VARIABLES, **os.environ, **variables},
        cwd="/",  # the stubs import from their working directory first: it may hold a folder called numpy
        start_new_session=True,  # Ctrl-C reaches only us; we end Triton and its stubs in order
    )


def _wait_until_ready(process: subprocess.Popen[str], control: Control, start: Start, reader: LogReader) -> None:
    """Wait until Triton answers, which it does after loading its models, and a model is ready."""
    deadline = time.monotonic() + start.ready_timeout_seconds
    processes = ModelProcesses(process.pid)
    while not control.live():
        if process.poll() is not None:
            reason = f"exit status {process.returncode}, {last_line(start.log)}"
            reason = reader.errors[0] if reader.errors else reason
            raise ServerError(f"Triton ended before it was ready: {reason} (log: {start.log})")
        dead = processes.dead()
        models = _models_of(dead, processes, set(start.launch.models or ()) - reader.settled)
        late = time.monotonic() > deadline
        if models or (dead and late):
            raise ModelProcessDied(models, reader.last_foreign_line)
        if late:
            raise ServerError(f"Triton was not ready after {start.ready_timeout_seconds:.0f} s (log: {start.log})")
        time.sleep(READY_POLL_SECONDS)
    if not any(model.ready for model in control.models()):
        reason = reader.errors[0] if reader.errors else "no reason given"
        raise ServerError(f"no model could be loaded: {reason} (log: {start.log})")


def _models_of(dead: list[int], processes: ModelProcesses, loading: set[str]) -> set[str]:
    """Return the models of dead processes; empty while they are unknown, since others may still start."""
    known = {processes.names[pid] for pid in dead if pid in processes.names}
    candidates = processes.without(loading)
    return known or (candidates if len(dead) >= len(candidates) else set())


def _end(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM, wait, then SIGKILL the rest of its group; a second Ctrl-C skips the wait."""
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_GRACE_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
