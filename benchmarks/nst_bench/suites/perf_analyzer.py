"""nst's serving figures against those of NVIDIA's `perf_analyzer`, measured in turns on one server.

The tool is downloaded, not installed: it is part of the Linux wheel of one version of `tritonclient` (the package
`perf-analyzer` needs glibc 2.38), and needs CUDA's runtime library from PyPI and libb64 from Debian.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nst_bench.drawing.tables import columns, table
from nst_bench.measure import UNSTABLE
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import Callers, start_callers
from nst_bench.served.resources import served_model
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Document, Effort, Suite
from nst_core.contract import IMAGE
from nst_core.errors import NstError
from nst_core.images import Pixels

PACKAGES = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
LIBRARY, PACKAGE = "libb64.so.0d", "libb64-0d"

LIBRARIES = ("nvidia/cuda_runtime/lib", "usr/lib/x86_64-linux-gnu")
"""Folders of the libraries within the tool's folder."""

WINDOWS = 3
"""Windows that perf_analyzer averages over."""

ANY_PER_CENT = 1000
"""How much its windows may differ before it refuses to report; this suite marks unstable turns itself."""


class PerfAnalyzerError(NstError):
    """NVIDIA's perf_analyzer could not be downloaded, or failed."""


@dataclass(frozen=True)
class Figures:
    """Images/s, and the median latency in milliseconds."""

    rate: float
    median: float


@dataclass(frozen=True)
class Tool:
    """A downloaded perf_analyzer: a folder with its binary and libraries."""

    folder: Path

    def run(self, model: str, url: str, size: int, callers: int, requests: int) -> Figures:
        """Measure `callers` concurrent clients over windows of `requests` requests each; random pixels of `size`^2."""
        protocol, _, host = url.partition("://")
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "figures.csv"
            given = {
                "-m": model,
                "-u": host,
                "-i": protocol,
                "-b": 1,
                "--shape": f"{IMAGE}:{size},{size},3",
                "--concurrency-range": callers,
                "--measurement-mode": "count_windows",
                "--measurement-request-count": requests,
                "-s": ANY_PER_CENT,
                "-f": table,
            }
            command = [str(self.folder / "bin" / "perf_analyzer")]
            command += [str(part) for pair in given.items() for part in pair]
            libraries = [*(str(self.folder / name) for name in LIBRARIES), os.environ.get("LD_LIBRARY_PATH", "")]
            environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
            result = subprocess.run(command, capture_output=True, text=True, env=environment)
            if result.returncode != 0 or not table.is_file():
                output = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
                raise PerfAnalyzerError(f"perf_analyzer failed: {' '.join(output[-2:]) or result.returncode}")
            return read(table)


def read(table: Path) -> Figures:
    """Read the only row of perf_analyzer's table, whose latencies are microseconds."""
    with table.open() as file:
        (row,) = csv.DictReader(file)
    return Figures(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1000.0)


def fetch(folder: Path, on_progress: Callable[[str], None]) -> Tool:
    """Return the tool in `folder`, downloaded first if necessary. Raises `PerfAnalyzerError`."""
    complete, wanted = folder / "fetched.txt", " ".join((*PACKAGES, LIBRARY))
    if not complete.is_file() or complete.read_text() != wanted:
        on_progress(f"downloading perf_analyzer to {folder} ({', '.join(PACKAGES)})")
        complete.unlink(missing_ok=True)
        # The wheel is tagged for an older Linux than pip accepts by default.
        platforms = ("--platform", "manylinux1_x86_64", "--platform", "manylinux2014_x86_64")
        options = ("--upgrade", "--no-deps", "--only-binary=:all:", *platforms)
        _run(sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), *options, *PACKAGES)
        if find_library("b64") != LIBRARY:
            _fetch_from_debian(folder)
        complete.write_text(wanted)
    return Tool(folder.resolve())


def _fetch_from_debian(folder: Path) -> None:
    """Unpack Debian's package of the library there; installing it would need root."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _run("apt-get", "download", "-q", PACKAGE, cwd=Path(scratch))
            _run("dpkg", "-x", *map(str, Path(scratch).glob("*.deb")), str(folder))
        except PerfAnalyzerError as error:
            raise PerfAnalyzerError(f"perf_analyzer needs {LIBRARY}; run apt-get install {PACKAGE}") from error


def _run(*command: str, cwd: Path | None = None) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd)
    except OSError as error:
        raise PerfAnalyzerError(f"{command[0]}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no reason given"]
        raise PerfAnalyzerError(f"{' '.join(command[:4])} failed: {lines[-1]}") from error


@dataclass(frozen=True)
class PerfAnalyzerEffort(Effort):
    """The side of the images in pixels, concurrent clients, and the turns and their seconds."""

    size: int = 512
    callers: tuple[int, ...] = (1, 4)
    blocks: int = 3
    seconds: float = 7.5


def measure(
    context: Context[PerfAnalyzerEffort],
    server: ModelServer,
    *,
    tool: Annotated[
        Path, typer.Option(help="Folder of perf_analyzer; downloaded if it is missing.", rich_help_panel="Files")
    ] = Path(".perf_analyzer"),
) -> Document:
    """Check the serving figures against NVIDIA's perf_analyzer.

    Measures in turns with both tools, and reports the largest difference. Takes about five minutes.
    """
    fetched, effort = fetch(tool, context.on_progress), context.effort
    size, pixels = effort.size, sample_photograph(effort.size, effort.size)
    rows: list[Document] = []
    for protocol, url in (("gRPC", server.endpoints.grpc), ("HTTP", server.endpoints.http)):
        with start_callers(max(effort.callers), url, server.style) as callers:
            alone = callers.closed_loop(1, 5, pixels)
            window = max(5, round(effort.seconds / WINDOWS * 5 / (alone[-1].done - alone[0].due)))
            for count in effort.callers:
                callers.closed_loop(count, 2 * count, pixels)  # the first run of a batch size is slower
                turns = [
                    (
                        _ours(callers, count, WINDOWS * window, pixels),
                        fetched.run(server.model, url, size, count, window),
                    )
                    for _ in range(effort.blocks)
                ]
                row = {"protocol": protocol, "callers": count, **_compared(turns)}
                rows.append(row)
                context.on_progress(f"{protocol}, {count} clients: {row['rate_ratio']:.3f} of perf_analyzer's rate")
    apart = max(abs(1.0 - row[name]) for row in rows for name in ("rate_ratio", "median_ratio"))
    return {"model": {"name": server.model}, "size": size, "rows": rows, "largest_difference": apart}


def _ours(callers: Callers, count: int, requests: int, pixels: Pixels) -> Figures:
    calls = callers.closed_loop(count, requests, pixels)
    seconds = max(call.done for call in calls) - calls[0].due
    return Figures(len(calls) / seconds, 1000.0 * float(np.median([call.seconds for call in calls])))


def _compared(turns: Sequence[tuple[Figures, Figures]]) -> Document:
    """Return the medians of both tools' turns, their ratios, and whether either tool's rates drifted."""
    row: Document = {"unstable": False}
    for who, figures in zip(("ours", "theirs"), zip(*turns, strict=True), strict=True):
        rates = [turn.rate for turn in figures]
        rate = float(np.median(rates))
        row[who] = {"rate": rate, "median": float(np.median([turn.median for turn in figures])), "rates": rates}
        row["unstable"] |= (max(rates) - min(rates)) / rate > UNSTABLE
    ratios = {f"{name}_ratio": row["ours"][name] / row["theirs"][name] for name in ("rate", "median")}
    return row | ratios


def tables(document: Document) -> list[str]:
    """Render nst's figures against perf_analyzer's."""
    return [
        f"`{document['model']['name']}` at {document['size']}², measured in turns by nst bench and by perf_analyzer.",
        "",
        *table(
            document["rows"],
            columns("  | clients", "{protocol}{unstable:mark} | {callers}")
            | columns(
                "images/s: nst    | images/s: perf_analyzer | images/s: ratio",
                "{ours[rate]:.2f} | {theirs[rate]:.2f}      | **{rate_ratio:.3f}**",
            )
            | columns(
                "p50, ms: nst       | p50, ms: perf_analyzer | p50, ms: ratio",
                "{ours[median]:.1f} | {theirs[median]:.1f}   | **{median_ratio:.3f}**",
            ),
        ),
        "",
        f"The largest difference is {document['largest_difference']:.1%}.",
    ]


SUITE = Suite(
    name="perf-analyzer",
    title="NVIDIA's perf_analyzer",
    resources=served_model,
    measure=measure,
    tables=tables,
    effort=PerfAnalyzerEffort(),
)
