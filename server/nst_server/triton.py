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
from dataclasses import dataclass, field, replace
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
from nst_server.links import Links, linked
from nst_server.repository import models
from nst_server.watching import Watch, watched

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

DONE = re.compile(r"(?:successfully loaded|failed to load|Poll failed for model directory) '([^']+)'")
UNREAD = re.compile(r"Poll failed for model directory '([^']+)': (.*)")
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
    and the others are served. It loads what it is asked to load (`nst-serve load`, `nst-export --load`), and every
    `poll` seconds what is new in the repository. With `access` it asks for secrets; with `certificate`, which goes
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
                reason = _failure(process, launch, on_error)
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


def _failure(process: subprocess.Popen[str], launch: Launch, on_error: Callable[[str], None]) -> str:
    """Wait until Triton has ended by itself, or the process of one of its models has died; which of it happened.

    A process that dies while its model is loaded is told of and let be: the others are served.
    """
    control = Control(launch.endpoints.control, launch.access.key if launch.access else None, str(launch.repository))
    stubs = _Stubs(process.pid)
    told: set[int] = set()
    while True:
        lasting = stubs.dead()
        listed = _listed(control) if set(lasting) - told else []
        loading = {model.name for model in listed if model.state == "LOADING"}
        for pid in [pid for pid in lasting if pid not in told]:
            name = stubs.names.get(pid)
            if name in loading if name else loading:
                on_error(
                    f"the process of {name or loading.pop()} ended while it was loaded, and that load does not end; "
                    "end the server and start it again to load it"
                )
                told.add(pid)
                continue
            # One that died before it was ever seen alive is of the model that is served and has no process.
            orphans = {model.name for model in listed if model.ready} - set(stubs.alive.values())
            known = name or (orphans.pop() if len(orphans) == 1 else "a model")
            return f"the process of {known} in Triton has died"
        with suppress(subprocess.TimeoutExpired):
            return f"Triton ended by itself with exit status {process.wait(LOOK_SECONDS)}"


class _Stubs:
    """The processes of a Triton's models, looked at again and again."""

    def __init__(self, triton: int) -> None:
        self._triton = triton
        self._since: dict[int, float] = {}
        self.names: dict[int, str] = {}
        self.alive: dict[int, str] = {}

    def dead(self) -> list[int]:
        """Look: those that have been dead for `DEAD_SECONDS` and are not cleared away."""
        now, found = time.monotonic(), _stubs(self._triton)
        self.alive = {pid: name for pid, name in found.items() if name}
        self.names |= self.alive
        self._since = {pid: self._since.get(pid, now) for pid, name in found.items() if not name}
        return [pid for pid, since in self._since.items() if now - since >= DEAD_SECONDS]


def _listed(control: Control) -> list[Model]:
    """Triton's models; none if it does not answer."""
    with suppress(ServerError):
        return control.models(timeout_seconds=5.0)
    return []


def _stubs(triton: int) -> dict[int, str]:
    """Triton's processes of models, each with its model's name, or an empty one if it is dead and not cleared away.

    One that could not even be started is a dead bash, or a dead copy of Triton.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            head, _, fields = (folder / "stat").read_text().rpartition(")")
            state, parent = fields.split()[:2]
            if int(parent) != triton:
                continue
            if state == "Z" or head.endswith(f"({STUB}"):
                arguments = (folder / "cmdline").read_text().split("\0")  # a dead one has none
                found[int(folder.name)] = Path(arguments[1]).parent.parent.name if len(arguments) > 1 else ""
    return found


@dataclass
class _Talk:
    """What a Triton says: all into its log, its errors to `on_error` too, with the paths that the user knows."""

    file: TextIO
    links: Links | None
    on_error: Callable[[str], None]
    secrets: list[str]
    errors: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    """Models that are loaded, or have failed to."""
    last: str = "it said nothing"
    """The last line that is not Triton's own, but of the shell, the loader or Python."""

    def copy(self, process: subprocess.Popen[str]) -> None:
        """Until Triton ends; with its first line it has read its arguments."""
        assert process.stdout is not None
        for line in process.stdout:
            line = self.links.outward(line) if self.links else line
            self.file.write(line)
            self.file.flush()
            if not (match := LOG_LINE.match(line)):
                self.last = line.strip() or self.last
                continue
            if self.secrets:
                hide(process.pid, self.secrets)
                self.secrets = []
            if done := DONE.match(match[2]):
                self.done.add(done[1])
            if match[1] in "EF" and (said := _told(match[2])):
                self.errors.append(said)
                self.on_error(said)


class _Died(Exception):
    """The processes of these models ended while they were loaded, and Triton would wait for them for ever.

    There are none where it cannot be told whose process it was.
    """

    def __init__(self, models: set[str], reason: str) -> None:
        super().__init__(reason)
        self.models = models


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
    models(launch.repository)
    launch.endpoints.check_free()
    watch = Watch(launch.repository, on_error)
    names = watch.names()
    while True:
        launch = replace(launch, models=tuple(names))
        with _logged(log, fresh=fresh) as file, ExitStack() as around:
            try:
                process, control = around.enter_context(_ready(installation, launch, file, log, patience, on_error))
            except _Died as died:
                whose = ", ".join(sorted(died.models)) or "a model"
                line = f"{whose} cannot be served: the process ended while it was loaded: {died} (its log: {log})"
                names = [name for name in names if name not in died.models]
                if not died.models or not names:
                    raise ServerError(line) from died
                on_error(line)
                fresh = False
                continue
            if launch.poll:
                around.enter_context(watched(watch, control, launch.poll))
            yield process
            return


@contextmanager
def _logged(log: Path, *, fresh: bool) -> Iterator[TextIO]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            log.write_text("")
        file = log.open("a", encoding="utf-8", errors="backslashreplace")  # a detached nst-serve writes to it too
    except OSError as error:
        raise InputError(f"cannot write the log {log}: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def _ready(
    installation: Runnable,
    launch: Launch,
    file: TextIO,
    log: Path,
    patience: float,
    on_error: Callable[[str], None],
) -> Iterator[tuple[subprocess.Popen[str], Control]]:
    """A Triton whose models are loaded; `_Died` when the process of a model has ended meanwhile."""
    endpoints, access, certificate = launch.endpoints, launch.access, launch.certificate
    key, token = (access.key, access.token) if access else (None, None)
    control = Control(endpoints.control, key, str(launch.repository))
    with ExitStack() as around:
        links = None
        command, variables = installation.command(launch), dict(installation.environment)
        if isinstance(installation, Installation):  # a container has paths of its own
            links = around.enter_context(linked(launch.repository, installation.folder))
            command, variables = links.command(command), links.variables(variables)
        if certificate and endpoints.plain:
            ports = dict(zip((endpoints.http_port, endpoints.metrics_port), endpoints.plain, strict=True))
            around.enter_context(front.tls(certificate, endpoints.listening["grpc"][0], ports))
        process = subprocess.Popen(
            [sys.executable, "-c", START, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**MEMORY, **os.environ, **variables},
            cwd="/",  # the stubs import from their working directory first: a folder there may be called numpy
            start_new_session=True,  # Ctrl-C reaches us alone; we end Triton and its stubs in order
        )
        talk = _Talk(file, links, on_error, [secret for secret in (key, token) if secret])
        reader = threading.Thread(target=talk.copy, args=(process,), name="triton-log", daemon=True)
        reader.start()
        try:
            _wait_until_ready(process, control, launch, patience, talk, log)
            yield process, control
        finally:
            _end(process)
            reader.join(timeout=5.0)
            if process.stdout:
                process.stdout.close()


def _told(message: str) -> str | None:
    """An error of Triton's log for a person, or None if there is nothing in it to know."""
    if message.startswith((*HARMLESS, *REPEATED)):
        return None
    if match := NOT_LOADED.match(message):
        name, version, reason = match.groups()
        return f"{name} version {version} is not served: {cause(reason)}"
    if match := UNREAD.match(message):
        return f"{match[1]} is not served: {match[2]}"
    return message


def _wait_until_ready(
    process: subprocess.Popen[str], control: Control, launch: Launch, patience: float, talk: _Talk, log: Path
) -> None:
    """Until Triton answers, which it does when it is done with loading, and at least one model is ready."""
    deadline = time.monotonic() + patience
    stubs = _Stubs(process.pid)
    while not control.live():
        if process.poll() is not None:
            last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            reason = talk.errors[0] if talk.errors else f"exit status {process.returncode}, {last}"
            raise ServerError(f"Triton ended before it was ready: {reason} (its log: {log})")
        lasting = stubs.dead()
        late = time.monotonic() > deadline
        whose = _whose(lasting, stubs, set(launch.models or ()) - talk.done)
        if whose or (lasting and late):
            raise _Died(whose, talk.last)
        if late:
            raise ServerError(f"Triton was not ready after {patience:.0f} s (its log: {log})")
        time.sleep(0.1)
    if not any(model.ready for model in control.models()):
        reason = talk.errors[0] if talk.errors else "no reason given"
        raise ServerError(f"no model could be loaded: {reason} (its log: {log})")


def _whose(lasting: list[int], stubs: _Stubs, waiting: set[str]) -> set[str]:
    """The models of the dead processes; empty as long as it cannot be told, since others are still to be started."""
    known = {stubs.names[pid] for pid in lasting if pid in stubs.names}
    orphans = waiting - set(stubs.alive.values())
    return known or (orphans if len(lasting) >= len(orphans) else set())


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, time to finish, then SIGKILL for it and whatever of its group is left; a second Ctrl-C ends the wait."""
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
