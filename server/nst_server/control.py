"""Asking a running Triton about its models, and to load and unload them, over its plain HTTP on this machine."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from nst_core.errors import InputError
from nst_server import links
from nst_server.access import HEADER
from nst_server.errors import ServerError
from nst_server.repository import NAME

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine's server itself, whatever `http_proxy` says: the key is no proxy's business."""

PATIENCE = 300.0
"""Seconds that a model may take to load; loading warms it up."""

UNLOAD_SECONDS = 60.0
"""Seconds that a model may take to unload: it answers the requests that it has."""

LAYERS = re.compile(
    r"^(load failed for model '[^']*': |version \d+ is at UNAVAILABLE state: |Internal: |Invalid argument: "
    r"|TritonModelException: )+"
)


@dataclass(frozen=True)
class Model:
    """A version of a model as Triton's repository index has it; `state` is empty for one that was never loaded."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether it is served."""
        return self.state == "READY"

    @property
    def idle(self) -> bool:
        """Whether nobody wants it served: it was never loaded, or it was unloaded."""
        return not self.state or (self.state == "UNAVAILABLE" and self.reason == "unloaded")

    def shown(self) -> str:
        """For a person: `mosaic version 3: ready`."""
        said = "ready" if self.ready else "not loaded" if self.idle else cause(self.reason) or self.state.lower()
        return f"{self.name} version {self.version}: {said}" if self.version else f"{self.name}: {said}"


@dataclass(frozen=True)
class Control:
    """The calls of one server: its plain HTTP URL, the key if it has one, and its repository as it is to be named."""

    url: str
    key: str | None = None
    repository: str = "model_repository"

    def live(self) -> bool:
        """Whether Triton answers."""
        try:
            with DIRECT.open(f"{self.url}/v2/health/live", timeout=5.0):
                return True
        except (OSError, HTTPException):
            return False

    def models(self, patience: float = PATIENCE) -> list[Model]:
        """Every version that Triton knows of, and what became of it; `ServerError` without an answer in time."""
        listed = self._post("index", patience=patience)
        if not isinstance(listed, list) or not all(isinstance(model, dict) and "name" in model for model in listed):
            raise ServerError(f"what answers at {self.url} is no Triton: {str(listed)[:60]!r}")
        return [
            Model(
                name=model["name"],
                version=model.get("version", ""),
                state=model.get("state", ""),
                reason=links.outward(model.get("reason", ""), self.repository),
            )
            for model in listed
            if NAME.fullmatch(model["name"])  # of the others nothing is ever loaded
        ]

    def load(self, name: str) -> list[Model]:
        """Load a model's newest version, warm it up, and return what is ready; `ServerError` with the reason if not.

        Raises `InputError` for what cannot be a model's name.
        """
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is no model's name: it has letters, digits, _, - and . only")
        if not any(model.name == name for model in self.models()):
            raise ServerError(f"no model {name!r} in the repository; nst-serve status lists them")
        self._post(f"models/{quote(name, safe='')}/load", name)
        return [model for model in self.models() if model.name == name and model.ready]

    def unload(self, name: str) -> None:
        """Unload a model and wait until its last request is answered; `ServerError` if that takes too long."""
        deadline = time.monotonic() + UNLOAD_SECONDS
        if not any(one.name == name and one.ready for one in self.models(UNLOAD_SECONDS)):
            raise ServerError(f"no model {name!r} is loaded; nst-serve status lists them")
        self._post(f"models/{quote(name, safe='')}/unload", name, patience=UNLOAD_SECONDS)
        while any(one.name == name and not one.idle for one in self.models(UNLOAD_SECONDS)):
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{name} is not unloaded after {UNLOAD_SECONDS:.0f} s: it has requests, or its process hangs; "
                    "nst-serve status tells what becomes of it, nst-serve stop ends the server"
                )
            time.sleep(0.1)

    def forget(self, name: str) -> None:
        """Unload a model whose folder is gone, which Triton lists no more, and do not wait; `ServerError` if not."""
        self._post(f"models/{quote(name, safe='')}/unload", name)

    def _post(self, call: str, name: str = "", patience: float = PATIENCE) -> Any:
        request = urllib.request.Request(f"{self.url}/v2/repository/{call}", b"{}", {HEADER: self.key or ""})
        try:
            with DIRECT.open(request, timeout=patience) as answer:
                said = answer.read()
                return json.loads(said) if said else None
        except urllib.error.HTTPError as error:
            reason = links.outward(cause(_message(error.read().decode(errors="replace"))), self.repository)
            raise ServerError(f"{name}: {reason}" if name else reason) from error
        except (OSError, HTTPException) as error:
            raise ServerError(f"no answer from Triton at {self.url}: {error}") from error
        except ValueError as error:
            raise ServerError(f"what answers at {self.url} is no Triton: {said[:60]!r}") from error


def cause(reason: str) -> str:
    """Triton's reason without the names of its layers and the place in the backend where it was raised."""
    said = reason.replace("\\n", "\n").split("\n\nAt:")[0]
    return " ".join(LAYERS.sub("", said).split()).rstrip(";")


def _message(said: str) -> str:
    try:
        return str(json.loads(said)["error"])
    except (ValueError, KeyError, TypeError):
        return said
