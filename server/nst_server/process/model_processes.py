"""The processes in which Triton's Python backend runs models: a stub for each instance of a model.

When a model is unloaded, its stub disappears at once. A stub that crashes stays as a zombie, and every request for its
model waits in vain.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

STUB = "triton_python_b"
"""A stub's name, limited by Linux to 15 characters."""

DEAD_SECONDS = 2.0
"""How long a stub must be a zombie before it counts as dead."""


def model_processes(triton: int) -> dict[int, str]:
    """Return the stubs of the Triton with this process id, with their models' names; empty for a dead stub.

    A stub that could not even start is a dead bash, or a dead copy of Triton.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            head, _, fields = (folder / "stat").read_text().rpartition(")")
            state, parent = fields.split()[:2]
            if int(parent) != triton:
                continue
            if state == "Z" or head.endswith(f"({STUB}"):
                arguments = (folder / "cmdline").read_text().split("\0")  # a zombie has none
                found[int(folder.name)] = Path(arguments[1]).parent.parent.name if len(arguments) > 1 else ""
    return found


class ModelProcesses:
    """One Triton's stubs, observed repeatedly."""

    def __init__(self, triton: int) -> None:
        self._triton = triton
        self._dead_since: dict[int, float] = {}
        self.names: dict[int, str] = {}
        """Model names of all stubs that were ever seen alive."""
        self.alive: dict[int, str] = {}

    def dead(self) -> list[int]:
        """Look again, and return the stubs that have been dead for `DEAD_SECONDS`."""
        now, found = time.monotonic(), model_processes(self._triton)
        self.alive = {pid: name for pid, name in found.items() if name}
        self.names |= self.alive
        self._dead_since = {pid: self._dead_since.get(pid, now) for pid, name in found.items() if not name}
        return [pid for pid, since in self._dead_since.items() if now - since >= DEAD_SECONDS]

    def without(self, models: set[str]) -> set[str]:
        """Return those of `models` that have no living process."""
        return models - set(self.alive.values())
