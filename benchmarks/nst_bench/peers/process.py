"""Processes of peers: starting them in their environment, sending images, and ending them with their children."""

from __future__ import annotations

import http.client
import io
import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np

from nst_bench.engines.base import MissingEngine
from nst_bench.photographs import sample_photograph
from nst_core.images import Pixels
from nst_server.endpoints import Endpoints

WORKER = Path(__file__).parent / "worker" / "main.py"

START_SECONDS = 120.0
"""How long a peer may take to its first answer."""

IDLE_SECONDS = 2.0
"""Idle time after which a new connection is opened, outside the timing, as servers close idle ones."""

END_SECONDS = 20.0
"""How long a peer may take to end before it is killed."""


def installed_packages(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages `names` that are installed in the peers' environment."""
    found: dict[str, str] = json.loads(subprocess.check_output([python, WORKER, "versions", *names]))
    return found


class PeerProcess:
    """A running peer. Both methods raise `MissingEngine` with the last line of its log."""

    def __init__(self, connection: http.client.HTTPConnection, log: Path) -> None:
        self._connection, self._log, self._used = connection, log, -math.inf

    def seconds(self, pixels: Pixels) -> float:
        """Return the seconds for an image: of a library within its process, without the transfer.

        Of a server, from the request to the last byte of the answer over an open connection.
        """
        return self._answer(pixels)[0]

    def stylize(self, pixels: Pixels) -> Pixels:
        """Return the stylized image, `uint8 [H, W, 3]`."""
        return self._answer(pixels)[1]

    def _answer(self, pixels: Pixels) -> tuple[float, Pixels]:
        try:
            if time.monotonic() - self._used > IDLE_SECONDS:
                self._connection.close()
                self._connection.connect()
            self._used = -math.inf  # reset below on success
            started = time.perf_counter()
            body = io.BytesIO()
            np.save(body, pixels)
            self._connection.request("POST", "/stylize", body.getvalue(), {"Content-Type": "application/octet-stream"})
            answer = self._connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise MissingEngine(f"answered {answer.status}: {content[:200].decode(errors='replace')}")
            stylized = np.asarray(np.load(io.BytesIO(content)), dtype=np.uint8)
            seconds = time.perf_counter() - started
        except (OSError, http.client.HTTPException) as error:
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            raise MissingEngine(f"{lines[-1] if lines else 'no output'} ({error})") from error
        self._used = time.monotonic()
        return float(answer.headers.get("Seconds", seconds)), stylized


@contextmanager
def start_peer(python: Path, peer: str, model: Path) -> Iterator[PeerProcess]:
    """Start a peer with an ONNX file and all cores, and warm it up; it ends with the block. Raises `MissingEngine`."""
    port = Endpoints.free().http_port
    command = [str(python), str(WORKER), peer, str(model.resolve()), str(os.cpu_count() or 1), str(port)]
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300.0)
        with _process(command, log) as process, closing(connection):
            running = PeerProcess(connection, log)
            deadline = time.monotonic() + START_SECONDS
            while True:
                ended = process.poll() is not None or time.monotonic() > deadline
                try:
                    running.stylize(sample_photograph(64, 64))
                    break
                except MissingEngine as error:
                    if ended:
                        raise MissingEngine(f"does not answer: {error}") from error
                time.sleep(0.2)
            yield running


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, whose output goes to `log`; it ends with the block, together with its children."""
    path = f"{Path(command[0]).parent}:{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("VIRTUAL_ENV", None)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
        )
    try:
        yield process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):  # SIGKILL for children that are left
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
