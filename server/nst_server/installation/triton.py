"""Triton on this machine: the one in PATH, or one from PyPI in an environment for each device.

The environments are separate since each has another package with the module `onnxruntime`, and separate from nst's
own since Triton's Python backend embeds a Python of few versions, which need not be the one that runs nst.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from nst_core import devices, engines
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_core.files import atomic_write, cache_folder
from nst_server.errors import ServerError
from nst_server.installation import interpreter
from nst_server.installation.interpreter import Interpreter
from nst_server.launch import Launch

TRITON = "nvidia-pytriton==0.7.0"
"""Triton 2.51.0 with its Python backend. Only its files are used, so what the package requires is not installed."""

GLIBC = (2, 35)
"""The oldest version of glibc that it runs on: that of Ubuntu 22.04; Debian 12 has 2.36."""

NUMPY = "numpy==2.4.6"
"""The same for every device and Python; the backends exchange tensors with Triton by DLPack."""

CPU_PACKAGES = (TRITON, NUMPY, "onnxruntime-openvino==1.24.1")
"""For a CPU: what our `onnxruntime` backend runs on."""

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
"""For an NVIDIA GPU, by the major version of CUDA that the driver runs at least."""

NVIDIA_INDEX = "https://pypi.nvidia.com"
"""Where TensorRT's package has its libraries from."""


@dataclass(frozen=True)
class Installation:
    """A Triton on this machine: its binary, with what must be said to it always.

    `folder` is its environment, with our backends in it; None for a Triton from PATH, which has its own.
    """

    binary: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def command(self, launch: Launch) -> list[str]:
        """See `Runnable`."""
        pair = launch.certificate
        certificate = (str(pair.chain.resolve()), str(pair.key.resolve())) if pair else None
        options = launch.options(
            str(launch.repository.resolve()), launch.endpoints.listening, certificate, launch.access
        )
        return [*self.binary, *options]


def find_triton(environment: Path, on_message: Callable[[str], None], device: Device | None = None) -> Installation:
    """`tritonserver` from PATH, else the one in `environment` for `device`, installed there first if need be.

    Without `device` it is the one that `--device auto` chooses. `on_message` says so before an installation,
    which takes minutes. Raises `ServerError` with the reason when there is none to be had.
    """
    device = device or devices.choose()
    if binary := shutil.which("tritonserver"):
        return Installation((str(Path(binary).absolute()),), _visible(device))
    return install_triton(environment, on_message, device)


def install_triton(
    environment: Path, on_message: Callable[[str], None] = lambda line: None, device: Device | None = None
) -> Installation:
    """Triton from PyPI for `device`, in the folder `cpu` or `gpu` of `environment`.

    Nothing is installed if the same packages are there already; other ones make room for them. The environment is of
    the Python that `interpreter.choose` finds. Raises `ServerError` if there is none, if pip fails, or on a system
    that Triton from PyPI does not run on; `InputError` for a driver that is too old, or for a GPU's user without a
    home folder.
    """
    device = device or devices.choose()
    wanted = packages(device)
    folder = environment / device.kind
    embedded = _complete(folder, wanted)
    if embedded is None:
        _check_system()
        with _alone(folder, on_message):  # another process may install them meanwhile
            embedded = _complete(folder, wanted) or _install(folder, wanted, on_message)
    found = _packages(folder.resolve(), embedded.version)
    triton = found / "pytriton" / "tritonserver"
    backends = _assemble_backends(folder, triton, embedded.version)
    libraries = [found / "nvidia_pytriton.libs", embedded.library.parent]
    of_gpu = {}
    if device.kind == "gpu":
        libraries += [*sorted(found.glob("nvidia/*/lib")), found / "tensorrt_libs"]
        of_gpu = {
            "NST_CACHE": str(cache_folder().resolve()),  # where nst-serve builds plans, backends look
            "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),  # NVML's, so GPU 0 is the same
        }
    paths = [*map(str, libraries), os.environ.get("LD_LIBRARY_PATH", "")]
    return Installation(
        (str(triton / "bin" / "tritonserver"), "--backend-directory", str(backends)),
        {
            "LD_LIBRARY_PATH": ":".join(filter(None, paths)),
            "PATH": f"{(folder / 'bin').resolve()}:{os.environ['PATH']}",
            **of_gpu,
            **_visible(device),
        },
        folder,
    )


def packages(device: Device) -> tuple[str, ...]:
    """What an environment for `device` holds; `InputError` for a driver that is too old for any."""
    gpu = device.gpu
    if gpu is None:
        return CPU_PACKAGES
    fitting = [cuda for cuda in GPU_PACKAGES if cuda <= gpu.cuda[0]]
    if not fitting:
        raise InputError(
            f"the driver {gpu.driver} runs CUDA {gpu.cuda[0]}.{gpu.cuda[1]}, and Triton needs CUDA "
            f"{min(GPU_PACKAGES)} or later: update the driver, or use --device cpu"
        )
    return GPU_PACKAGES[max(fitting)]


def python(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / "bin" / "python"


def site_packages(folder: Path) -> Path:
    """Where an environment has its packages; one that is not there yet is of the running Python's version."""
    found = sorted(folder.glob("lib/python3.*/site-packages"))
    return found[-1] if found else _packages(folder, sysconfig.get_python_version())


def _packages(folder: Path, version: str) -> Path:
    return folder / "lib" / f"python{version}" / "site-packages"


def tensorrt_version(folder: Path) -> str | None:
    """The version of TensorRT in an environment, such as `10.15.1.29`; None if it has none."""
    for name in ("tensorrt-cu13", "tensorrt-cu12"):
        for found in metadata.distributions(name=name, path=[str(site_packages(folder))]):
            return found.version
    return None


def _visible(device: Device) -> dict[str, str]:
    """A server for the CPU sees no GPU: Triton would place models there that name no device."""
    return {"CUDA_VISIBLE_DEVICES": ""} if device.kind == "cpu" else {}


def _complete(folder: Path, wanted: tuple[str, ...]) -> Interpreter | None:
    """The Python of an environment if it runs and has these packages, and one `onnxruntime` only."""
    stamp = folder / "installed.txt"
    if not stamp.exists() or tuple(stamp.read_text().split()) != wanted:
        return None
    try:
        found = interpreter.inspect(python(folder))
    except ServerError:  # it was taken away
        return None
    runtimes = list(_packages(folder, found.version).glob("onnxruntime*.dist-info"))
    return found if len(runtimes) == 1 else None


def _check_system() -> None:
    """Raise `ServerError` on a system for which PyPI has no Triton."""
    libc, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if (platform.system(), platform.machine(), libc) != ("Linux", "x86_64", "glibc") or numbers < GLIBC:
        here = " ".join(filter(None, (platform.system(), platform.machine(), libc, version)))
        raise ServerError(
            f"Triton from PyPI needs Linux on x86-64 with glibc {'.'.join(map(str, GLIBC))} or later, and this is "
            f"{here}: serve with --docker, or put a tritonserver into PATH"
        )


def _install(folder: Path, wanted: tuple[str, ...], on_message: Callable[[str], None]) -> Interpreter:
    """Make the environment; see `install_triton`."""
    chosen = interpreter.choose(folder.with_name("python"), on_message)
    gpu = wanted != CPU_PACKAGES
    takes = "a few gigabytes, which take some minutes" if gpu else "this takes a minute"
    of = f"Python {chosen.version} of {chosen.program}"
    on_message(f"installing Triton from PyPI into {folder} ({of}, {', '.join(wanted)}); {takes}")
    stamp = folder / "installed.txt"
    stamp.unlink(missing_ok=True)
    command = [*chosen.create(folder), "install", "--quiet", "--disable-pip-version-check", "--only-binary=numpy"]
    for packages in (["--no-deps", TRITON], [package for package in wanted if package != TRITON]):
        result = subprocess.run([*command, *packages], capture_output=True, text=True)
        if result.returncode != 0:
            raise ServerError(f"pip could not install {' '.join(wanted)}: {_why(result.stderr)}")
    stamp.write_text("\n".join(wanted))
    return interpreter.inspect(python(folder))


def _why(said: str) -> str:
    """The reason in what pip says; of TensorRT's package, which says it in a page, the usual one."""
    if NVIDIA_INDEX in said:
        return (
            f"TensorRT's libraries come from {NVIDIA_INDEX}, which this machine does not reach; let it reach that, or "
            "use --device cpu"
        )
    return interpreter.reason(said)


@contextmanager
def _alone(folder: Path, on_message: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from installing into the same folder."""
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise ServerError(
            f"cannot install Triton into {folder}: {error.strerror}; name another folder with --triton"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_message(f"another process installs Triton into {folder}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _assemble_backends(folder: Path, triton: Path, version: str) -> Path:
    """The backend folder: Triton's own `python`, and ours that build on it, each with the engines that it runs."""
    backends = folder.resolve() / "backends"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    for source in filter(Path.is_file, (triton / "backends" / "python").iterdir()):
        _place(source, backends / "python" / source.name)
    _place(stub, backends / "python" / stub.name)
    ours = Path(__file__).parents[1] / "backends"
    for model in ours.glob("*/model.py"):
        backend = backends / model.parent.name
        for source in (*model.parent.glob("*.py"), ours / "backend_common.py"):
            _place(source, backend / source.name)
        for source in Path(engines.__path__[0]).glob("*.py"):
            _place(source, backend / "engines" / source.name)
    return backends


def _place(source: Path, target: Path) -> None:
    """Copy a file unless it is there already; by renaming, since another Triton may be running the old one."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    with atomic_write(target) as beside:
        shutil.copyfile(source, beside)
    target.chmod(source.stat().st_mode)
