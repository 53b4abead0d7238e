"""Triton's command line, and the limits and memory allocator of its process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nst_server.access import Access
from nst_server.endpoints import Endpoints, host
from nst_server.tls import Certificate

STACK_BYTES = 512 << 20
"""Bytes of address space for a thread's stack. Triton's HTTP uses stack for every level of a request's JSON and every
chunk of its body: with Linux's usual 8 MiB, a body of 200 kB of brackets or of 600,000 chunks would crash it."""

ALLOCATOR_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
"""glibc's allocator for Triton and its models' processes, unless the environment overrides it: one heap for all threads
of a process, which keeps freed memory and grows by 64 MiB at a time.

By default glibc maps each block of a megabyte when it is allocated and unmaps it when it is freed, so every copy of an
image pays for its page faults: half of the time of an image of 512x512 apart from the network. The price is that a
process keeps the memory of its largest images until it ends. A heap per thread, glibc's other default, would keep them
once per thread.
"""

START_SCRIPT = f"""
import ctypes, os, resource, signal, sys
_, maximum = resource.getrlimit(resource.RLIMIT_STACK)
resource.setrlimit(resource.RLIMIT_STACK, ({STACK_BYTES} if maximum < 0 else min({STACK_BYTES}, maximum), maximum))
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Becomes Triton, or docker, which forwards signals. First it asks Linux to end it when we die abruptly (`kill -9`)."""


@dataclass(frozen=True)
class Launch:
    """What to start a Triton for. Without `access`, everyone who reaches it may make every call.

    It loads `models` at its start, and nst looks for new versions every `poll` seconds. Without `models`, Triton is on
    its own: it loads everything that it finds, and looks for new versions itself.
    """

    repository: Path
    endpoints: Endpoints
    poll: float | None = None
    access: Access | None = None
    certificate: Certificate | None = None
    models: tuple[str, ...] | None = None

    def options(
        self,
        repository: str,
        listening: dict[str, tuple[str, int]],
        certificate: tuple[str, str] | None,
        access: Access | None,
    ) -> list[str]:
        """Return Triton's options; paths, listeners and secrets are as its process sees them."""
        options = [
            f"--model-repository={repository}",
            "--exit-on-error=false",  # a bad model must not prevent the others
            *self._control(),
        ]
        if access:
            options += access.options(self.endpoints.address)
        for service, (address, port) in listening.items():
            options += [f"--{service}-address={_spelled(service, address)}", f"--{service}-port={port}"]
        if certificate:
            chain, key = certificate
            options += ["--grpc-use-ssl=true", f"--grpc-server-cert={chain}", f"--grpc-server-key={key}"]
        return options

    def _control(self) -> list[str]:
        """Return Triton's options that say which models it loads."""
        if self.models is None and self.poll is not None:
            return ["--model-control-mode=poll", f"--repository-poll-secs={max(1, round(self.poll))}"]
        names = ("*",) if self.models is None else self.models
        return ["--model-control-mode=explicit", *(f"--load-model={name}" for name in names)]


class Runnable(Protocol):
    """A Triton that can be run: its command line, and its environment variables."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables in addition to those of this process."""

    def command(self, launch: Launch) -> list[str]:
        """Return the whole command line."""


def _spelled(service: str, address: str) -> str:
    """Format an address as Triton's listeners expect it; each has its own syntax for IPv6."""
    if ":" not in address:
        return address
    return host(address) if service == "grpc" else f"ipv6:{address}"
