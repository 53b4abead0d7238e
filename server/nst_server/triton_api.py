"""Triton's model repository extension over HTTP and gRPC: list, load and unload models.

No proxy is used, whatever the environment says: a key that loads models goes to the server alone.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from nst_core.contract import TOKEN_HEADER
from nst_core.errors import InputError

LIVE_TIMEOUT_SECONDS = 5.0
"""Maximum time for the answer to a health call."""

NO_PROXY = [("grpc.enable_http_proxy", 0)]
"""gRPC channel option that disables proxies."""


class NoAnswer(Exception):
    """Nothing answers at the URL, or not in time."""


class Refusal(Exception):
    """The server answers with an error; the message is Triton's."""


class NotTriton(Exception):
    """What answers is not Triton; the message is the beginning of its answer."""


class TritonApi(Protocol):
    """The calls of one server. They raise `NoAnswer`, `Refusal` and `NotTriton`."""

    def live(self) -> bool:
        """Return whether the server answers."""

    def index(self, timeout_seconds: float) -> list[dict[str, str]]:
        """List every model version: `name`, and `version`, `state` and `reason` if known."""

    def load(self, name: str, timeout_seconds: float) -> None:
        """Load a model's newest version and warm it up."""

    def unload(self, name: str, timeout_seconds: float) -> None:
        """Start to unload a model."""


def connect(url: str, key: str | None, authorities: Path | None = None) -> TritonApi:
    """Return the calls of the server at `url`; `InputError` for an invalid `url`."""
    scheme = check_url(url)
    return (GrpcApi if scheme.startswith("grpc") else HttpApi)(url.rstrip("/"), key, authorities)


def check_url(url: str) -> str:
    """Return the scheme of a server's URL; `InputError` for an invalid one."""
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.scheme in ("grpc", "grpcs", "http", "https") and parts.port != 0:
            return parts.scheme
    except ValueError:  # such as a port beyond 65535
        pass
    raise InputError(f"{url!r} is not a server's address: use grpc(s)://host:8001 or http(s)://host:8000")


@dataclass(frozen=True)
class HttpApi:
    """Calls over `http://` or `https://`."""

    url: str
    key: str | None = field(default=None, repr=False)
    authorities: Path | None = None
    """PEM file of trusted certificates; None for the system's."""

    def live(self) -> bool:
        """See `TritonApi`."""
        try:
            self._call("health/live", None, LIVE_TIMEOUT_SECONDS)
        except (NoAnswer, Refusal):
            return False
        return True

    def index(self, timeout_seconds: float) -> list[dict[str, str]]:
        """See `TritonApi`."""
        body = self._call("repository/index", b"{}", timeout_seconds)
        try:
            models = json.loads(body)
        except ValueError:
            models = None
        if not isinstance(models, list) or not all(isinstance(model, dict) and "name" in model for model in models):
            raise NotTriton(body[:60].decode(errors="replace"))
        return models

    def load(self, name: str, timeout_seconds: float) -> None:
        """See `TritonApi`."""
        self._call(f"repository/models/{quote(name, safe='')}/load", b"{}", timeout_seconds)

    def unload(self, name: str, timeout_seconds: float) -> None:
        """See `TritonApi`."""
        self._call(f"repository/models/{quote(name, safe='')}/unload", b"{}", timeout_seconds)

    def _call(self, path: str, body: bytes | None, timeout_seconds: float) -> bytes:
        request = urllib.request.Request(f"{self.url}/v2/{path}", body, {TOKEN_HEADER: self.key or ""})
        try:
            with self._opener().open(request, timeout=timeout_seconds) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise Refusal(_error_of(error.read().decode(errors="replace"))) from error
        except (OSError, HTTPException) as error:
            raise NoAnswer(str(getattr(error, "reason", error))) from error

    def _opener(self) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.url.startswith("https:"):
            context = ssl.create_default_context(cafile=self.authorities)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        return urllib.request.build_opener(*handlers)


@dataclass(frozen=True)
class GrpcApi:
    """Calls over `grpc://` or `grpcs://`."""

    url: str
    key: str | None = field(default=None, repr=False)
    authorities: Path | None = None
    """PEM file of trusted certificates; None for the system's."""

    def live(self) -> bool:
        """See `TritonApi`."""
        try:
            return bool(self._call("is_server_live", timeout_seconds=LIVE_TIMEOUT_SECONDS))
        except (NoAnswer, Refusal):
            return False

    def index(self, timeout_seconds: float) -> list[dict[str, str]]:
        """See `TritonApi`."""
        answer = self._call("get_model_repository_index", timeout_seconds=timeout_seconds)
        return [
            {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
            for model in answer.models
        ]

    def load(self, name: str, timeout_seconds: float) -> None:
        """See `TritonApi`."""
        self._call("load_model", name, timeout_seconds=timeout_seconds)

    def unload(self, name: str, timeout_seconds: float) -> None:
        """See `TritonApi`."""
        self._call("unload_model", name, timeout_seconds=timeout_seconds)

    def _call(self, method: str, *arguments: str, timeout_seconds: float) -> Any:
        scheme, _, address = self.url.partition("://")
        headers = {f"triton-grpc-protocol-{TOKEN_HEADER}": self.key} if self.key else None
        try:
            with tritonclient.grpc.InferenceServerClient(
                address,
                ssl=scheme == "grpcs",
                root_certificates=None if self.authorities is None else str(self.authorities),
                channel_args=NO_PROXY,
            ) as client:
                return getattr(client, method)(*arguments, headers=headers, client_timeout=timeout_seconds)
        except InferenceServerException as error:
            lost = error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
            if lost and "restricted" not in error.message():  # Triton refuses a call without the key as UNAVAILABLE
                raise NoAnswer(error.message()) from error
            raise Refusal(error.message()) from error
        except OSError as error:  # such as an unreadable file of certificates
            raise NoAnswer(str(error)) from error


def _error_of(body: str) -> str:
    """Return the message in Triton's JSON, else the whole body."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body
