"""NVIDIA's Triton: found in PATH, installed from PyPI or in its container; started, made ready, and ended for good."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn, Protocol, TextIO

from nst_core.errors import InputError
from nst_core.files import written_whole
from nst_server import front
from nst_server.access import Access, hide
from nst_server.control import Control, Model, cause
from nst_server.errors import ServerError as ServerError
from nst_server.front import Certificate

PACKAGES = ("nvidia-pytriton==0.7.0", "onnxruntime-openvino==1.24.1")
"""Triton 2.51.0 with its Python backend, and what our `onnxruntime` backend runs on."""

HARMLESS = ("CudaDriverHelper has not been initialized",)
"""Error lines that every machine without a GPU gets; they stay in the log."""

STACK = 512 << 20
"""Bytes of address space for a thread's stack. Triton's HTTP takes stack for every level of a request's JSON and every
chunk of its body: with Linux's usual 8 MiB, a body of 200 kB of brackets, or of 600,000 chunks, would end it."""

MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
"""One heap for all threads of a process, and pixels beside it, unless the environment says otherwise: with a heap a
thread and large blocks within, as glibc has it, pictures of changing sizes made Triton grow for as long as it was
watched."""

START = f"""
import ctypes, os, resource, signal, sys
_, most = resource.getrlimit(resource.RLIMIT_STACK)
resource.setrlimit(resource.RLIMIT_STACK, ({STACK} if most < 0 else min({STACK}, most), most))
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Becomes Triton, or docker, which hands signals on; having asked Linux to end it when we die without a chance to do so
(`kill -9`)."""

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


@dataclass(frozen=True)
class Endpoints:
    """Where a Triton is reached.

    With TLS, `plain` are the ports of 127.0.0.1 where its own HTTP and metrics, which know no TLS, really listen.
    """

    address: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    plain: tuple[int, int] | None = None

    @classmethod
    def free(cls) -> Endpoints:
        """Three ports of 127.0.0.1 that nobody uses now."""
        http, grpc, metrics = _free_ports(3)
        return cls("127.0.0.1", http, grpc, metrics)

    def behind_tls(self) -> Endpoints:
        """The same with TLS, and free plain ports behind it."""
        http, metrics = _free_ports(2)
        return replace(self, plain=(http, metrics))

    @property
    def http(self) -> str:
        """The URL that the client takes for HTTP."""
        return f"{'https' if self.plain else 'http'}://{self.address}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """The URL that the client takes for gRPC."""
        return f"{'grpcs' if self.plain else 'grpc'}://{self.address}:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """Where Prometheus finds the metrics."""
        return f"{'https' if self.plain else 'http'}://{self.address}:{self.metrics_port}/metrics"

    @property
    def control(self) -> str:
        """The URL at which this machine reaches Triton's plain HTTP."""
        if self.plain:
            return f"http://127.0.0.1:{self.plain[0]}"
        return f"http://{'127.0.0.1' if self.address == '0.0.0.0' else self.address}:{self.http_port}"

    @property
    def listening(self) -> dict[str, tuple[str, int]]:
        """Triton's own listeners by service: address and port."""
        if self.plain:
            http, metrics = (("127.0.0.1", port) for port in self.plain)
        else:
            http, metrics = (self.address, self.http_port), (self.address, self.metrics_port)
        return {"http": http, "grpc": (self.address, self.grpc_port), "metrics": metrics}

    def check_free(self) -> None:
        """Raise `ServerError` naming the first port that is taken or cannot be had."""
        for option in ("http", "grpc", "metrics"):
            port = getattr(self, f"{option}_port")
            try:
                socket.create_server((self.address, port)).close()
            except OSError as error:
                raise ServerError(
                    f"cannot listen on {self.address}:{port} ({error.strerror}); choose another with --{option}-port"
                ) from error


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass(frozen=True)
class Launch:
    """What a Triton is started for. Without `access` nothing is closed to anybody who reaches it."""

    repository: Path
    endpoints: Endpoints
    poll: float | None = None
    access: Access | None = None
    certificate: Certificate | None = None

    def options(
        self,
        repository: str,
        listening: dict[str, tuple[str, int]],
        certificate: tuple[str, str] | None,
        access: Access | None,
    ) -> list[str]:
        """Triton's options, with names of files, listeners and secrets as the process that gets them sees them."""
        options = [
            f"--model-repository={repository}",
            "--exit-on-error=false",  # one bad model must not take the others down
            *_control(self.poll),
            *(access.options(self.endpoints.address) if access else ()),
        ]
        for service, (address, port) in listening.items():
            options += [f"--{service}-address={address}", f"--{service}-port={port}"]
        if certificate:
            chain, key = certificate
            options += ["--grpc-use-ssl=true", f"--grpc-server-cert={chain}", f"--grpc-server-key={key}"]
        return options


class Runnable(Protocol):
    """A Triton that can be run: the command for a launch, and what its environment needs."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables besides those of this process."""

    def command(self, launch: Launch) -> list[str]:
        """The whole command line."""


@dataclass(frozen=True)
class Installation:
    """A Triton on this machine: its binary, with what must be said to it always."""

    binary: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, launch: Launch) -> list[str]:
        """See `Runnable`."""
        pair = launch.certificate
        certificate = (str(pair.chain.resolve()), str(pair.key.resolve())) if pair else None
        options = launch.options(
            str(launch.repository.resolve()), launch.endpoints.listening, certificate, launch.access
        )
        return [*self.binary, *options]


def find(environment: Path, say: Callable[[str], None]) -> Installation:
    """`tritonserver` from PATH, else the one in `environment`, installed there first if need be.

    `say` is told about an installation, which takes a minute. Raises `ServerError` with the reason
    when there is none to be had.
    """
    if binary := shutil.which("tritonserver"):
        return Installation((binary,))
    return install(environment, say)


def install(environment: Path, say: Callable[[str], None] = lambda line: None) -> Installation:
    """Triton from PyPI in a virtual environment of its own (it needs numpy < 2).

    Nothing is done if the same packages are there already. Raises `ServerError` if pip fails, or
    if this Python has no shared library, which Triton's Python backend links to.
    """
    library = _python_library()
    python = environment / "bin" / "python"
    complete = environment / "installed.txt"
    if not complete.exists() or complete.read_text().split() != list(PACKAGES):
        say(f"installing Triton from PyPI into {environment} ({', '.join(PACKAGES)}); this takes a minute")
        complete.unlink(missing_ok=True)
        venv.create(environment, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            raise ServerError(f"pip could not install {' '.join(PACKAGES)}: {(errors or ['no reason given'])[-1]}")
        complete.write_text("\n".join(PACKAGES))
    packages = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    backends = _assemble_backends(environment, packages / "pytriton" / "tritonserver")
    libraries = [str(packages / "nvidia_pytriton.libs"), str(library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    binary = packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    return Installation(
        (str(binary), "--backend-directory", str(backends)),
        {
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "PATH": f"{python.parent.resolve()}:{os.environ['PATH']}",
        },
    )


def _python_library() -> Path:
    """The running Python's shared library, which the Python backend's stub loads."""
    version = sysconfig.get_python_version()
    name = f"libpython{version}.so.1.0"
    places = [sysconfig.get_config_var("LIBDIR"), "/usr/lib", f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}"]
    for place in filter(None, places):
        if (path := Path(place) / name).exists():
            return path
    raise ServerError(
        f"Triton's Python backend needs {name}, which {sys.executable} does not come with: "
        f"apt-get install libpython{version}, or use a Python built with --enable-shared"
    )


def _assemble_backends(environment: Path, triton: Path) -> Path:
    """The backend folder: Triton's own `python`, and our `onnxruntime` that builds on it."""
    folder = environment.resolve() / "backends"
    stub = triton / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub"
    if not stub.exists():
        known = sorted(path.name for path in (triton / "python_backend_stubs").glob("3.*"))
        raise ServerError(f"this Triton serves Python {', '.join(known)}, not {sysconfig.get_python_version()}")
    for source in filter(Path.is_file, (triton / "backends" / "python").iterdir()):
        _place(source, folder / "python" / source.name)
    _place(stub, folder / "python" / stub.name)
    _place(Path(__file__).parent / "backends" / "onnxruntime" / "model.py", folder / "onnxruntime" / "model.py")
    return folder


def _place(source: Path, target: Path) -> None:
    """Copy a file unless it is there already; by renaming, since another Triton may be running the old one."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    with written_whole(target) as beside:
        shutil.copyfile(source, beside)
    target.chmod(source.stat().st_mode)


def models(repository: Path) -> list[str]:
    """Names of the models in a repository; `ServerError` if it is missing or empty."""
    if not repository.is_dir():
        raise ServerError(f"{repository}: no such model repository; make one with nst-export style.pth -r {repository}")
    names = sorted(
        folder.name
        for folder in repository.iterdir()
        if (folder / "config.pbtxt").is_file() or any(folder.glob("[0-9]*/model.*"))
    )
    if not names:
        raise ServerError(f"{repository}: no model in it; export one with nst-export style.pth -r {repository}")
    return names


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


def _control(poll: float | None) -> list[str]:
    """Triton's options for who decides what is loaded."""
    if poll is None:
        return ["--model-control-mode=explicit", "--load-model=*"]
    return ["--model-control-mode=poll", f"--repository-poll-secs={max(1, round(poll))}"]


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
