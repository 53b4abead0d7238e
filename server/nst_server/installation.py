"""Triton on this machine: the one in PATH, or one from PyPI in an environment for each device.

The environments are separate since each has another package with the module `onnxruntime`, and separate from nst's
own since Triton's Python backend needs numpy < 2.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from nst_core import devices, engines
from nst_core.devices import Device
from nst_core.engines import plans
from nst_core.errors import InputError
from nst_core.files import written_whole
from nst_server.command import Launch
from nst_server.errors import ServerError

TRITON = "nvidia-pytriton==0.7.0"
"""Triton 2.51.0 with its Python backend."""

CPU_PACKAGES = (TRITON, "onnxruntime-openvino==1.24.1")
"""For a CPU: what our `onnxruntime` backend runs on."""

GPU_PACKAGES = {
    13: (
        TRITON,
        "onnxruntime-gpu[cuda,cudnn]==1.31.1",
        "tensorrt-cu13==10.15.1.29",
        "cuda-bindings==13.0.3",
        "nvidia-ml-py==13.615.71",
    ),
    12: (
        TRITON,
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


def find(environment: Path, say: Callable[[str], None], device: Device | None = None) -> Installation:
    """`tritonserver` from PATH, else the one in `environment` for `device`, installed there first if need be.

    Without `device` it is the one that `--device auto` chooses. `say` is told about an installation, which takes
    minutes. Raises `ServerError` with the reason when there is none to be had.
    """
    device = device or devices.choose()
    if binary := shutil.which("tritonserver"):
        return Installation((str(Path(binary).absolute()),), _visible(device))
    return install(environment, say, device)


def install(
    environment: Path, say: Callable[[str], None] = lambda line: None, device: Device | None = None
) -> Installation:
    """Triton from PyPI for `device`, in the folder `cpu` or `gpu` of `environment`.

    Nothing is installed if the same packages are there already; other ones make room for them. Raises `ServerError`
    if pip fails, or if this Python has no shared library, which Triton's Python backend links to; `InputError` for
    a driver that is too old.
    """
    device = device or devices.choose()
    wanted = packages(device)
    library = _python_library()
    folder = environment / device.kind
    if not _complete(folder, wanted):
        with _alone(folder, say):
            if not _complete(folder, wanted):  # another process may have installed them meanwhile
                _install(folder, wanted, say)
    found = site_packages(folder.resolve())
    triton = found / "pytriton" / "tritonserver"
    backends = _assemble_backends(folder, triton)
    libraries = [found / "nvidia_pytriton.libs", library.parent]
    of_gpu = {}
    if device.kind == "gpu":
        libraries += [*sorted(found.glob("nvidia/*/lib")), found / "tensorrt_libs"]
        of_gpu = {
            "NST_CACHE": str(plans.cache_folder().parent.resolve()),  # where nst-serve builds plans, backends look
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
    """Where an environment of the running Python's version has its packages."""
    return folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"


def tensorrt_version(folder: Path) -> str | None:
    """The version of TensorRT in an environment, such as `10.15.1.29`; None if it has none."""
    for name in ("tensorrt-cu13", "tensorrt-cu12"):
        for found in metadata.distributions(name=name, path=[str(site_packages(folder))]):
            return found.version
    return None


def _visible(device: Device) -> dict[str, str]:
    """A server for the CPU sees no GPU: Triton would place models there that name no device."""
    return {"CUDA_VISIBLE_DEVICES": ""} if device.kind == "cpu" else {}


def _complete(folder: Path, wanted: tuple[str, ...]) -> bool:
    """Whether an environment has these packages, a Python that runs, and one `onnxruntime` only."""
    stamp = folder / "installed.txt"
    return (
        stamp.exists()
        and stamp.read_text().split() == list(wanted)
        and python(folder).exists()
        and len(list(site_packages(folder).glob("onnxruntime*.dist-info"))) == 1
    )


def _install(folder: Path, wanted: tuple[str, ...], say: Callable[[str], None]) -> None:
    gpu = wanted != CPU_PACKAGES
    takes = "a few gigabytes, which take some minutes" if gpu else "this takes a minute"
    say(f"installing Triton from PyPI into {folder} ({', '.join(wanted)}); {takes}")
    stamp = folder / "installed.txt"
    stamp.unlink(missing_ok=True)
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise ServerError(f"pip could not install {' '.join(wanted)}: {_why(result.stderr)}")
    stamp.write_text("\n".join(wanted))


def _why(said: str) -> str:
    """The reason in what pip says; of TensorRT's package, which says it in a page, the usual one."""
    if NVIDIA_INDEX in said:
        return (
            f"TensorRT's libraries come from {NVIDIA_INDEX}, which this machine does not reach; let it reach that, or "
            "use --device cpu"
        )
    errors = [line for line in said.splitlines() if line.lower().startswith("error:")]
    return (errors or ["no reason given"])[-1]


@contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
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
            say(f"another process installs Triton into {folder}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _assemble_backends(folder: Path, triton: Path) -> Path:
    """The backend folder: Triton's own `python`, and ours that build on it, each with the engines that it runs."""
    backends = folder.resolve() / "backends"
    stub = triton / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub"
    if not stub.exists():
        known = sorted(path.name for path in (triton / "python_backend_stubs").glob("3.*"))
        raise ServerError(f"this Triton serves Python {', '.join(known)}, not {sysconfig.get_python_version()}")
    for source in filter(Path.is_file, (triton / "backends" / "python").iterdir()):
        _place(source, backends / "python" / source.name)
    _place(stub, backends / "python" / stub.name)
    ours = Path(__file__).parent / "backends"
    for model in ours.glob("*/model.py"):
        for source in (model, ours / "backend_common.py"):
            _place(source, backends / model.parent.name / source.name)
        for source in Path(engines.__path__[0]).glob("*.py"):
            _place(source, backends / model.parent.name / "engines" / source.name)
    return backends


def _place(source: Path, target: Path) -> None:
    """Copy a file unless it is there already; by renaming, since another Triton may be running the old one."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    with written_whole(target) as beside:
        shutil.copyfile(source, beside)
    target.chmod(source.stat().st_mode)
