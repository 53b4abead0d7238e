"""The process of a Triton: started, waited for until its models are loaded and warm, and ended."""

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
"""How long Triton may take to load its models."""

READY_POLL_SECONDS = 0.1

END_GRACE_SECONDS = 20.0
"""How long Triton may take to end its requests before it is killed."""


@dataclass(frozen=True)
class Start:
    """What starts: a Triton, what it is for, where its log goes, and how long it may take to be ready.

    `on_error` gets each error of Triton's log. The log is emptied first unless `keep_log`.
    """

    installation: Runnable
    launch: Launch
    log: Path
    ready_timeout_seconds: float = READY_TIMEOUT_SECONDS
    on_error: Callable[[str], None] = lambda line: None
    keep_log: bool = False


class ModelProcessDied(Exception):
    """The processes of these models ended while they were loaded, and Triton would wait for them for ever.

    `models` is empty where it is not known whose process it was.
    """

    def __init__(self, models: set[str], reason: str) -> None:
        super().__init__(reason)
        self.models = models


@contextmanager
def ready_triton(start: Start) -> Iterator[tuple[subprocess.Popen[str], Control]]:
    """A Triton whose models are loaded and warm; ended when the block is left.

    Raises `ModelProcessDied` when the process of a model ends meanwhile, and `ServerError` when Triton does, when it
    takes too long, or when no model is ready.
    """
    launch = start.launch
    with ExitStack() as resources:
        file = resources.enter_context(open_log(start.log, keep=start.keep_log))
        links = None
        if isinstance(start.installation, Installation):  # a container has paths of its own
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
        cwd="/",  # the stubs import from their working directory first: a folder there may be called numpy
        start_new_session=True,  # Ctrl-C reaches us alone; we end Triton and its stubs in order
    )


def _wait_until_ready(process: subprocess.Popen[str], control: Control, start: Start, reader: LogReader) -> None:
    """Wait until Triton answers, which it does when it has loaded its models, and a model is ready."""
    deadline = time.monotonic() + start.ready_timeout_seconds
    processes = ModelProcesses(process.pid)
    while not control.live():
        if process.poll() is not None:
            reason = f"exit status {process.returncode}, {last_line(start.log)}"
            reason = reader.errors[0] if reader.errors else reason
            raise ServerError(f"Triton ended before it was ready: {reason} (its log: {start.log})")
        dead = processes.dead()
        models = _models_of(dead, processes, set(start.launch.models or ()) - reader.settled)
        late = time.monotonic() > deadline
        if models or (dead and late):
            raise ModelProcessDied(models, reader.last_foreign_line)
        if late:
            raise ServerError(f"Triton was not ready after {start.ready_timeout_seconds:.0f} s (its log: {start.log})")
        time.sleep(READY_POLL_SECONDS)
    if not any(model.ready for model in control.models()):
        reason = reader.errors[0] if reader.errors else "no reason given"
        raise ServerError(f"no model could be loaded: {reason} (its log: {start.log})")


def _models_of(dead: list[int], processes: ModelProcesses, loading: set[str]) -> set[str]:
    """The models of dead processes; empty while they are not known, since other processes are still to be started."""
    known = {processes.names[pid] for pid in dead if pid in processes.names}
    candidates = processes.without(loading)
    return known or (candidates if len(dead) >= len(candidates) else set())


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, a grace period, then SIGKILL for what is left of its group; a second Ctrl-C ends the grace period."""
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_GRACE_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
