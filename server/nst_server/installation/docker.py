"""Run NVIDIA's container on the same model repository."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from nst_core import devices
from nst_core.contract import Variable
from nst_core.devices import Device, DeviceChoice
from nst_core.errors import InputError
from nst_server.access import Access
from nst_server.endpoints import host
from nst_server.errors import ServerError
from nst_server.triton_command import ALLOCATOR_VARIABLES, STACK_BYTES, Launch

IMAGE = "nvcr.io/nvidia/tritonserver:26.09-py3"
"""Triton 2.73.0."""

PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
"""Ports inside the container."""


def device_for(wanted: DeviceChoice, gpus: str | None) -> tuple[Device, str | None]:
    """Return a container's device, and the value of `docker run --gpus`: `gpus`, else all GPUs, or None.

    Raises `InputError` for `--gpus` with a CPU, and for `--device gpu` without a GPU.
    """
    if gpus is None:
        device = devices.choose(wanted)
        return device, "all" if device.kind == "gpu" else None
    if wanted == "cpu":
        raise InputError(f"--gpus {gpus} needs --device gpu or auto, not cpu")
    return Device("gpu", f"the container gets --gpus {gpus}"), gpus


@dataclass(frozen=True)
class Container:
    """A Triton image, and its GPUs in the syntax of `docker run --gpus` (`all`, `device=0`)."""

    image: str = IMAGE
    gpus: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, image: str, gpus: str | None, access: Access) -> Container:
        """Create the container of a server; its secrets are passed in the environment, not as arguments."""
        return cls(image, gpus, {"NST_KEY": access.key, Variable.TOKEN: access.token or ""})

    def check(self) -> None:
        """Raise `ServerError` if there is no `docker`."""
        if not shutil.which("docker"):
            raise ServerError(
                "--docker needs docker in PATH; install Docker, or leave out --docker to run Triton from PyPI"
            )

    def command(self, launch: Launch) -> list[str]:
        """See `Runnable`."""
        token = bool(launch.access and launch.access.token)
        options = launch.options(
            "/models",
            {service: ("0.0.0.0", port) for service, port in PORTS.items()},
            ("/tls/chain.pem", "/tls/key.pem") if launch.certificate else None,
            Access("$NST_KEY", "$NST_TOKEN" if token else None) if launch.access else None,
        )
        published = [
            f"--publish={host(address)}:{port}:{PORTS[service]}"
            for service, (address, port) in launch.endpoints.listening.items()
        ]
        mounted = [_mount(launch.repository, "/models")]
        if pair := launch.certificate:
            mounted += [_mount(pair.chain, "/tls/chain.pem"), _mount(pair.key, "/tls/key.pem")]
        command = ["docker", "run", "--rm", f"--name=nst-serve-{launch.endpoints.http_port}"]
        if self.gpus:
            command.append(f"--gpus={self.gpus}")
        command += [f"--ulimit=stack={STACK_BYTES}", *published, *mounted]
        command += [f"--env={name}={value}" for name, value in ALLOCATOR_VARIABLES.items()]
        if launch.access:
            command.append("--env=NST_KEY")
        if token:
            command.append(f"--env={Variable.TOKEN}")
        shell = " ".join(["exec tritonserver", *(f'"{option}"' for option in options)])
        return [*command, self.image, "sh", "-c", shell]


def _mount(source: Path, target: str) -> str:
    """Return the option that mounts a file or folder read-only.

    Its fields are CSV, which allows any path; `--volume` splits at `:`.
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(
        ["type=bind", f"source={source.resolve()}", f"target={target}", "readonly"]
    )
    return f"--mount={line.getvalue()}"
