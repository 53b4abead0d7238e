"""An environment with Triton from PyPI: its packages for each device, and installing them.

There is an environment per device, since each needs a different package with the module `onnxruntime`. They are
separate from nst's own, since Triton's Python backend embeds one of few Python versions, which may differ from nst's.
"""

from __future__ import annotations

import fcntl
import platform
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from nst_core.devices import Device
from nst_core.errors import InputError
from nst_server.errors import ServerError
from nst_server.installation import interpreter
from nst_server.installation.interpreter import Interpreter

TRITON = "nvidia-pytriton==0.7.0"
"""Triton 2.51.0 with its Python backend. Only its files are used, so the package's requirements are not installed."""

GLIBC = (2, 35)
"""Minimum glibc version: that of Ubuntu 22.04; Debian 12 has 2.36."""

NUMPY = "numpy==2.4.6"
"""The same for every device and Python; the backends exchange tensors with Triton by DLPack."""

CPU_PACKAGES = (TRITON, NUMPY, "onnxruntime-openvino==1.24.1")
"""Packages for a CPU, on which our `onnxruntime` backend runs."""

GPU_PACKAGES = {
    13: (
        TRITON,
        NUMPY,
        "onnxruntime-gpu[cuda,cudnn]==1.31.1",
        "tensorrt-cu13==10.15.1.29",
        "cuda-bindings==13.0.3",
        "nvidia-ml-py==13.615.71",
    ),
    12: (
        TRITON,
        NUMPY,
        "onnxruntime-gpu[cuda,cudnn]==1.24.4",
        "tensorrt-cu12==10.15.1.29",
        "cuda-bindings==12.9.10",
        "nvidia-ml-py==13.615.71",
    ),
}
"""Packages for an NVIDIA GPU, by the minimum major CUDA version of the driver."""

NVIDIA_INDEX = "https://pypi.nvidia.com"
"""Package index with TensorRT's libraries."""


STAMP = "installed.txt"
"""File in a complete environment: its packages, one per line."""


def packages(device: Device) -> tuple[str, ...]:
    """Return the packages of an environment for `device`; `InputError` for a driver that is too old."""
    gpu = device.gpu
    if gpu is None:
        return CPU_PACKAGES
    fitting = [cuda for cuda in GPU_PACKAGES if cuda <= gpu.cuda[0]]
    if not fitting:
        raise InputError(
            f"the driver {gpu.driver} supports CUDA {gpu.cuda[0]}.{gpu.cuda[1]}, but Triton needs CUDA "
            f"{min(GPU_PACKAGES)} or later; update the driver, or use --device cpu"
        )
    return GPU_PACKAGES[max(fitting)]


def install_packages(folder: Path, wanted: tuple[str, ...], on_message: Callable[[str], None]) -> Interpreter:
    """Install these packages into the environment `folder`, unless they are there; return its Python.

    `on_message` receives a line before an installation. Raises `ServerError` if there is no suitable Python, if pip
    fails, or on a system that Triton from PyPI does not support.
    """
    if found := _complete(folder, wanted):
        return found
    _check_system()
    with _locked(folder, on_message):  # another process may install them meanwhile
        return _complete(folder, wanted) or _install(folder, wanted, on_message)


def python(folder: Path) -> Path:
    """Return the Python of an environment."""
    return folder / "bin" / "python"


def site_packages(folder: Path, version: str | None = None) -> Path:
    """Return the package folder of an environment, for its Python's `version`, such as `3.12`.

    Without `version`, search for it; for an environment that does not exist yet, use the running Python's.
    """
    if version is None:
        if found := sorted(folder.glob("lib/python3.*/site-packages")):
            return found[-1]
        version = sysconfig.get_python_version()
    return folder / "lib" / f"python{version}" / "site-packages"


def tensorrt_version(folder: Path) -> str | None:
    """Return the version of TensorRT in an environment, such as `10.15.1.29`, or None."""
    for name in ("tensorrt-cu13", "tensorrt-cu12"):
        for found in metadata.distributions(name=name, path=[str(site_packages(folder))]):
            return found.version
    return None


def _complete(folder: Path, wanted: tuple[str, ...]) -> Interpreter | None:
    """Return the Python of an environment if it runs and has these packages, and only one `onnxruntime`."""
    stamp = folder / STAMP
    if not stamp.exists() or tuple(stamp.read_text().split()) != wanted:
        return None
    try:
        found = interpreter.inspect(python(folder))
    except ServerError:  # it was removed
        return None
    runtimes = list(site_packages(folder, found.version).glob("onnxruntime*.dist-info"))
    return found if len(runtimes) == 1 else None


def _check_system() -> None:
    """Raise `ServerError` on a system for which PyPI has no Triton."""
    libc, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if (platform.system(), platform.machine(), libc) != ("Linux", "x86_64", "glibc") or numbers < GLIBC:
        here = " ".join(filter(None, (platform.system(), platform.machine(), libc, version)))
        raise ServerError(
            f"Triton from PyPI needs Linux on x86-64 with glibc {'.'.join(map(str, GLIBC))} or later, but this is "
            f"{here}; serve with --docker, or put a tritonserver into PATH"
        )


def _install(folder: Path, wanted: tuple[str, ...], on_message: Callable[[str], None]) -> Interpreter:
    chosen = interpreter.choose(folder.with_name("python"), on_message)
    gpu = wanted != CPU_PACKAGES
    takes = "a few gigabytes, which takes some minutes" if gpu else "this takes a minute"
    of = f"Python {chosen.version} of {chosen.program}"
    on_message(f"installing Triton from PyPI into {folder} ({of}, {', '.join(wanted)}); {takes}")
    stamp = folder / STAMP
    stamp.unlink(missing_ok=True)
    command = [*chosen.create(folder), "install", "--quiet", "--disable-pip-version-check", "--only-binary=numpy"]
    for group in (["--no-deps", TRITON], [package for package in wanted if package != TRITON]):
        result = subprocess.run([*command, *group], capture_output=True, text=True)
        if result.returncode != 0:
            raise ServerError(f"pip could not install {' '.join(wanted)}: {_reason(result.stderr)}")
    stamp.write_text("\n".join(wanted))
    return interpreter.inspect(python(folder))


def _reason(output: str) -> str:
    """Explain from pip's output why it failed; for TensorRT's package, whose message fills a page, the usual reason."""
    if NVIDIA_INDEX in output:
        return (
            f"this machine cannot reach {NVIDIA_INDEX}, which has TensorRT's libraries; allow access to it, or "
            "use --device cpu"
        )
    return interpreter.reason(output)


@contextmanager
def _locked(folder: Path, on_message: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from installing into the same folder."""
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise ServerError(
            f"cannot install Triton into {folder}: {error.strerror}; choose another folder with --triton"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_message(f"waiting for another process that is installing Triton into {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
