"""Write a run's record into its output: every error, and a summary."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import suppress
from typing import IO, Any

from nst_apps.batch.storage import Folder
from nst_apps.batch.workers import BlockResult

MANIFEST_FILE = "nst-batch.jsonl"
"""The last run's errors, a line of JSON each, and its summary."""

MAX_FIRST_ERRORS = 10
"""How many errors to print as well."""


class Manifest:
    """Collects errors and the summary, and writes them into the output when the run ends, however it ends."""

    def __init__(self, target: Folder, skipped: int = 0) -> None:
        self.target, self.started, self.skipped = target, time.monotonic(), skipped
        self.stylized = self.failed = self._done_in_first_block = 0
        self._first_block_done = self.started
        self.first_errors: list[str] = []
        self._lines: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  object storage cannot append

    @property
    def path(self) -> str:
        """The manifest's URL."""
        return f"{self.target.url.rstrip('/')}/{MANIFEST_FILE}"

    @property
    def rate(self) -> float:
        """Images/s, without the first block, during which the workers start, unless it is the only one."""
        count, since = self.stylized + self.failed, self.started
        if count > self._done_in_first_block:
            count, since = count - self._done_in_first_block, self._first_block_done
        return count / max(time.monotonic() - since, 1e-3)

    def add(self, block: BlockResult) -> None:
        """Count a block and record its errors."""
        self.stylized += block.stylized
        self.failed += len(block.failed)
        if not self._done_in_first_block:
            self._done_in_first_block, self._first_block_done = self.stylized + self.failed, time.monotonic()
        for name, error in block.failed:
            self._write_line(input=name, error=error)
        self.first_errors += [error for _, error in block.failed][: MAX_FIRST_ERRORS - len(self.first_errors)]

    def end(self, **more: Any) -> dict[str, Any]:
        """Add the summary, with `more` in it, and save the manifest in the output. Raises `WriteError`."""
        seconds = round(time.monotonic() - self.started, 3)
        counts = {"stylized": self.stylized, "skipped": self.skipped, "failed": self.failed}
        summary = {**counts, "seconds": seconds, **more, "images_per_second": round(self.rate, 2)}
        self._write_line(**summary)
        self._lines.seek(0)
        with self._lines as lines:
            self.target.write(MANIFEST_FILE, lines.read())
        with suppress(Exception):  # the next run removes what remains
            self.target.sweep()
        return summary

    def _write_line(self, **values: Any) -> None:
        self._lines.write(json.dumps(values).encode() + b"\n")
