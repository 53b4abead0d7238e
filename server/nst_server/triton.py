"""Running Triton on a model repository: started, made ready, watched, and ended for good."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TextIO

from nst_core.errors import InputError
from nst_server import front
from nst_server.access import Access, hide
from nst_server.command import MEMORY as MEMORY
from nst_server.command import STACK as STACK
from nst_server.command import START
from nst_server.command import Launch as Launch
from nst_server.command import Runnable as Runnable
from nst_server.control import Control, Model, cause
from nst_server.endpoints import Endpoints as Endpoints
from nst_server.errors import ServerError as ServerError
from nst_server.front import Certificate
from nst_server.installation import Installation as Installation
from nst_server.installation import find as find
from nst_server.installation import install as install
from nst_server.repository import models

HARMLESS = ("CudaDriverHelper has not been initialized",)
"""Error lines that every machine without a GPU gets; they stay in the log."""

END_SECONDS = 20.0
"""How long Triton may take to end its requests before it is killed."""

STUB = "triton_python_b"
"""The process of a model in Triton's Python backend, by the 15 letters that Linux keeps of its name."""

LOOK_SECONDS, DEAD_SECONDS = 1.0, 2.0
"""How often such processes are looked at, and how long one may be dead. Of a model that is unloaded it is gone at once;
one that dies by itself stays dead, and every request for its model waits in vain."""

FIRST_PAUSE = 0.5
"""Seconds before Triton is started again; after every further failure twice as long."""

FAILURES, SERVICE_SECONDS = 5, 60.0
"""So many failures in a row, with no such time of service between them, and Triton is not started again."""

LOG_LINE = re.compile(r'([IWEF])\d{4} [^]]*\] "?(.*?)"?$')
"""A line of Triton's log: how grave, and the message."""

NOT_LOADED = re.compile(r"failed to load '([^']+)' version (\d+): (.*)")
REPEATED = ("ERROR: Failed to create instance", "Internal: failed to load all models")
"""Error lines of a model that is not loaded: the one with its name and the reason, and those that only repeat it."""


@contextmanager
def running(
    installation: Runnable,
    repository: Path,
    endpoints: Endpoints,
    log: Path,
    *,
    patience: float = 300.0,
    poll: float | None = None,
    access: Access | None = None,
    certificate: Certificate | None = None,
    on_error: Callable[[str], None] = lambda line: None,
) -> Iterator[subprocess.Popen[str]]:
    """Triton on `repository`, its models loaded and warm; ended when the block is left, however.

    Its output goes to `log`, its errors to `on_error` too, a line each. A model that cannot be loaded is such a line,
    and the others are served. Every `poll` seconds it looks for new versions; without, it loads what it is asked to
    load (`nst-serve load`, `nst-export --load`). With `access` it asks for secrets; with `certificate`, which goes
    with `endpoints.behind_tls()`, everything but its ports on 127.0.0.1 is TLS. Raises `ServerError` when the
    repository is empty, a port is taken, no model at all can be loaded, or nothing is ready after `patience` seconds.
    """
    launch = Launch(repository, endpoints, poll, access, certificate)
    with _started(installation, launch, log, patience, on_error) as process:
        yield process


def supervised(
    installation: Runnable,
    launch: Launch,
    log: Path,
    *,
    patience: float = 300.0,
    on_error: Callable[[str], None] = lambda line: None,
    on_ready: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Triton as `running` has it, and another at the same place whenever it ends by itself or a model's process does.

    `on_ready` is called whenever one is ready; `on_error` is told why it is started again. The log goes on. Raises
    `ServerError` when the first does not become ready, and after `FAILURES` in a row that `SERVICE_SECONDS` of service
    did not part. To be called in the main thread: Linux ends Triton when the thread that has started it ends.
    """
    failures, first = 0, True
    while True:
        since = None
        try:
            with _started(installation, launch, log, patience, on_error, fresh=first) as process:
                since = time.monotonic()
                on_ready()
                reason = _failure(process, launch)
                process.kill()  # no request of a model without a process would ever end
        except ServerError as error:
            if first:
                raise
            reason = str(error)
        else:
            reason = f"{reason} (its log: {log})"
        first = False
        failures = 1 if since and time.monotonic() - since > SERVICE_SECONDS else failures + 1
        if failures == FAILURES:
            raise ServerError(f"{reason}, {failures} times with less than {SERVICE_SECONDS:.0f} s of service between")
        pause = FIRST_PAUSE * 2 ** (failures - 1)
        on_error(f"{reason}; starting it again in {pause:g} s")
        time.sleep(pause)


def _failure(process: subprocess.Popen[str], launch: Launch) -> str:
    """Wait until Triton has ended by itself, or the process of one of its models has died; which of it happened.

    A process that dies while its model is loaded is let be: the others are served, and another Triton, which loads the
    same model, might never become ready.
    """
    control = Control(launch.endpoints.control, launch.access.key if launch.access else None)
    names: dict[int, str] = {}
    dead: dict[int, float] = {}
    while True:
        now = time.monotonic()
        stubs = _stubs(process.pid)
        names |= {pid: name for pid, name in stubs.items() if name}
        dead = {pid: dead.get(pid, now) for pid, name in stubs.items() if not name}
        lasting = [pid for pid, since in dead.items() if now - since >= DEAD_SECONDS]
        listed = _listed(control) if lasting else []
        loading = {one.name for one in listed if one.state == "LOADING"}
        for pid in lasting:
            if not (names[pid] in loading if pid in names else loading):
                # One that died before it was ever seen alive is of the model that is served and has no process.
                orphans = {one.name for one in listed if one.ready} - set(stubs.values())
                known = names.get(pid) or (orphans.pop() if len(orphans) == 1 else "a model")
                return f"the process of {known} in Triton has died"
        with suppress(subprocess.TimeoutExpired):
            return f"Triton ended by itself with exit status {process.wait(LOOK_SECONDS)}"


def _listed(control: Control) -> list[Model]:
    """Triton's models; none if it does not answer."""
    with suppress(ServerError):
        return control.models(patience=5.0)
    return []


def _stubs(triton: int) -> dict[int, str]:
    """Triton's processes of models, each with its model's name, or an empty one if it is dead and not cleared away."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            head, _, fields = (folder / "stat").read_text().rpartition(")")
            if int(fields.split()[1]) == triton and head.endswith(f"({STUB}"):
                arguments = (folder / "cmdline").read_text().split("\0")  # a dead one has none
                found[int(folder.name)] = Path(arguments[1]).parent.parent.name if len(arguments) > 1 else ""
    return found


@contextmanager
def _started(
    installation: Runnable,
    launch: Launch,
    log: Path,
    patience: float,
    on_error: Callable[[str], None],
    *,
    fresh: bool = True,
) -> Iterator[subprocess.Popen[str]]:
    """See `running`; the log is emptied if it is to be `fresh`."""
    endpoints, access, certificate = launch.endpoints, launch.access, launch.certificate
    models(launch.repository)
    endpoints.check_free()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            log.write_text("")
        file = log.open("a")  # a detached nst-serve writes to it too
    except OSError as error:
        raise InputError(f"cannot write the log {log}: {error.strerror}") from error
    errors: list[str] = []

    def heard(line: str) -> None:
        errors.append(line)
        on_error(line)

    with file, ExitStack() as around:
        if certificate and endpoints.plain:
            ports = dict(zip((endpoints.http_port, endpoints.metrics_port), endpoints.plain, strict=True))
            around.enter_context(front.tls(certificate, endpoints.address, ports))
        process = subprocess.Popen(
            [sys.executable, "-c", START, *installation.command(launch)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**MEMORY, **os.environ, **installation.environment},
            cwd="/",  # the stubs import from their working directory first: a folder there may be called numpy
            start_new_session=True,  # Ctrl-C reaches us alone; we end Triton and its stubs in order
        )
        key, token = (access.key, access.token) if access else (None, None)
        secrets = [secret for secret in (key, token) if secret]
        reader = threading.Thread(
            target=_copy_log, args=(process, file, heard, secrets), name="triton-log", daemon=True
        )
        reader.start()
        try:
            _wait_until_ready(process, Control(endpoints.control, key), patience, errors, log)
            yield process
        finally:
            _end(process)
            reader.join(timeout=5.0)
            if process.stdout:
                process.stdout.close()


def _copy_log(process: subprocess.Popen[str], file: TextIO, heard: Callable[[str], None], secrets: list[str]) -> None:
    """Triton's output into the log, and its errors to `heard`; with the first line it has read its arguments."""
    assert process.stdout is not None
    for line in process.stdout:
        file.write(line)
        file.flush()
        if not (match := LOG_LINE.match(line)):
            continue
        if secrets:
            hide(process.pid, secrets)
            secrets = []
        if match[1] in "EF" and (said := _told(match[2])):
            heard(said)


def _told(message: str) -> str | None:
    """An error of Triton's log for a person, or None if there is nothing in it to know."""
    if message.startswith((*HARMLESS, *REPEATED)):
        return None
    if match := NOT_LOADED.match(message):
        name, version, reason = match.groups()
        return f"{name} version {version} is not served: {cause(reason)}"
    return message


def _wait_until_ready(
    process: subprocess.Popen[str], control: Control, patience: float, errors: list[str], log: Path
) -> None:
    """Until Triton answers, which it does when it is done with loading, and at least one model is ready."""
    deadline = time.monotonic() + patience
    while not control.live():
        if process.poll() is not None:
            last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            reason = errors[0] if errors else f"exit status {process.returncode}, {last}"
            raise ServerError(f"Triton ended before it was ready: {reason} (its log: {log})")
        if time.monotonic() > deadline:
            raise ServerError(f"Triton was not ready after {patience:.0f} s (its log: {log})")
        time.sleep(0.1)
    if not any(model.ready for model in control.models()):
        raise ServerError(f"no model could be loaded: {errors[0] if errors else 'no reason given'} (its log: {log})")


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, time to finish, then SIGKILL for it and whatever of its group is left."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
