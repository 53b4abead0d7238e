"""TLS for Triton's HTTP and metrics, which do not support it: decrypted bytes are forwarded unchanged."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nst_core.errors import InputError
from nst_server.endpoints import host
from nst_server.errors import ServerError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
"""Bytes forwarded at a time; an image of 512x512 is 0.8 MB."""

HANDSHAKE_TIMEOUT_SECONDS = 10.0
"""Maximum time of a TLS handshake."""


@dataclass(frozen=True)
class Certificate:
    """A server's certificate (chain) and private key: two PEM files."""

    chain: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return an SSL context for TLS 1.2 or later with this certificate; `InputError` for an invalid pair."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        for file in (self.chain, self.key):
            if not file.is_file():
                raise InputError(f"{file}: no such file")
        try:
            context.load_cert_chain(self.chain, self.key, password=lambda: "")  # or OpenSSL prompts at the terminal
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error.strerror or error
            raise InputError(
                f"cannot use {self.chain} and {self.key}: give a certificate and its unencrypted key as PEM ({reason})"
            ) from error
        return context


@contextmanager
def terminate(certificate: Certificate, address: str, ports: Mapping[int, int]) -> Iterator[None]:
    """Listen with TLS on `address` at each port of `ports` and forward to its plain port on 127.0.0.1.

    It runs in a thread until the block ends. Raises `ServerError` if a port cannot be listened on.
    """
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_log_failure)  # such as a caller's failed handshake
    thread = threading.Thread(target=loop.run_forever, name="tls", daemon=True)
    thread.start()
    try:
        servers = asyncio.run_coroutine_threadsafe(_listen(certificate.context(), address, ports), loop).result()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(_close(servers), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _log_failure(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    logger.debug("%s: %s", context.get("message"), context.get("exception"))


async def _listen(context: ssl.SSLContext, address: str, ports: Mapping[int, int]) -> list[asyncio.Server]:
    servers: list[asyncio.Server] = []
    for outer, inner in ports.items():
        try:
            servers.append(
                await asyncio.start_server(
                    partial(_hand_on, inner),
                    address,
                    outer,
                    limit=CHUNK_BYTES,
                    ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_SECONDS,
                )
            )
        except OSError as error:
            await _close(servers)
            raise ServerError(f"cannot listen on {host(address)}:{outer}: {error.strerror or error}") from error
    return servers


async def _close(servers: list[asyncio.Server]) -> None:
    for server in servers:
        server.close()
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def _hand_on(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward one connection until either side ends it."""
    try:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK_BYTES)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError:  # such as ssl.SSLError or ConnectionError: the caller has gone
        pass
    finally:
        writer.close()
