"""Asking a running server to load what was published."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tritonclient.utils import InferenceServerException

from nst_core.contract import TOKEN_HEADER
from nst_core.errors import InputError
from nst_export.errors import ExportError
from nst_server.state import key_for

DIRECT = [("grpc.enable_http_proxy", 0)]
"""A server's key goes to the server alone, whatever proxy the environment names."""

LOAD_SECONDS = 120.0
"""Seconds that `load` waits for a server."""


def load(url: str, name: str, version: str) -> None:
    """Ask the server at `url` (grpc, http, grpcs or https) to load `name`, and wait until it serves `version`.

    The secret that nst-serve guards loading with is found if the server is this user's on this machine, and is else
    taken from the environment's NST_TOKEN; TLS trusts the system's CAs, or the PEM file that NST_CA names. No proxy is
    used. Raises `ExportError` if nobody answers, the server refuses, or it does not serve it in `LOAD_SECONDS`, and
    `InputError` for a `url` that is no address.
    """
    client, header = _client(url)
    secret = key_for(url) or os.environ.get("NST_TOKEN")
    headers = {header: secret} if secret else {}
    deadline = time.monotonic() + LOAD_SECONDS
    try:
        client.load_model(name, headers=headers)
        while not client.is_model_ready(name, version, headers=headers):
            if time.monotonic() > deadline:
                raise ExportError(f"{url} does not serve version {version} of {name} after {LOAD_SECONDS:.0f} s")
            time.sleep(0.2)
    except (InferenceServerException, OSError) as error:
        reason = error.message() if isinstance(error, InferenceServerException) else error
        if "restricted" in str(error):
            reason = "it wants its key: load it on its machine (nst-serve load), or give the key in NST_TOKEN"
        elif "UNAVAILABLE" in str(error) or isinstance(error, OSError):
            reason = "no server answers there"
        raise ExportError(f"published, but {url} did not load {name}: {reason}") from error
    finally:
        client.close()


def _client(url: str) -> tuple[Any, str]:
    """NVIDIA's client for a URL, and the name of the header that a secret goes by."""
    scheme, _, host = url.partition("://")
    host, tls = host.rstrip("/"), scheme.endswith("s")
    try:
        known = urlsplit(url).hostname and scheme in ("grpc", "grpcs", "http", "https") and urlsplit(url).port != 0
    except ValueError:  # a port that is none
        known = False
    if not known:
        raise InputError(f"--load {url!r} is no address: use grpc(s)://host:8001 or http(s)://host:8000")
    authorities = os.environ.get("NST_CA")
    if authorities and not Path(authorities).is_file():
        raise InputError(f"NST_CA={authorities}: no such file")
    if scheme in ("grpc", "grpcs"):
        import tritonclient.grpc as triton

        client = triton.InferenceServerClient(host, ssl=tls, root_certificates=authorities, channel_args=DIRECT)
        return client, f"triton-grpc-protocol-{TOKEN_HEADER}"

    import tritonclient.http as triton

    def context(**_: Any) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=authorities)

    return triton.InferenceServerClient(host, ssl=tls, ssl_context_factory=context), TOKEN_HEADER
