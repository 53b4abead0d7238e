"""Keep Triton running: start it, watch it, and restart it when it or the process of a model dies."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from nst_server.access import Access
from nst_server.control import Control, Model
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.process.model_processes import ModelProcesses
from nst_server.process.triton_process import READY_TIMEOUT_SECONDS, ModelProcessDied, Start, ready_triton
from nst_server.process.watcher import RepositoryWatcher, watching
from nst_server.repository.models import model_names
from nst_server.tls import Certificate
from nst_server.triton_command import Launch, Runnable

CHECK_SECONDS = 1.0
"""Interval of the checks of a serving Triton's processes."""

FIRST_PAUSE_SECONDS = 0.5
"""Pause before Triton is restarted; it doubles with every further failure."""

MAX_FAILURES = 5
SERVICE_SECONDS = 60.0
"""Triton is not restarted after `MAX_FAILURES` failures in a row with less service between them than this."""


@contextmanager
def run_triton(
    installation: Runnable,
    repository: Path,
    endpoints: Endpoints,
    log: Path,
    *,
    ready_timeout_seconds: float = READY_TIMEOUT_SECONDS,
    poll: float | None = None,
    access: Access | None = None,
    certificate: Certificate | None = None,
    on_error: Callable[[str], None] = lambda line: None,
) -> Iterator[subprocess.Popen[str]]:
    """Run Triton on `repository` with its models loaded and warm; end it with the block.

    Its output goes to `log`, its errors also to `on_error`, a line each. A model that cannot be loaded is reported as
    an error, and the others are served. It loads models on request (`nst serve load`, `nst export --load`), and every
    `poll` seconds those that are new in the repository. With `access` it requires secrets; with `certificate`, which
    needs `endpoints.behind_tls()`, everything except its ports on 127.0.0.1 is TLS. Raises `ServerError` if the
    repository is empty, a port is taken, no model can be loaded, or none is ready after `ready_timeout_seconds`.
    """
    launch = Launch(repository, endpoints, poll, access, certificate)
    with _running(Start(installation, launch, log, ready_timeout_seconds, on_error)) as process:
        yield process


def supervise(
    installation: Runnable,
    launch: Launch,
    log: Path,
    *,
    ready_timeout_seconds: float = READY_TIMEOUT_SECONDS,
    on_error: Callable[[str], None] = lambda line: None,
    on_ready: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Run Triton as `run_triton` does, and restart it whenever it ends by itself or the process of a model dies.

    `on_ready` is called whenever a Triton is ready; `on_error` receives the reason for every restart. The log
    continues. Raises `ServerError` if the first Triton does not become ready, and after `MAX_FAILURES` in a row with
    less than `SERVICE_SECONDS` of service between them. Call it in the main thread: Linux ends Triton when the thread
    that started it ends.
    """
    start = Start(installation, launch, log, ready_timeout_seconds, on_error)
    failures = 0
    while True:
        ready_since = None
        try:
            with _running(start) as process:
                ready_since = time.monotonic()
                on_ready()
                reason = f"{wait_for_failure(process, launch, on_error)} (log: {log})"
                process.kill()  # requests for a model without a process would never end
        except ServerError as error:
            if not start.keep_log:
                raise
            reason = str(error)
        start = replace(start, keep_log=True)
        failures = 1 if ready_since and time.monotonic() - ready_since > SERVICE_SECONDS else failures + 1
        if failures == MAX_FAILURES:
            raise ServerError(f"{reason}; {failures} failures with less than {SERVICE_SECONDS:.0f} s between them")
        pause = FIRST_PAUSE_SECONDS * 2 ** (failures - 1)
        on_error(f"{reason}; restarting in {pause:g} s")
        time.sleep(pause)


@contextmanager
def _running(start: Start) -> Iterator[subprocess.Popen[str]]:
    """See `run_triton`. If a model's process dies while loading, retry without that model."""
    model_names(start.launch.repository)
    start.launch.endpoints.check_free()
    watcher = RepositoryWatcher(start.launch.repository, start.on_error)
    names = watcher.names()
    while True:
        start = replace(start, launch=replace(start.launch, models=tuple(names)))
        with ExitStack() as resources:
            try:
                process, control = resources.enter_context(ready_triton(start))
            except ModelProcessDied as died:
                line = (
                    f"{', '.join(sorted(died.models)) or 'a model'} cannot be served: its process ended during "
                    f"loading: {died} (log: {start.log})"
                )
                names = [name for name in names if name not in died.models]
                if not died.models or not names:
                    raise ServerError(line) from died
                start.on_error(line)
                start = replace(start, keep_log=True)
                continue
            if start.launch.poll:
                resources.enter_context(watching(watcher, control, start.launch.poll))
            yield process
            return


def wait_for_failure(process: subprocess.Popen[str], launch: Launch, on_error: Callable[[str], None]) -> str:
    """Wait until Triton ends by itself or the process of one of its models dies; return which one.

    A process that dies while its model is loading is reported to `on_error`, and the other models are still served.
    """
    control = Control.of_launch(launch)
    processes = ModelProcesses(process.pid)
    reported: set[int] = set()
    while True:
        dead = [pid for pid in processes.dead() if pid not in reported]
        models = _models(control) if dead else []
        loading = {model.name for model in models if model.state == "LOADING"}
        for pid in dead:
            name = processes.names.get(pid)
            if not (name in loading if name else loading):
                name = name or _without_process(models, processes)
                return f"the process of {name} in Triton has died"
            on_error(
                f"the process of {name or loading.pop()} ended during loading, and Triton still waits for it; "
                "restart the server to load it"
            )
            reported.add(pid)
        with suppress(subprocess.TimeoutExpired):
            return f"Triton ended by itself with exit status {process.wait(CHECK_SECONDS)}"


def _models(control: Control) -> list[Model]:
    """Return Triton's models; none if it does not answer."""
    with suppress(ServerError):
        return control.models(timeout_seconds=5.0)
    return []


def _without_process(models: list[Model], processes: ModelProcesses) -> str:
    """Return the ready model without a process, which died before it was ever seen alive."""
    candidates = processes.without({model.name for model in models if model.ready})
    return candidates.pop() if len(candidates) == 1 else "a model"
