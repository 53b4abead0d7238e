"""One client of three real Tritons that ask for TLS and a token, by a list and by a DNS name."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nst_client import AsyncStyleClient, StyleClient
from nst_core.images import Pixels
from nst_server.access import Access
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import find_triton
from nst_server.process.supervisor import run_triton
from nst_server.tls import Certificate

from .serving import TRITON, Models, certificate, settled

TOKEN = "sesame"
NAME = "tritons.test"
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
STEP = 12
"""Requests that a server must have answered before something happens to it, or to another."""


@dataclass
class Several:
    """Tritons on the same port of three addresses; the answers that images must get."""

    endpoints: list[Endpoints]
    processes: list[subprocess.Popen[str]]
    ca: Path
    images: list[Pixels]
    stylized_images: list[Pixels]

    @property
    def settings(self) -> dict[str, Any]:
        return {"ca": self.ca, "token": TOKEN}

    @property
    def urls(self) -> list[str]:
        return [endpoints.grpc for endpoints in self.endpoints]

    def answered(self, number: int) -> int:
        """Requests, as the server itself has counted them; by HTTP, whose certificate is made out to each address."""
        with StyleClient(self.endpoints[number].http, **self.settings) as client:
            return client.statistics("starry").requests

    def all_answered(self) -> list[int]:
        return [self.answered(number) for number in range(len(HOSTS))]

    def works(self, stylize: Callable[[Pixels], Pixels], number: int) -> None:
        assert right(stylize(self.images[number]), self.stylized_images[number])


def right(stylized: Pixels, wanted: Pixels) -> bool:
    """The same image; threads may round a value the other way."""
    return stylized.shape == wanted.shape and bool(np.abs(stylized.astype(int) - wanted).max() <= 1)


@pytest.fixture(scope="module")
def several(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    folder = tmp_path_factory.mktemp("several")
    (folder / "repository").mkdir()
    (folder / "repository" / "starry").symlink_to(models.repository / "starry")
    chain, key = certificate(folder, ",".join([f"DNS:{NAME}", *(f"IP:{host}" for host in HOSTS)]))
    images = [np.random.default_rng(seed).integers(0, 256, (64, 80, 3), np.uint8) for seed in range(8)]
    stylized_images = [models.stylized(image[None])[0] for image in images]
    installation = find_triton(TRITON, print)
    first = Endpoints.free()
    with ExitStack() as servers:
        endpoints = [replace(first, address=host).behind_tls() for host in HOSTS]
        processes = [
            servers.enter_context(
                run_triton(
                    installation,
                    folder / "repository",
                    own,
                    folder / f"{own.address}.log",
                    access=Access.new(TOKEN),
                    certificate=Certificate(chain, key),
                )
            )
            for own in endpoints
        ]
        yield Several(endpoints, processes, chain, images, stylized_images)


@pytest.fixture
def names() -> Iterator[str]:
    """A DNS server on this machine that knows one name with three addresses; where it listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=answer_names, args=(server,))
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.sendto(b"", server.getsockname())
        thread.join()


def answer_names(server: socket.socket) -> None:
    """RFC 1035, for questions of IPv4 addresses; there are none of another kind. An empty packet ends it."""
    wanted = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split(".")) + b"\0"
    while True:
        packet, peer = server.recvfrom(512)
        if not packet:
            return
        name, rest = packet[12:].split(b"\0", 1)
        question, kind = packet[12 : 12 + len(name) + 5], struct.unpack("!H", rest[:2])[0]
        known = name.lower() + b"\0" == wanted
        addresses = HOSTS if known and kind == 1 else ()
        head = packet[:2] + struct.pack("!HHHHH", 0x8180 if known else 0x8183, 1, len(addresses), 0, 0)
        records = (b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(address) for address in addresses)
        server.sendto(head + question + b"".join(records), peer)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_list_is_asked_in_turn(several: Several) -> None:
    """Every server answers a third, give or take those asked before all were connected."""
    before = several.all_answered()
    with StyleClient(several.urls, **several.settings) as client:
        for number in range(30):
            several.works(lambda image: client.stylize(image, "starry"), number % 8)
    answered = [now - then for now, then in zip(settled(several.all_answered), before, strict=True)]
    assert sum(answered) == 30 and min(answered) >= 5, answered


def test_a_name_with_several_addresses(several: Several, names: str) -> None:
    """And asyncio; the certificate is the name's."""
    url = f"grpcs://dns://{names}/{NAME}:{several.endpoints[0].grpc_port}"
    before = several.all_answered()

    async def ask() -> list[Pixels]:
        async with AsyncStyleClient(url, **several.settings) as client:
            return [await client.stylize(several.images[number % 8], "starry") for number in range(30)]

    for number, stylized in enumerate(asyncio.run(ask())):
        several.works(lambda image, stylized=stylized: stylized, number % 8)  # type: ignore[misc]
    answered = [now - then for now, then in zip(settled(several.all_answered), before, strict=True)]
    assert sum(answered) == 30 and min(answered) >= 5, answered


class Callers:
    """Threads, each with a client of its own, and tasks that share one: they ask until they are stopped."""

    def __init__(self, several: Several) -> None:
        self.several, self.ended = several, threading.Event()
        self.right = 0
        self.failures: list[object] = []
        self.lock = threading.Lock()
        work = [lambda number=number: self.blocking(number) for number in range(3)]
        self.threads = [threading.Thread(target=call) for call in [*work, lambda: asyncio.run(self.tasks())]]

    def blocking(self, number: int) -> None:
        try:
            with StyleClient(self.several.urls, **self.several.settings) as client:
                while not self.ended.is_set():
                    self.note(number, client.stylize(self.several.images[number], "starry"))
        except Exception as error:
            self.failures.append(error)

    async def tasks(self) -> None:
        async with AsyncStyleClient(self.several.urls, **self.several.settings) as client:
            await asyncio.gather(*(self.task(client, number) for number in range(3, 6)))

    async def task(self, client: AsyncStyleClient, number: int) -> None:
        try:
            while not self.ended.is_set():
                self.note(number, await client.stylize(self.several.images[number], "starry"))
        except Exception as error:
            self.failures.append(error)

    def note(self, number: int, stylized: Pixels) -> None:
        with self.lock:
            if right(stylized, self.several.stylized_images[number]):
                self.right += 1
            else:
                self.failures.append(f"another image than {number}")

    def __enter__(self) -> "Callers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


def test_no_request_is_lost_when_one_is_killed_and_one_drains(several: Several) -> None:
    """All that live answer before, between and after; the last one's counter and the answers agree."""

    def more(numbers: range) -> None:
        """Each of these servers answers so many more."""
        before = {number: several.answered(number) for number in numbers}
        wait_for(lambda: all(several.answered(number) >= before[number] + STEP for number in numbers))

    with Callers(several) as callers:
        more(range(3))
        os.kill(several.processes[0].pid, signal.SIGKILL)
        more(range(1, 3))
        several.processes[1].send_signal(signal.SIGTERM)
        assert several.processes[1].wait(60) == 0
        more(range(2, 3))
        assert not callers.failures, callers.failures[0]
    assert not callers.failures, callers.failures[0]
    assert callers.right >= 6 * STEP
