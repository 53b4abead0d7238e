"""Triton on this machine: from PATH, or from PyPI in an environment for each device."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nst_core import devices
from nst_core.contract import Variable
from nst_core.devices import Device
from nst_core.files import cache_folder
from nst_server.installation.backends import assemble_backends
from nst_server.installation.environment import install_packages, packages, site_packages
from nst_server.triton_command import Launch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Installation:
    """A Triton on this machine: its binary with fixed arguments, and its environment variables.

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
    """Return `tritonserver` from PATH, else from `environment` for `device`, installed first if necessary.

    Without `device`, choose as `--device auto` does. `on_message` receives a line before an installation, which takes
    minutes. Raises `ServerError` with the reason if there is no Triton.
    """
    device = device or devices.choose()
    if binary := shutil.which("tritonserver"):
        logger.info("Triton from PATH: %s", binary)
        return Installation((str(Path(binary).absolute()),), _visible(device))
    return install_triton(environment, on_message, device)


def install_triton(
    environment: Path, on_message: Callable[[str], None] = lambda line: None, device: Device | None = None
) -> Installation:
    """Install Triton from PyPI for `device` into the folder `cpu` or `gpu` of `environment`.

    Nothing is installed if the same packages are already there; other packages are removed first. The environment uses
    the Python that `interpreter.choose` finds. Raises `ServerError` if there is none, if pip fails, or on a system that
    Triton from PyPI does not support; `InputError` for a driver that is too old, or for a GPU's user without a home
    folder.
    """
    device = device or devices.choose()
    folder = environment / device.kind
    embedded = install_packages(folder, packages(device), on_message)
    installed = site_packages(folder.resolve(), embedded.version)
    triton = installed / "pytriton" / "tritonserver"
    backends = assemble_backends(folder, triton, embedded.version)
    logger.info("Triton from PyPI in %s, Python %s", folder, embedded.version)
    libraries = [installed / "nvidia_pytriton.libs", embedded.library.parent]
    if device.kind == "gpu":
        libraries += [*sorted(installed.glob("nvidia/*/lib")), installed / "tensorrt_libs"]
    paths = [*map(str, libraries), os.environ.get("LD_LIBRARY_PATH", "")]
    return Installation(
        (str(triton / "bin" / "tritonserver"), "--backend-directory", str(backends)),
        {
            "LD_LIBRARY_PATH": ":".join(filter(None, paths)),
            "PATH": f"{(folder / 'bin').resolve()}:{os.environ['PATH']}",
            **_device_variables(device),
        },
        folder,
    )


def _device_variables(device: Device) -> dict[str, str]:
    if device.kind == "cpu":
        return _visible(device)
    return {
        Variable.CACHE: str(cache_folder().resolve()),  # backends look where we build plans
        "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),  # as in NVML, so GPU 0 is the same
    }


def _visible(device: Device) -> dict[str, str]:
    """Hide the GPUs from a server for the CPU, on which Triton would place models that name no device."""
    return {"CUDA_VISIBLE_DEVICES": ""} if device.kind == "cpu" else {}
