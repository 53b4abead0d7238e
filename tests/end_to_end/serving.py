"""Commands as a user types them, and a real server with its processes."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from nst_core.images import Pixels
from nst_export.graph.conversion import export_onnx
from nst_export.modules import Exportable, TiledModel
from nst_export.repository.model_config import MAXIMUM_PIXELS, ServingOptions, model_config
from nst_export.repository.publishing import publish_version
from nst_server.endpoints import Endpoints
from nst_server.state import key_for

T = TypeVar("T")

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
TRITON = ROOT / ".triton"


def run(*command: object, timeout: float = 300.0, **options: Any) -> subprocess.CompletedProcess[str]:
    name, *arguments = map(str, command)
    return subprocess.run([str(BIN / name), *arguments], capture_output=True, text=True, timeout=timeout, **options)


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stderr


def certificate(folder: Path, names: str = "DNS:localhost,IP:127.0.0.1") -> tuple[Path, Path]:
    """Signed by itself, as the docs make one: the files of its chain and its key."""
    chain, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    more = ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command, *more], check=True, capture_output=True)
    return chain, key


def publish(
    model: Exportable,
    name: str,
    styles: tuple[str, ...],
    repository: Path,
    *,
    maximum_pixels: int = MAXIMUM_PIXELS,
    instances: int = 1,
    keep: int | None = None,
) -> Path:
    """The next version of a model, as nst-export makes it, without the gate, which takes its time, and the warm-up."""
    multiple = model.network.multiple
    parameters = {"multiple": str(multiple), "purpose": model.purpose}
    if isinstance(model, TiledModel):
        parameters["overlap"] = str(model.overlap)
    serving = ServingOptions(
        styles, cores=2, instances=instances, multiple=multiple, maximum_pixels=maximum_pixels, parameters=parameters
    )
    message = model_config(name, model.inputs, model.output, serving)
    del message.model_warmup[:]
    with TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        export_onnx(model, graph, {})
        return publish_version({graph.name: graph}, name, repository, message, keep=keep)


@dataclass(frozen=True)
class Models:
    """A model of the styles a and b with its tiled pair, and a model `starry`: as they are served, and in PyTorch."""

    repository: Path
    served: dict[str, Exportable]

    @torch.no_grad()
    def stylized(self, pixels: Pixels) -> Pixels:
        """By the model `starry`, `[N, H, W, 3]`."""
        return self.served["starry"](torch.from_numpy(pixels)).numpy()

    @torch.no_grad()
    def stylized_with(self, pixels: Pixels, small: Pixels, weights: tuple[float, float]) -> Pixels:
        """One pass of the model of two styles with the statistics of `small`."""
        style_weights = torch.tensor([weights])
        statistics = self.served["large_statistics"](torch.from_numpy(small[None]), style_weights)
        return self.served["large_tiled"](torch.from_numpy(pixels[None]), statistics, style_weights)[0].numpy()


@dataclass
class Server:
    """A running `nst-serve`: where it listens and its messages."""

    process: subprocess.Popen[str]
    endpoints: Endpoints
    messages: list[str]

    @property
    def key(self) -> str:
        """What guards loading and unloading: the value of the header `nst-token`."""
        key = key_for(self.endpoints.http)
        assert key is not None
        return key

    def started(self, times: int) -> None:
        """Wait until it has been ready so many times."""
        deadline = time.monotonic() + 120
        while sum(line.startswith("ready:") for line in self.messages) < times:
            assert self.process.poll() is None and time.monotonic() < deadline, self.messages
            time.sleep(0.05)

    def stop(self, sign: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(sign)
        return self.process.wait(60)


def serve(repository: Path, log: Path, *options: object, endpoints: Endpoints | None = None) -> Server:
    endpoints = endpoints or Endpoints.free()
    command = [str(BIN / "nst-serve"), f"--repository={repository}", f"--log={log}", f"--triton={TRITON}"]
    command += ["--device=cpu", f"--http-port={endpoints.http_port}", f"--grpc-port={endpoints.grpc_port}"]
    command += [f"--metrics-port={endpoints.metrics_port}", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    server = Server(process, endpoints, [])
    ready = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.messages.append(line.rstrip())
            if line.startswith("ready:"):
                ready.set()
        ready.set()
        process.stderr.close()

    threading.Thread(target=listen, daemon=True).start()
    assert ready.wait(240) and process.poll() is None, server.messages
    return server


def settled(read: Callable[[], T]) -> T:
    """What `read` gives once it stays the same: a server counts a request after it has answered."""
    deadline, last = time.monotonic() + 30, read()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (now := read()) == last:
            return now
        last = now
    raise AssertionError(f"still changing: {last}")


def descendants(pid: int) -> set[int]:
    """Every process that descends from `pid`."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those that have not ended; a zombie has."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


def command_line(pid: int) -> str:
    """Of a process, which may have ended since it was found."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def triton_of(server: Server) -> int:
    """The process of Triton itself."""
    found = descendants(server.process.pid)
    (pid,) = [pid for pid in found if command_line(pid).partition("\0")[0].endswith("tritonserver")]
    return pid
