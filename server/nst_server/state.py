"""The state of a running server for the commands that control it: a private file named after its HTTP port.

The files are in `nst_core.files.state_folder()`: `$NST_STATE`, else `$XDG_STATE_HOME/nst`, else `~/.local/state/nst`.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from nst_core.contract import Variable
from nst_core.devices import Device
from nst_core.errors import InputError, WriteError
from nst_core.files import atomic_write, state_folder
from nst_server.access import Access, is_loopback
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError


@dataclass(frozen=True)
class State:
    """A running server: its process, addresses, models, device, and control key.

    `started` distinguishes the process from a later one with the same number: clock ticks since the machine's start.
    `control` is the URL at which this machine reaches Triton's plain HTTP.
    """

    pid: int
    started: int
    http: str
    grpc: str
    metrics: str
    control: str
    repository: str
    log: str
    key: str = field(repr=False)
    device: str = "unknown"

    @classmethod
    def here(cls, endpoints: Endpoints, repository: Path, log: Path, access: Access, device: Device) -> State:
        """Create the state of a server that this process runs."""
        pid = os.getpid()
        return cls(
            pid=pid,
            started=started(pid) or 0,
            http=endpoints.http,
            grpc=endpoints.grpc,
            metrics=endpoints.metrics,
            control=endpoints.control,
            repository=str(repository.resolve()),
            log=str(log.resolve()),
            key=access.key,
            device=str(device),
        )

    def running(self) -> bool:
        """Return whether the process still runs."""
        return started(self.pid) == self.started


def started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine's start; None if it is gone or a zombie."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] != "Z":
            return int(fields[19])
    return None


def check_folder(folder: Path) -> None:
    """Raise `WriteError` if no state file can be written, before a server starts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WriteError(
            f"cannot write to {folder}: {error.strerror}; set {Variable.STATE} to a writable folder"
        ) from error


@contextmanager
def kept(state: State, folder: Path, port: int) -> Iterator[None]:
    """Keep the state file while the block runs. Raises `WriteError` if it cannot be written."""
    file = _file(folder, port)
    with atomic_write(file, private=True, variable=Variable.STATE) as beside:
        beside.write_text(json.dumps(asdict(state), indent=2))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def read(folder: Path, port: int) -> State | None:
    """Return the state of the running server with this HTTP port, or None.

    Raises `ServerError` for a file that is not a state, or that belongs to another user.
    """
    file = _file(folder, port)
    try:
        state = State(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ServerError(f"{file} is not a server's state file; remove it") from error
    return state if state.running() else None


def key_for(url: str) -> str | None:
    """Return the key of this user's running server at `url`, or None; another machine's server never gets a key."""
    try:
        folder = state_folder()
    except InputError:  # a user without a home folder needs NST_STATE to start a server
        return None
    for file in folder.glob("serve-*.json"):
        with suppress(ServerError, ValueError):  # another user's file, or an invalid URL
            state = read(folder, int(file.stem.removeprefix("serve-")))
            if state and any(_same(urlsplit(url), urlsplit(ours)) for ours in (state.http, state.grpc)):
                return state.key
    return None


def _same(asked: SplitResult, ours: SplitResult) -> bool:
    """Return whether the URL `asked` leads to this machine's server at `ours`, which may listen on all addresses."""
    host = asked.hostname or ""
    return asked.port == ours.port and (is_loopback(host) or host in (ours.hostname, socket.gethostname()))


def _file(folder: Path, port: int) -> Path:
    return folder / f"serve-{port}.json"
