"""NVIDIA's Triton: found in PATH or installed from PyPI, started, made ready, and ended for good."""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from nst_core.errors import InputError, NstError
from nst_core.files import written_whole

PACKAGES = ("nvidia-pytriton==0.7.0", "onnxruntime-openvino==1.24.1")
"""Triton 2.51.0 with its Python backend, and what our `onnxruntime` backend runs on."""

HARMLESS = ("CudaDriverHelper has not been initialized",)
"""Error lines that every machine without a GPU gets; they stay in the log."""

END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Becomes Triton, having asked Linux to end it when we die without a chance to do so (`kill -9`)."""

END_SECONDS = 20.0
"""How long Triton may take to end its requests before it is killed."""


class ServerError(NstError):
    """Triton cannot be found, installed, started, or made ready."""


@dataclass(frozen=True)
class Installation:
    """A Triton that can be run: the command's beginning, and what its environment needs."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoints:
    """Where a Triton listens."""

    address: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    @classmethod
    def free(cls) -> Endpoints:
        """Three ports of 127.0.0.1 that nobody uses now."""
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        return cls("127.0.0.1", *ports)

    @property
    def http(self) -> str:
        """The URL that the client takes for HTTP."""
        return f"http://{self.address}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """The URL that the client takes for gRPC."""
        return f"grpc://{self.address}:{self.grpc_port}"

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
    names = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
    if not names:
        raise ServerError(f"{repository}: no model in it; export one with nst-export style.pth -r {repository}")
    return names


@contextmanager
def running(
    installation: Installation,
    repository: Path,
    endpoints: Endpoints,
    log: Path,
    *,
    patience: float = 300.0,
    poll: float | None = None,
    on_error: Callable[[str], None] = lambda line: None,
) -> Iterator[subprocess.Popen[str]]:
    """Triton on `repository`, every model loaded and warm; ended when the block is left, however.

    Its output goes to `log`, its error lines to `on_error` too. Every `poll` seconds it looks for new versions;
    without, it loads what it is asked to load (`nst-export --load`). Raises `ServerError` when the
    repository is empty, a port is taken, a model fails to load, or nothing is ready after
    `patience` seconds.
    """
    models(repository)
    endpoints.check_free()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("w")
    except OSError as error:
        raise InputError(f"cannot write the log {log}: {error.strerror}") from error
    errors: list[str] = []
    with file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", END_WITH_PARENT),
                *installation.command,
                f"--model-repository={repository.resolve()}",
                *_control(poll),
                f"--http-address={endpoints.address}",
                f"--http-port={endpoints.http_port}",
                f"--grpc-address={endpoints.address}",
                f"--grpc-port={endpoints.grpc_port}",
                f"--metrics-address={endpoints.address}",
                f"--metrics-port={endpoints.metrics_port}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **installation.environment},
            start_new_session=True,  # Ctrl-C reaches us alone; we end Triton and its stubs in order
        )
        reader = threading.Thread(
            target=_copy_log, args=(process, file, errors, on_error), name="triton-log", daemon=True
        )
        reader.start()
        try:
            _wait_until_ready(process, endpoints, patience, errors, log)
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


def _copy_log(process: subprocess.Popen[str], file: TextIO, errors: list[str], on_error: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        file.write(line)
        file.flush()
        if line.startswith("E") and "]" in line[:60]:
            message = line.split("]", 1)[1].strip().strip('"')
            if not message.startswith(HARMLESS):
                errors.append(message)
                on_error(message)


def _wait_until_ready(
    process: subprocess.Popen[str], endpoints: Endpoints, patience: float, errors: list[str], log: Path
) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if process.poll() is not None:
            reason = errors[0] if errors else f"exit status {process.returncode}"
            raise ServerError(f"Triton ended before it was ready: {reason} (its log: {log})")
        try:
            with urllib.request.urlopen(f"{endpoints.http}/v2/health/ready", timeout=5.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServerError(f"Triton was not ready after {patience:.0f} s (its log: {log})")


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, time to finish, then SIGKILL for it and whatever of its group is left."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
