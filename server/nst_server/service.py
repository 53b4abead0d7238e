"""Run `nst serve`: check, start Triton under a supervisor, and leave a state file for the commands that control it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from nst_core.devices import Device
from nst_core.engines.building import ProgressOf, unwatched
from nst_server import state
from nst_server.access import Access
from nst_server.control import Control
from nst_server.endpoints import host
from nst_server.errors import ServerError
from nst_server.installation.docker import Container
from nst_server.installation.triton import find_triton
from nst_server.process import background
from nst_server.process.supervisor import supervise
from nst_server.repository import plans
from nst_server.state import State
from nst_server.triton_command import Launch, Runnable


@dataclass(frozen=True)
class Service:
    """What to serve, on which device, and where the log and the state file go.

    Triton runs from PATH or from `environment`, or in a `container`. With `detach` it runs in the background.
    """

    launch: Launch
    access: Access
    device: Device
    log: Path
    state_folder: Path
    environment: Path
    container: Container | None = None
    detach: bool = False

    def run(self, on_message: Callable[[str], None], progress_of: ProgressOf = unwatched) -> None:
        """Serve until Ctrl-C, or return when the server is ready in the background.

        `on_message` receives a line for each step, and `progress_of` shows the building of TensorRT plans. Raises
        `ServerError` if a port is taken.
        """
        self._check_free()
        if self.container:
            self.container.check()
            for line in plans.missing(self.launch.repository):
                on_message(line)
        on_message(f"device {self.device}")
        installation: Runnable = self.container or self._prepare(on_message, progress_of)
        on_message(f"starting Triton on {self.launch.repository} (log: {self.log})")

        def serve(ready: Callable[[], None]) -> None:
            with ExitStack() as resources:
                announcement = _Announcement(self, resources, on_message, ready)
                supervise(installation, self.launch, self.log, on_error=on_message, on_ready=announcement.make)

        if self.detach:
            background.detached(serve, self.log)
        else:
            serve(lambda: None)

    @property
    def port(self) -> int:
        """The HTTP port, which identifies the service."""
        return self.launch.endpoints.http_port

    def _check_free(self) -> None:
        state.check_folder(self.state_folder)
        if running := state.read(self.state_folder, self.port):
            raise ServerError(
                f"cannot listen on {host(self.launch.endpoints.address)}:{self.port} (process {running.pid} serves "
                "there already); end it with nst serve stop, or choose another port with --http-port"
            )
        self.launch.endpoints.check_free()

    def _prepare(self, on_message: Callable[[str], None], progress_of: ProgressOf) -> Runnable:
        """Find or install Triton for the device, and build the TensorRT plans that the repository's models need."""
        installation = find_triton(self.environment, on_message, self.device)
        plans.prepare(installation, self.launch.repository, self.device, on_message, progress_of)
        return installation


@dataclass
class _Announcement:
    """Announce that a service is ready: to the user at every start of Triton, to other commands at the first."""

    service: Service
    resources: ExitStack
    on_message: Callable[[str], None]
    on_first: Callable[[], None]
    made: bool = field(default=False, init=False)

    def make(self) -> None:
        launch = self.service.launch
        names = sorted({model.name for model in Control.of_launch(launch).models() if model.ready})
        if not self.made:
            here = State.here(
                launch.endpoints, launch.repository, self.service.log, self.service.access, self.service.device
            )
            self.resources.enter_context(state.kept(here, self.service.state_folder, self.service.port))
        end = "nst serve stop" if self.service.detach else "Ctrl-C"
        self.on_message(
            f"ready: {', '.join(names)} on {launch.endpoints.grpc} and {launch.endpoints.http}; stop with {end}"
        )
        if not self.made:
            self.on_first()
        self.made = True
