"""Pictures by the million: what is to be painted, and painting it on the workers of a Ray cluster.

What is to do is what the input has and the output lacks, folder by folder, so a job that was stopped goes on where it
was. The names go out in blocks through Ray Data; what comes back is what could not be painted. A block whose worker is
lost goes to another.
"""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from posixpath import splitext
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nst_client.batch.sections import Section, SectionedVideo
from nst_client.batch.storage import OWN, Folder
from nst_client.client import StyleClient
from nst_client.errors import ServiceError
from nst_client.options import silence_grpc
from nst_client.stylize.jobs import StylizeOptions, is_hopeless, own_suffix
from nst_client.transports.local import LocalTransport
from nst_client.video.codec.formats import CONTAINERS
from nst_core.errors import InputError, NstError
from nst_core.images import READABLE_SUFFIXES, UNREADABLE_SUFFIXES, check_size, encode_image, image_format
from nst_core.memory import keep_freed_memory
from nst_core.process import settings_of_a_command

JOB = f"{OWN}/job.json"
"""Where an output says how its pictures are painted: "nst-batch/1"."""

MANIFEST = "nst-batch.jsonl"
"""What the last run could not paint, a line of JSON each, and its summary."""

MOST_BLOCKS, LEAST, MOST = 10_000, 16, 1_000
"""Ray's driver keeps an eye on each block, so there are not more than so many while a block has not more pictures than
the last; what a lost worker has to paint again is a block."""

RETRIES = 1
"""How often a block whose worker was lost goes to another before its pictures are tried one by one, and how often a
picture before it is given up."""

OBJECT_STORE = 512 * 2**20
"""Shared memory for Ray's objects on one machine, bytes. Names and errors need little; more would go to the disk."""

NOT_TRIED = "not tried"

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_LOG_LEVEL": "CRITICAL"}
OWN_CLUSTER = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's environment, which it reads as it is imported and hands on to the processes that it starts. The last one makes
it bind 127.0.0.1 on every system, as it does where firewalls ask their users; without it binds every interface."""

START_TRIES = 3
"""How often Ray is started in this machine: it gives itself 30 seconds, which a busy machine may not have."""

Connect = Callable[[], StyleClient]


@dataclass(frozen=True)
class ConnectionSettings:
    """How a worker reaches the model: a URL as `StyleClient` takes it, and for `local:` the threads of each worker."""

    url: str
    options: dict[str, Any]
    threads: int | None = None

    def __call__(self) -> StyleClient:
        """A client. Raises what `StyleClient` raises, and `MissingExtra` for `local:` without ONNX Runtime."""
        if not self.url.startswith("local:"):
            return StyleClient(self.url, **self.options)
        return StyleClient(transport=self._local(), timeout=self.options["timeout"])

    @property
    def wants_gpu(self) -> bool:
        """Whether the workers themselves run a model that was exported for GPUs. Raises as calling it does."""
        return self.url.startswith("local:") and self._local().wants_gpu

    def _local(self) -> LocalTransport:
        # The path must mean the same in a worker, whose working directory may be another.
        return LocalTransport(Path(self.url.removeprefix("local:")).resolve(), threads=self.threads)


@dataclass(frozen=True)
class Batch:
    """Photographs and videos below `source`, painted by `recipe` into the same tree below `target`.

    `suffix` is of a picture that is written, with its dot; by default the photograph's own, PNG where that cannot be
    written. A video keeps its own.
    """

    source: Folder
    target: Folder
    recipe: StylizeOptions
    suffix: str | None = None
    unread: list[Path] = field(default_factory=list, compare=False)
    """Images that `missing` came upon and that nst does not read."""

    @property
    def record(self) -> dict[str, str]:
        """What makes two runs the same job."""
        return {"format": "nst-batch/1", "paint": self.recipe.record, "suffix": self.suffix or ""}

    def painting_of(self, photo: str) -> str:
        """Where a photograph's painting goes, both below their folders."""
        stem, suffix = splitext(photo)
        return stem + (self.suffix or own_suffix(suffix))

    def begin(self) -> bool:
        """Whether the output is this job's already; nothing is written yet.

        Raises `InputError` if another job has it, or if it lies where it would overwrite the photographs.
        """
        if self.target.contains(self.source):
            raise InputError(f"{self.target.url} has the photographs in it: choose another folder")
        begun = Path(JOB).name in self.target.names(OWN)
        if begun:
            try:
                there = json.loads(self.target.read(JOB))
            except ValueError as error:
                raise InputError(f"{JOB} in {self.target.url} is damaged ({error}): choose another folder") from error
            if there != self.record:
                raise InputError(
                    f"{self.target.url} is of another job ({there.get('paint')} {there.get('suffix')}): "
                    "choose another folder"
                )
        return begun

    def missing(self, begun: bool) -> Iterator[tuple[list[str], int]]:
        """For each folder what is to be painted, and how many pictures and videos are painted already.

        Of a video those are the sections that are left.
        Raises `InputError` where two photographs would become one painting, or a file is there that nobody of this
        job has painted.
        """
        inside = self.source.contains(self.target)
        for folder, names in self.source.folders():
            if inside and self.target.contains(replace(self.source, root=f"{self.source.root}/{folder}".rstrip("/"))):
                continue
            prefix = f"{folder}/" if folder else ""
            photos: dict[str, str] = {}
            for name in names:
                if not _is_video(name) and splitext(name)[1].lower() not in READABLE_SUFFIXES:
                    if splitext(name)[1].lower() in UNREADABLE_SUFFIXES:
                        self.unread.append(Path(prefix + name))
                    continue
                painting = name if _is_video(name) else self.painting_of(name)
                if painting in photos:
                    raise InputError(
                        f"{prefix}{photos[painting]} and {prefix}{name} would both become {prefix}{painting}: "
                        "give them different names"
                    )
                photos[painting] = name
            there = photos.keys() & self.target.names(folder) if photos else set()
            if there and not begun:
                raise InputError(
                    f"{self.target.url} has {prefix}{min(there)} already, and not from nst batch: choose another folder"
                )
            todo: list[str] = []
            for painting, photo in photos.items():
                if painting not in there:
                    name = prefix + photo
                    todo += map(str, self._film(name).missing()) if _is_video(name) else [name]
            yield todo, len(there)

    def claim(self) -> None:
        """Write down whose the output is, and remove what a killed run began. Raises `WriteError`."""
        self.target.prepare()
        self.target.write(JOB, json.dumps(self.record).encode())

    def paint(self, photo: str, client: StyleClient) -> None:
        """Read, paint and write one picture or section of a video.

        Raises `ImageError`, `WriteError`, and what `stylize` raises.
        """
        if section := Section.of(photo):
            self._film(section.video).paint(section, self.recipe, client)
            return
        file = io.BytesIO(self.source.read(photo))
        file.name = photo  # what its error calls it
        picture, target = self.recipe.opened(file), self.painting_of(photo)
        kind = image_format(Path(target))
        check_size(picture.width, picture.height, kind)  # before the model works for nothing
        painting, _ = self.recipe.painting(picture, client)
        self.target.write(target, encode_image(painting, kind, quality=self.recipe.quality))

    def _film(self, video: str) -> SectionedVideo:
        return SectionedVideo(self.source, self.target, video, self.recipe.max_side)


@dataclass(frozen=True)
class BlockResult:
    """What became of a block: how many pictures are painted, and why the others are not.

    `hopeless` is an error that all others would meet as well.
    """

    painted: int
    failed: list[tuple[str, str]]
    hopeless: str = ""


class StylizeWorker:
    """What a worker does with a block of names. Ray makes one in each worker."""

    def __init__(self, batch: Batch, connect: Connect) -> None:
        keep_freed_memory()
        silence_grpc()
        self.batch, self.connect = batch, connect
        self.client: StyleClient | None = None

    @settings_of_a_command()
    def __call__(self, block: pa.Table) -> pa.Table:
        """The block's rows with an `error` each, empty where it is painted, and whether it is `hopeless`.

        What comes after a hopeless one is not tried.
        """
        errors: list[str] = []
        hopeless: list[bool] = []
        for photo in block["photo"].to_pylist():
            error, fatal = (NOT_TRIED, True) if any(hopeless[-1:]) else self._paint(photo)
            errors.append(error)
            hopeless.append(fatal)
        return block.append_column("error", [errors]).append_column("hopeless", [hopeless])

    def _paint(self, photo: str) -> tuple[str, bool]:
        try:
            # Here and not as the worker starts: Ray would say it in its own words, of many lines.
            self.client = self.client or self.connect()
            self.batch.paint(photo, self.client)
        except NstError as error:
            return " ".join(str(error).split()), self.client is None or is_hopeless(error)
        except Exception as error:  # a defect that one picture of a million shows is no reason to lose the others
            return " ".join(f"{photo}: {type(error).__name__}: {error}".split()), False
        return "", False


def paint(
    batch: Batch, photos: list[pa.Array], connect: Connect, workers: int, *, gpu: bool = False
) -> Generator[BlockResult, None, None]:
    """Paint on so many workers of the cluster that Ray is connected to; blocks come as they are done.

    With `gpu` the workers share the GPUs that the cluster has, if any.
    What kills a worker is tried again. What has killed several with its block is tried by itself, and given up if it
    goes on: so one picture that a decoder cannot survive does not cost its neighbours.
    """
    # One array, since to take from many costs their number; large, since a plain one ends at 2 GiB.
    names = pa.chunked_array(photos, pa.string()).cast(pa.large_string()).combine_chunks()
    left = np.ones(len(names), bool)
    size = int(np.clip(-(-len(names) // MOST_BLOCKS), min(LEAST, -(-len(names) // workers)), MOST))
    for step in (size, 1):
        rows = np.flatnonzero(left)
        if not len(rows):
            return
        for table in _mapped(batch, connect, names, rows, step, workers, gpu):
            left[table["row"].to_numpy()] = False
            failed = table.filter(pc.not_equal(table["error"], "")).to_pylist()
            tried = [(row["photo"], row["error"]) for row in failed if row["error"] != NOT_TRIED]
            stop = next((row["error"] for row in failed if row["hopeless"]), "")
            yield BlockResult(len(table) - len(failed), tried, stop)
    lost = names.take(pa.array(np.flatnonzero(left))).to_pylist()
    if lost:
        yield BlockResult(
            0, [(photo, f"{photo}: the worker was lost {RETRIES + 1} times while it painted this") for photo in lost]
        )


def _mapped(
    batch: Batch, connect: Connect, names: pa.Array, rows: Any, step: int, workers: int, gpu: bool
) -> Iterator[pa.Table]:
    """The tables that `StylizeWorker` makes of these rows, `step` at a time."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # they are tried again, one by one
    blocks = []
    for start in range(0, len(rows), step):
        own = rows[start : start + step]
        blocks.append(pa.table({"row": own, "photo": names.take(pa.array(own))}))
    there = ray.cluster_resources()
    cpus, gpus = (min(1.0, there.get(kind, 0.0) / workers) for kind in ("CPU", "GPU"))
    with warnings.catch_warnings():
        # Ray 2.60 calls `max_task_retries` deprecated and has nothing in its place: without it Ray tries for ever.
        warnings.simplefilter("ignore", DeprecationWarning)
        painted = ray.data.from_arrow(blocks).map_batches(
            StylizeWorker,
            fn_constructor_args=(batch, connect),
            batch_format="pyarrow",
            batch_size=step if gpu and gpus else None,  # a block in both cases; Ray wants a number where there is a GPU
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1 if step == 1 else 2),
            num_cpus=cpus,
            num_gpus=gpus if gpu else 0.0,
            max_task_retries=RETRIES,
        )
    yield from painted.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


@contextmanager
def cluster(address: str | None, workers: int | None = None) -> Iterator[int]:
    """Connect to the Ray cluster at `host:port`, or start one in this machine and end it; gives how many CPUs it has.

    The own one listens on 127.0.0.1 only, asks for a token, tells nobody of its use, has no dashboard, and leaves
    neither a process nor a file. Raises `ServiceError` if there is no cluster, `InputError` for another address.
    """
    if address:
        _look_for(address)
    with ExitStack() as stack:
        stack.enter_context(_environment(QUIET if address else QUIET | OWN_CLUSTER | {"RAY_AUTH_TOKEN": _token()}))
        import ray

        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address is None:
            # Not in a TMPDIR, which may be a long one: the path of a socket has 107 bytes at most.
            folder = tempfile.TemporaryDirectory(prefix="nst-", dir="/tmp", ignore_cleanup_errors=True)
            settings |= {
                "num_cpus": max(workers or 0, os.cpu_count() or 1),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE,
                "_temp_dir": stack.enter_context(folder),
                "_node_ip_address": "127.0.0.1",
            }
        stack.enter_context(redirect_stdout(sys.stderr))  # where Ray says that a worker was lost
        stack.callback(ray.shutdown)
        for tries_left in reversed(range(1 if address else START_TRIES)):
            try:
                with _silent():
                    ray.init(address=address or "local", **settings)
                break
            except Exception as error:  # for a start that took over 30 s Ray has nothing more special
                ray.shutdown()
                if not tries_left:
                    where = f"at {address}" if address else "in this machine"
                    raise ServiceError(f"no Ray cluster {where}: {error}") from error
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler prints the stack of its libraries and leaves the manifest unwritten.
            before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            stack.callback(signal.signal, signal.SIGTERM, before)
        yield int(ray.cluster_resources().get("CPU", 1))


@contextmanager
def heeding_interrupts() -> Iterator[Callable[[], None]]:
    """Ctrl-C is `KeyboardInterrupt`, whatever Ray makes of it.

    An error that comes in its wake, as Ray is torn down, counts as the interrupt itself. One that was raised where
    nobody could catch it, in a destructor or a callback, is raised again by the next call of what this gives.
    """
    before = signal.getsignal(signal.SIGINT)
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    # Only a main thread may; and where Ctrl-C means something else already, as to a job in the background, it is left.
    ours = threading.current_thread() is threading.main_thread() and before is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _look_for(address: str) -> None:
    """Whether anybody is there: Ray would ask for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        raise InputError(f"{address!r} is no address of a Ray cluster: use host:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ServiceError(f"no Ray cluster at {address}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep from the terminal what Ray's libraries write to stderr, past Python; its errors are exceptions."""
    sys.stderr.flush()
    terminal = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nothing)


@cache
def _token() -> str:
    """One for the process: Ray reads it once."""
    return secrets.token_hex(32)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_video(name: str) -> bool:
    return splitext(name)[1].lower() in CONTAINERS


class Manifest:
    """Errors as they come, and at the end the summary; put into the output when the run ends, however it does."""

    def __init__(self, target: Folder, skipped: int = 0) -> None:
        self.target, self.started, self.skipped = target, time.monotonic(), skipped
        self.painted = self.failed = self._before = 0
        self._since = self.started
        self.first: list[str] = []
        self._lines: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  object storage has no appending

    @property
    def path(self) -> str:
        """Where it is read."""
        return f"{self.target.url.rstrip('/')}/{MANIFEST}"

    @property
    def rate(self) -> float:
        """Pictures a second since the first block was done, if there are more: before it the workers start."""
        done = self.painted + self.failed
        count, since = (done - self._before, self._since) if done > self._before else (done, self.started)
        return count / max(time.monotonic() - since, 1e-3)

    def add(self, done: BlockResult) -> None:
        """Count a block, and write its errors down."""
        self.painted += done.painted
        self.failed += len(done.failed)
        if not self._before:
            self._before, self._since = self.painted + self.failed, time.monotonic()
        for photo, error in done.failed:
            self._line(input=photo, error=error)
        self.first += [error for _, error in done.failed][: 10 - len(self.first)]

    def end(self, **more: Any) -> dict[str, Any]:
        """Write the summary, with `more` in it, and put all into the output. Raises `WriteError`."""
        seconds = round(time.monotonic() - self.started, 3)
        summary = {"painted": self.painted, "skipped": self.skipped, "failed": self.failed, "seconds": seconds, **more}
        summary["pictures_per_second"] = round(self.rate, 2)
        self._line(**summary)
        self._lines.seek(0)
        with self._lines as lines:
            self.target.write(MANIFEST, lines.read())
        with suppress(Exception):  # what is left there the next run removes
            self.target.sweep()
        return summary

    def _line(self, **values: Any) -> None:
        self._lines.write(json.dumps(values).encode() + b"\n")
