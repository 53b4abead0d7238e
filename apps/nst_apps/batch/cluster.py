"""Connect to a Ray cluster, or run one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import cache
from typing import Any

from nst_client.errors import ServiceError
from nst_core.errors import InputError

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory for Ray's objects on this machine. Names and errors need little; more would go to disk."""

QUIET_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_LOG_LEVEL": "CRITICAL"}
LOCAL_ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's environment, which it reads on import and passes to its processes. The last variable makes Ray bind 127.0.0.1,
as on systems whose firewalls ask the user; without it Ray binds every interface."""

START_TRIES = 3
"""How often to try to start Ray on this machine."""


@contextmanager
def cluster(address: str | None, workers: int | None = None) -> Iterator[int]:
    """Connect to the Ray cluster at `host:port`, or run one on this machine in the block; yields its number of CPUs.

    The one on this machine listens on 127.0.0.1 only, requires a token, sends no usage statistics, has no dashboard,
    and leaves neither processes nor files. Raises `ServiceError` if there is no cluster, `InputError` for an invalid
    address.
    """
    if address:
        _check_reachable(address)
    with ExitStack() as stack:
        environment = QUIET_ENVIRONMENT
        if not address:
            environment = environment | LOCAL_ENVIRONMENT | {"RAY_AUTH_TOKEN": _token()}
        stack.enter_context(_environment(environment))
        import ray

        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address is None:
            # Not in TMPDIR, whose path may be long: the path of a socket has at most 107 bytes.
            folder = tempfile.TemporaryDirectory(prefix="nst-", dir="/tmp", ignore_cleanup_errors=True)
            settings |= {
                "num_cpus": max(workers or 0, os.cpu_count() or 1),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": stack.enter_context(folder),
                "_node_ip_address": "127.0.0.1",
            }
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray reports lost workers on stdout
        stack.callback(ray.shutdown)
        _start(address, settings)
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler prints its libraries' stack, and the manifest would not be written.
            before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            stack.callback(signal.signal, signal.SIGTERM, before)
        yield int(ray.cluster_resources().get("CPU", 1))


def _start(address: str | None, settings: dict[str, Any]) -> None:
    """Connect to a cluster, or start one; Ray allows 30 seconds, which a busy machine may exceed."""
    import ray

    for tries_left in reversed(range(1 if address else START_TRIES)):
        try:
            with _silent_stderr():
                ray.init(address=address or "local", **settings)
            return
        except Exception as error:  # Ray has no special error for a start that takes too long
            ray.shutdown()
            if not tries_left:
                action = f"connect to the Ray cluster at {address}" if address else "start Ray on this machine"
                raise ServiceError(f"could not {action}: {error}") from error
            log.info("Ray did not start; trying again: %s", error)


@contextmanager
def keyboard_interrupts() -> Iterator[Callable[[], None]]:
    """Make Ctrl-C a `KeyboardInterrupt` in the block, whatever Ray does with it.

    An error after Ctrl-C, while Ray is shut down, becomes the interrupt. If the interrupt is lost in a destructor or a
    callback, the next call of the yielded function raises it again.
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

    # Only in a main thread, and only where Ctrl-C has its default meaning, which it lacks for a background job.
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


def _check_reachable(address: str) -> None:
    """Raise `ServiceError` if nothing listens at the address, which Ray notices only after minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        raise InputError(f"{address!r} is not the address of a Ray cluster; use host:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ServiceError(
            f"no Ray cluster answers at {address} ({getattr(error, 'strerror', None) or error}); check --address"
        ) from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide what Ray's libraries write to stderr; errors arrive as exceptions."""
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
    """Return a token for the whole process, since Ray reads it only once."""
    return secrets.token_hex(32)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables in the block."""
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
