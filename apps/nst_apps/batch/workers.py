"""Stylize a batch job on the workers of a Ray cluster.

Names are sent out in blocks through Ray Data, and errors are returned. A lost worker's block goes to another worker.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nst_apps.batch.job import BatchJob
from nst_client.client import StyleClient
from nst_client.stylize.runner import is_fatal
from nst_client.transports.local import LocalTransport
from nst_core.errors import NstError
from nst_core.process import keep_freed_memory, settings_of_a_command

log = logging.getLogger(__name__)

MAX_BLOCKS = 10_000
"""Maximum blocks per job, since Ray's driver tracks each, unless they would exceed `MAX_BLOCK_IMAGES`."""

MIN_BLOCK_IMAGES, MAX_BLOCK_IMAGES = 16, 1_000
"""Images per block, which must be stylized again if its worker is lost."""

LOST_WORKER_RETRIES = 1
"""How often a lost worker's block goes to another worker before its images are tried one by one, and how often a single
image does before it fails."""

NOT_TRIED = "not tried"

Connect = Callable[[], StyleClient]


@dataclass(frozen=True)
class ConnectionSettings:
    """How a worker reaches the model: a URL of `StyleClient`, and for `local:` the threads per worker."""

    url: str
    options: dict[str, Any]
    threads: int | None = None

    def __call__(self) -> StyleClient:
        """Create a client. Raises what `StyleClient` raises, and `MissingExtra` for `local:` without ONNX Runtime."""
        if not self.url.startswith("local:"):
            return StyleClient(self.url, **self.options)
        return StyleClient(transport=self._local(), timeout=self.options["timeout"])

    @property
    def wants_gpu(self) -> bool:
        """Whether the workers themselves run a model for GPUs. Raises what a call raises."""
        return self.url.startswith("local:") and self._local().wants_gpu

    def _local(self) -> LocalTransport:
        # An absolute path, since a worker may have another working directory.
        return LocalTransport(Path(self.url.removeprefix("local:")).resolve(), threads=self.threads)


@dataclass(frozen=True)
class BlockResult:
    """The result of a block: the number of stylized images, and the errors of the others, by name.

    `fatal` is an error that every other image would meet.
    """

    stylized: int
    failed: list[tuple[str, str]]
    fatal: str = ""


class StylizeWorker:
    """Stylizes blocks of names; Ray creates an instance in each worker."""

    def __init__(self, job: BatchJob, connect: Connect) -> None:
        keep_freed_memory()
        self.job, self.connect = job, connect
        self.client: StyleClient | None = None

    @settings_of_a_command()
    def __call__(self, block: pa.Table) -> pa.Table:
        """Stylize a block; returns its rows with `error`, empty for a stylized image, and whether it is `fatal`.

        After a fatal error the rest is not tried.
        """
        errors: list[str] = []
        fatal: list[bool] = []
        for name in block["name"].to_pylist():
            error, is_fatal_error = (NOT_TRIED, True) if any(fatal[-1:]) else self._stylize(name)
            errors.append(error)
            fatal.append(is_fatal_error)
        return block.append_column("error", [errors]).append_column("fatal", [fatal])

    def _stylize(self, name: str) -> tuple[str, bool]:
        try:
            # Here and not when the worker starts, since Ray would report the error in many lines of its own.
            self.client = self.client or self.connect()
            self.job.stylize(name, self.client)
        except NstError as error:
            return " ".join(str(error).split()), self.client is None or is_fatal(error)
        except Exception as error:  # a defect with a single image must not stop the others
            return " ".join(f"{name}: {type(error).__name__}: {error}".split()), False
        return "", False


def stylize_all(
    job: BatchJob, names: list[pa.Array], connect: Connect, workers: int, *, gpu: bool = False
) -> Generator[BlockResult, None, None]:
    """Stylize on `workers` workers of the cluster that Ray is connected to; yields results as blocks finish.

    With `gpu` the workers share the cluster's GPUs, if it has any. A block whose worker is lost is tried again, then
    its images one by one; an image whose worker is lost again fails. So an image that crashes a decoder does not
    affect the others.
    """
    # A single array, since taking rows from many is slow; large, since a plain one is limited to 2 GiB.
    all_names = pa.chunked_array(names, pa.string()).cast(pa.large_string()).combine_chunks()
    remaining = np.ones(len(all_names), bool)
    for size in (block_images(len(all_names), workers), 1):
        rows = np.flatnonzero(remaining)
        if not len(rows):
            return
        if len(rows) < len(all_names):
            log.info("trying %d images of lost workers again, one by one", len(rows))
        for table in _stylized_tables(job, connect, all_names, rows, size, workers, gpu):
            remaining[table["row"].to_numpy()] = False
            failed = table.filter(pc.not_equal(table["error"], "")).to_pylist()
            tried = [(row["name"], row["error"]) for row in failed if row["error"] != NOT_TRIED]
            fatal = next((row["error"] for row in failed if row["fatal"]), "")
            yield BlockResult(len(table) - len(failed), tried, fatal)
    lost = all_names.take(pa.array(np.flatnonzero(remaining))).to_pylist()
    if lost:
        times = LOST_WORKER_RETRIES + 1
        yield BlockResult(0, [(name, f"{name}: its worker was lost {times} times") for name in lost])


def block_images(images: int, workers: int) -> int:
    """Return the number of images per block, so that every worker gets some and there are not too many blocks."""
    smallest = min(MIN_BLOCK_IMAGES, ceil(images / workers))
    return int(np.clip(ceil(images / MAX_BLOCKS), smallest, MAX_BLOCK_IMAGES))


def _stylized_tables(
    job: BatchJob, connect: Connect, names: pa.Array, rows: Any, size: int, workers: int, gpu: bool
) -> Iterator[pa.Table]:
    """Yield the tables that `StylizeWorker` returns for these rows, in blocks of `size`."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # their images are tried again one by one
    blocks = []
    for start in range(0, len(rows), size):
        block_rows = rows[start : start + size]
        blocks.append(pa.table({"row": block_rows, "name": names.take(pa.array(block_rows))}))
    resources = ray.cluster_resources()
    cpus, gpus = (min(1.0, resources.get(kind, 0.0) / workers) for kind in ("CPU", "GPU"))
    with warnings.catch_warnings():
        # Ray 2.60 deprecates `max_task_retries` without a replacement; without it Ray retries forever.
        warnings.simplefilter("ignore", DeprecationWarning)
        stylized = ray.data.from_arrow(blocks).map_batches(
            StylizeWorker,
            fn_constructor_args=(job, connect),
            batch_format="pyarrow",
            batch_size=size if gpu and gpus else None,  # a whole block in both cases; with a GPU Ray requires a number
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1 if size == 1 else 2),
            num_cpus=cpus,
            num_gpus=gpus if gpu else 0.0,
            max_task_retries=LOST_WORKER_RETRIES,
        )
    yield from stylized.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
