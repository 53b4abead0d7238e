"""Run many jobs, several at a time."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from queue import Empty, SimpleQueue

from nst_client.client import StyleClient
from nst_client.errors import Unavailable, UnknownStyle, Unreachable, Untrusted
from nst_client.stylize.jobs import Job, Outcome, file_exists
from nst_client.stylize.processing import StylizeOptions
from nst_core.errors import InputError, NstError, WriteError
from nst_core.images import process_of_file

GRACE_SECONDS = 5.0
"""How long running jobs may continue when the run is stopped: enough to finish writing a file."""

FATAL_ERRORS = (Unreachable, Unavailable, Untrusted, UnknownStyle, WriteError)
"""Errors that every image would meet, except a file that cannot be written because of its own name."""

ERRNOS_OF_NAMES = frozenset({errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EILSEQ, errno.EINVAL})
"""Errors of a file's name, and not of the disk or the folder."""

Stylize = Callable[[Job, StyleClient], Outcome]


def existing_outcome(job: Job, options: StylizeOptions) -> Outcome | None:
    """Return the outcome of a job whose target exists; None if the job has to run.

    A target that was stylized with the same options is finished. Any other is left alone, unless the user named it.
    """
    if job.named or not file_exists(job.target):
        return None
    if process_of_file(job.target) == options.command:
        return Outcome(job, skipped=True)
    error = InputError(f"{job.target} exists and was not stylized with these options; give --overwrite to replace it")
    return Outcome(job, error=error)


def run_jobs(
    jobs: Sequence[Job], stylize: Stylize, connect: Callable[[], StyleClient], workers: int = 1
) -> Generator[Outcome, None, None]:
    """Run the jobs in `workers` threads with a client each; yields outcomes in the order of the jobs.

    While one thread waits for the server, the others read and write images. After an error that every image would
    meet, the remaining jobs are not tried. If the caller stops early, no thread begins another job.
    """
    run = _Run(stylize)
    with ExitStack() as clients:
        if workers == 1 or len(jobs) == 1:
            client = clients.enter_context(connect())
            yield from (run.outcome(job, client) for job in jobs)
            return
        futures = run.submit(jobs)
        # Daemons: a thread that waits for a server must not keep a process that was told to stop.
        threads = [
            threading.Thread(target=run.work, args=(clients.enter_context(connect()),), daemon=True)
            for _ in range(min(workers, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from (future.result() for future in futures)
        finally:
            if not run.stop(threads):
                clients.pop_all()  # a client is closed by its own thread only


class _Run:
    """The queue of a run, and the error that ended it."""

    def __init__(self, stylize: Stylize) -> None:
        self._stylize = stylize
        self._queue: SimpleQueue[tuple[Job, Future[Outcome]]] = SimpleQueue()
        self._stopped = threading.Event()
        self._fatal: NstError | None = None

    def submit(self, jobs: Sequence[Job]) -> list[Future[Outcome]]:
        """Put jobs into the queue."""
        futures = [Future[Outcome]() for _ in jobs]
        for job, future in zip(jobs, futures, strict=True):
            self._queue.put((job, future))
        return futures

    def work(self, client: StyleClient) -> None:
        """Run jobs of the queue until it is empty, or the run is stopped."""
        while not self._stopped.is_set():
            try:
                job, future = self._queue.get_nowait()
            except Empty:
                return
            try:
                future.set_result(self.outcome(job, client))
            except BaseException as error:
                future.set_exception(error)

    def outcome(self, job: Job, client: StyleClient) -> Outcome:
        """Run a job."""
        if self._fatal:
            return Outcome(job, error=self._fatal, tried=False)
        try:
            return self._stylize(job, client)
        except NstError as error:
            if is_fatal(error):
                self._fatal = self._fatal or error
            return Outcome(job, error=error)
        except MemoryError:
            message = f"{job.source} does not fit into memory; shrink it with --max-side"
            return Outcome(job, error=InputError(message))

    def stop(self, threads: Sequence[threading.Thread]) -> bool:
        """Stop the threads; returns whether all ended within the grace period."""
        self._stopped.set()
        deadline = time.monotonic() + GRACE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


def is_fatal(error: NstError) -> bool:
    """Return whether every image would meet the error."""
    cause = error.__cause__
    of_name = isinstance(error, WriteError) and isinstance(cause, OSError) and cause.errno in ERRNOS_OF_NAMES
    return isinstance(error, FATAL_ERRORS) and not of_name
