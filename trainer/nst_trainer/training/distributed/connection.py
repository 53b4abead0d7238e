"""Connect the processes of a team: with gloo on CPUs, with nccl on GPUs."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from nst_core.errors import NstError
from nst_core.process import default_variable
from nst_trainer.training.distributed.liveness import Liveness

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = timedelta(seconds=120)
"""Timeout for the processes to find each other, and for each collective operation."""

SIOCGIFADDR = 0x8915
"""Linux's request for an interface's address."""


class TeamError(NstError):
    """Another process of the team stopped or was lost, or they cannot reach each other."""


@dataclass(frozen=True)
class Connection:
    """The connection of this process to the others; `control` synchronizes them on the CPU, whatever the device."""

    control: distributed.ProcessGroup
    liveness: Liveness


def connect(backend: str) -> Connection:
    """Connect to the other processes within `CONNECT_TIMEOUT`; raises `TeamError` if they cannot be reached."""
    interface = _interface_towards(os.environ["MASTER_ADDR"])
    with default_variable("GLOO_SOCKET_IFNAME", interface) if interface else nullcontext():
        return _connect(backend)


def _connect(backend: str) -> Connection:
    found: list[Connection] = []
    failed: list[RuntimeError] = []

    def find() -> None:
        try:
            found.append(_find_others(backend))
        except RuntimeError as error:
            failed.append(error)

    # Gloo waits forever for a process that cannot reach it; a daemon thread can be abandoned.
    finding = threading.Thread(target=find, daemon=True, name="connect")
    try:
        finding.start()
        finding.join(CONNECT_TIMEOUT.total_seconds())
    finally:
        if finding.is_alive():
            atexit.register(os._exit, 1)
    if not found:
        where = f"interface {os.environ.get('GLOO_SOCKET_IFNAME', 'of the host name')}"
        raise TeamError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} cannot reach the other processes ({where}); open "
            "all ports between the machines, or set GLOO_SOCKET_IFNAME to the network interface to use"
        ) from (failed[0] if failed else None)
    log.info("connected rank %s of %s with %s", os.environ["RANK"], os.environ["WORLD_SIZE"], backend)
    return found[0]


def _find_others(backend: str) -> Connection:
    distributed.init_process_group(backend, timeout=CONNECT_TIMEOUT)
    control = distributed.new_group(backend="gloo")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=CONNECT_TIMEOUT, wait_for_workers=False)
    return Connection(control, Liveness(store, distributed.get_rank(), distributed.get_world_size()))


def _interface_towards(host: str) -> str | None:
    """Return the network interface that leads to `host`; None if it is unknown.

    By default gloo uses the address of the host's own name, which on Debian is 127.0.1.1, where other machines cannot
    reach it.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
            own = socket.inet_aton(probe.getsockname()[0])
        except OSError:
            return None
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, name.encode().ljust(256, b"\0"))
            except OSError:  # it has no IPv4 address
                continue
            if answer[20:24] == own:
                return name
    return None
