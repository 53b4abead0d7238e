"""List, load and unload the models of a running Triton, over HTTP or gRPC."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nst_core.contract import Variable
from nst_core.errors import InputError
from nst_server import triton_api
from nst_server.errors import ServerError
from nst_server.repository import links
from nst_server.repository.models import NAME
from nst_server.state import State, key_for
from nst_server.triton_api import NoAnswer, NotTriton, Refusal, TritonApi
from nst_server.triton_command import Launch

LOAD_TIMEOUT_SECONDS = 300.0
"""Maximum time to load a model and warm it up."""

UNLOAD_TIMEOUT_SECONDS = 60.0
"""Maximum time to unload a model, which first answers its pending requests."""

LAYERS = re.compile(
    r"^(load failed for model '[^']*': |version \d+ is at UNAVAILABLE state: |Internal: |Invalid argument: "
    r"|TritonModelException: )+"
)
"""What Triton's layers add before the reason of a failure."""

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """A version of a model in Triton's repository index; `state` is empty if it was never loaded."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether the version is served."""
        return self.state == "READY"

    @property
    def idle(self) -> bool:
        """Whether the version was never loaded, or was unloaded."""
        return not self.state or (self.state == "UNAVAILABLE" and self.reason == "unloaded")

    def describe(self) -> str:
        """Format the version and its state for a message: `mosaic version 3: ready`."""
        state = "ready" if self.ready else "not loaded" if self.idle else cause(self.reason) or self.state.lower()
        return f"{self.name} version {self.version}: {state}" if self.version else f"{self.name}: {state}"


@dataclass(frozen=True)
class Control:
    """Control of the models of the server at `url` (http, https, grpc or grpcs).

    `key` authorizes the guarded calls. `authorities` is a PEM file of trusted certificates, in place of the system's.
    `repository` is the path of the model repository that messages show.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    repository: str = "model_repository"
    authorities: Path | None = None

    @classmethod
    def of(cls, state: State) -> Control:
        """Create the control of this user's server on this machine."""
        return cls(state.control, state.key, state.repository)

    @classmethod
    def of_launch(cls, launch: Launch) -> Control:
        """Create the control of a Triton that this process starts."""
        key = launch.access.key if launch.access else None
        return cls(launch.endpoints.control, key, str(launch.repository))

    @classmethod
    def at(cls, url: str) -> Control:
        """Create the control of any server.

        The key is the one in the state file if it is this user's server on this machine, else the value of NST_TOKEN.
        TLS trusts the system's authorities, or the PEM file in NST_CA. Raises `InputError` for an invalid `url`, and
        for an NST_CA that is not a file.
        """
        triton_api.check_url(url)
        authorities = os.environ.get(Variable.CA)
        if authorities and not Path(authorities).is_file():
            raise InputError(f"{Variable.CA}={authorities}: no such file")
        key = key_for(url) or os.environ.get(Variable.TOKEN)
        return cls(url, key, authorities=Path(authorities) if authorities else None)

    def live(self) -> bool:
        """Return whether Triton answers."""
        return self._api.live()

    def models(self, timeout_seconds: float = LOAD_TIMEOUT_SECONDS) -> list[Model]:
        """List every version that Triton knows, with its state; `ServerError` without an answer in time."""
        return [
            Model(
                name=entry["name"],
                version=entry.get("version", ""),
                state=entry.get("state", ""),
                reason=links.outward(entry.get("reason", ""), self.repository),
            )
            for entry in self._call(lambda: self._api.index(timeout_seconds))
            if NAME.fullmatch(entry["name"])  # Triton loads nothing with another name
        ]

    def load(self, name: str, version: str | None = None) -> list[Model]:
        """Load a model's newest version, warm it up, and return the versions that are ready.

        With `version`, wait until that version is ready. Raises `ServerError` with the reason if the model does not
        load, and `InputError` for an invalid name.
        """
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is not a model name: use letters, digits, _, - and . only")
        if not any(model.name == name for model in self.models()):
            raise ServerError(f"no model {name!r} in the repository; nst serve status lists the models")
        deadline = time.monotonic() + LOAD_TIMEOUT_SECONDS
        self._call(lambda: self._api.load(name, LOAD_TIMEOUT_SECONDS), name)
        while True:
            ready = [model for model in self.models() if model.name == name and model.ready]
            if version is None or any(model.version == version for model in ready):
                return ready
            if time.monotonic() > deadline:
                raise ServerError(f"version {version} of {name} is not ready after {LOAD_TIMEOUT_SECONDS:.0f} s")
            time.sleep(0.2)

    def unload(self, name: str) -> None:
        """Unload a model and wait until its last request is answered; `ServerError` if that takes too long."""
        deadline = time.monotonic() + UNLOAD_TIMEOUT_SECONDS
        if not any(model.name == name and model.ready for model in self.models(UNLOAD_TIMEOUT_SECONDS)):
            raise ServerError(f"no model {name!r} is loaded; nst serve status lists the models")
        self._call(lambda: self._api.unload(name, UNLOAD_TIMEOUT_SECONDS), name)
        while any(model.name == name and not model.idle for model in self.models(UNLOAD_TIMEOUT_SECONDS)):
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{name} is not unloaded after {UNLOAD_TIMEOUT_SECONDS:.0f} s: it has pending requests, or its "
                    "process hangs; watch it with nst serve status, or end the server with nst serve stop"
                )
            time.sleep(0.1)

    def forget(self, name: str) -> None:
        """Unload a model whose folder is gone, without waiting; `ServerError` if that fails."""
        self._call(lambda: self._api.unload(name, LOAD_TIMEOUT_SECONDS), name)

    @property
    def _api(self) -> TritonApi:
        return triton_api.connect(self.url, self.key, self.authorities)

    def _call(self, call: Callable[[], T], name: str = "") -> T:
        """Return what `call` returns; raise its failure as a `ServerError` that begins with `name`, if given."""
        try:
            return call()
        except Refusal as refusal:
            reason = links.outward(cause(str(refusal)), self.repository)
            if "restricted" in reason:
                reason = (
                    f"{self.url} requires its key; use nst serve on its machine, or set {Variable.TOKEN} to the key"
                )
            raise ServerError(f"{name}: {reason}" if name else reason) from refusal
        except NoAnswer as error:
            raise ServerError(f"no answer from Triton at {self.url}: {error}") from error
        except NotTriton as error:
            raise ServerError(f"the server at {self.url} is not Triton; it answers {str(error)!r}") from error


def cause(reason: str) -> str:
    """Return Triton's reason without the names of its layers and the source location."""
    text = reason.replace("\\n", "\n").split("\n\nAt:")[0]
    return " ".join(LAYERS.sub("", text).split()).rstrip(";")
