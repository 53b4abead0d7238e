"""The processes of peers: started in their environment, given images, and ended with all that they have started."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from nst_bench.engines.base import MissingEngine
from nst_bench.measure import timed
from nst_bench.photographs import sample_photograph
from nst_core.images import Pixels
from nst_server.endpoints import Endpoints

WORKER = Path(__file__).parent / "worker" / "main.py"

START_SECONDS = 120.0
"""How long a peer's server may take to answer for the first time."""

IDLE_SECONDS = 2.0
"""Servers close idle connections: after this time a new one is opened, outside of what is timed."""

END_SECONDS = 20.0
"""How long a peer may take to end before it is killed."""


class PeerProcess(Protocol):
    """A peer at work, warm. Both methods raise `MissingEngine` with its last words when it has failed."""

    def seconds(self, pixels: Pixels) -> float:
        """How long the peer takes for an image."""

    def stylize(self, pixels: Pixels) -> Pixels:
        """The stylized image, `uint8 [H, W, 3]`."""


def installed_packages(python: Path) -> dict[str, str]:
    """Versions of the packages in the peers' environment, by the names that pip uses."""
    found: dict[str, str] = json.loads(subprocess.run([python, WORKER, "versions"], capture_output=True).stdout)
    return found


@contextmanager
def start_peer(python: Path, peer: str, model: Path, *, over_http: bool) -> Iterator[PeerProcess]:
    """The peer with an ONNX file and all cores, in a process that ends with the block. Raises `MissingEngine`."""
    command = [str(python), str(WORKER), peer, str(model.resolve()), str(os.cpu_count() or 1)]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        log = Path(scratch) / "log.txt"
        output = stack.enter_context(log.open("w"))
        if over_http:
            port = Endpoints.free().http_port
            process = stack.enter_context(_process([*command, str(port)], output, stdout=output))
            served = HttpPeer(port)
            stack.callback(served.close)
            _wait_until_served(served, process, log)
            yield served
        else:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = stack.enter_context(_process(command, output, **pipes))
            piped = PipedPeer(process, Path(scratch) / "image.npy", log)
            piped.stylize(sample_photograph(64, 64))
            yield piped


class PipedPeer:
    """A peer in a process of its own, which times itself."""

    def __init__(self, process: subprocess.Popen[str], file: Path, log: Path) -> None:
        self._process, self._file, self._log = process, file, log

    def seconds(self, pixels: Pixels) -> float:
        """By the peer's clock, from an image in its memory to an image in its memory."""
        assert self._process.stdin and self._process.stdout
        np.save(self._file, pixels)
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{self._file}\n")
            self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise MissingEngine(_last_line(self._log))
        return float(json.loads(answer)["seconds"])

    def stylize(self, pixels: Pixels) -> Pixels:
        """See `PeerProcess`."""
        self.seconds(pixels)
        stylized: Pixels = np.load(self._file.with_suffix(".stylized.npy"))
        return stylized


class HttpPeer:
    """A peer that serves on this machine, and a client with one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300.0)
        self._used = -IDLE_SECONDS

    def seconds(self, pixels: Pixels) -> float:
        """By our clock, from the request to the last byte of the answer, over an open connection."""
        self._connect()
        return timed(lambda: self.stylize(pixels))

    def stylize(self, pixels: Pixels) -> Pixels:
        """See `PeerProcess`."""
        body = io.BytesIO()
        np.save(body, pixels)
        self._connect()
        headers = {"Content-Type": "application/octet-stream"}
        self._connection.request("POST", "/stylize", body.getvalue(), headers)
        answer = self._connection.getresponse()
        content = answer.read()
        self._used = time.monotonic()
        if answer.status != 200:
            raise MissingEngine(f"answers {answer.status} {content[:200].decode(errors='replace')}")
        return np.asarray(np.load(io.BytesIO(content)), dtype=np.uint8)

    def close(self) -> None:
        """Close the connection; the next image opens another."""
        self._connection.close()
        self._used = -IDLE_SECONDS

    def _connect(self) -> None:
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._connection.close()
            self._connection.connect()


def _wait_until_served(peer: HttpPeer, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            peer.stylize(sample_photograph(64, 64))
            return
        except (OSError, http.client.HTTPException, MissingEngine) as error:
            peer.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise MissingEngine(f"does not serve: {_last_line(log)} ({error})") from error
            time.sleep(0.2)


@contextmanager
def _process(command: list[str], output: IO[str], **pipes: Any) -> Iterator[subprocess.Popen[str]]:
    """A process and all that it starts, ended with the block; its messages go to the file `output`."""
    path = f"{Path(command[0]).parent}:{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("VIRTUAL_ENV", None)
    process = subprocess.Popen(command, text=True, stderr=output, start_new_session=True, env=environment, **pipes)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what a server's master has left
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


def _last_line(log: Path) -> str:
    """The last message of a peer."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a message"
