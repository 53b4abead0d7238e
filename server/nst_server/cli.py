"""The command `nst serve`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nst_core import devices, files
from nst_core.console import one_line_errors, plan_progress, say
from nst_core.devices import DEVICE_HELP, DeviceChoice
from nst_core.errors import InputError
from nst_core.options import CommandLine
from nst_server import state
from nst_server.access import Access, read_token
from nst_server.control import Control
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.installation.docker import IMAGE, Container, device_for
from nst_server.installation.triton import install_triton
from nst_server.process import background
from nst_server.repository.models import check_device, model_names, read_repository
from nst_server.service import Service
from nst_server.state import State
from nst_server.tls import Certificate
from nst_server.triton_command import Launch

app = CommandLine()

SECURITY, CONTAINER, FILES = "Security", "Container", "Files"

HttpPort = Annotated[int, typer.Option("--http-port", help="HTTP port of the running server.", min=1, max=65535)]
StateFolder = Annotated[
    Path | None,
    typer.Option(
        "--state",
        help="Folder for the server's state file; by default the user's state folder.",
        envvar="NST_STATE",
        rich_help_panel=FILES,
    ),
]


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository to serve.")] = Path(
        "model_repository"
    ),
    device: Annotated[DeviceChoice, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    address: Annotated[str, typer.Option(help="Address to listen on: IPv4, IPv6 or a host name.")] = "127.0.0.1",
    http_port: Annotated[
        int, typer.Option(help="HTTP port; it also identifies the server for the subcommands.", min=1, max=65535)
    ] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port.", min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the Prometheus metrics.", min=1, max=65535)] = 8002,
    poll: Annotated[
        float | None,
        typer.Option(help="Seconds between checks for new models; by default models load only on request.", min=1),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Serve in the background; return when the server is ready.")
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="PEM certificate (chain); serve HTTP, gRPC and metrics over TLS only.", rich_help_panel=SECURITY
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM private key of the certificate.", rich_help_panel=SECURITY)
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that every call but health checks needs; NST_TOKEN may hold the token instead.",
            rich_help_panel=SECURITY,
        ),
    ] = None,
    docker: Annotated[
        bool, typer.Option("--docker", help="Run NVIDIA's Triton container.", rich_help_panel=CONTAINER)
    ] = False,
    image: Annotated[str, typer.Option(help="Image of the container.", rich_help_panel=CONTAINER)] = IMAGE,
    gpus: Annotated[
        str | None,
        typer.Option(
            help="GPUs of the container, as in docker run --gpus; by default all, if any.", rich_help_panel=CONTAINER
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the docker command instead of running it.", rich_help_panel=CONTAINER),
    ] = False,
    log: Annotated[Path, typer.Option(help="File for Triton's log.", rich_help_panel=FILES)] = Path("triton.log"),
    state_folder: StateFolder = None,
    environment: Annotated[
        Path,
        typer.Option(
            "--triton",
            help="Folder to install Triton from PyPI into, unless tritonserver is in PATH.",
            rich_help_panel=FILES,
        ),
    ] = Path(".triton"),
    install_only: Annotated[
        bool, typer.Option("--install-only", help="Install Triton and exit.", rich_help_panel=FILES)
    ] = False,
) -> None:
    """Serve a model repository with NVIDIA Triton until Ctrl-C.

    Triton is restarted if it dies. Only the user who started the server can use the subcommands.
    """
    if context.invoked_subcommand:
        return
    with one_line_errors("all"):
        if install_only:
            chosen = devices.choose(device)
            say(f"device {chosen}")
            install_triton(environment, say, chosen)
            return
        if not docker and (gpus or dry_run):
            raise InputError(f"{'--gpus' if gpus else '--dry-run'} needs --docker")
        model_names(repository)
        chosen, gpus = device_for(device, gpus) if docker else (devices.choose(device), None)
        check_device(repository, chosen, say)
        certificate = _certificate(tls_cert, tls_key)
        access = Access.new(read_token(token_file))
        endpoints = Endpoints(address, http_port, grpc_port, metrics_port)
        if certificate:
            endpoints = endpoints.behind_tls()
        container = Container.of(image, gpus, access) if docker else None
        launch = Launch(repository, endpoints, poll, access, certificate)
        if container and dry_run:
            for fault in read_repository(repository).faults.values():
                raise InputError(f"{fault}; the container would load it, so repair or remove it")
            typer.echo(shlex.join(container.command(launch)))
            return
        service = Service(
            launch=launch,
            access=access,
            device=chosen,
            log=log,
            state_folder=state_folder or files.state_folder(),
            environment=environment,
            container=container,
            detach=detach,
        )
        background.end_as_ctrl_c()
        service.run(say, plan_progress)


@app.command()
def stop(http_port: HttpPort = 8000, state_folder: StateFolder = None) -> None:
    """Stop a running server after its pending requests."""
    with one_line_errors("all"):
        found = _running(http_port, state_folder)
        background.stop(found)
        say(f"stopped the server of {found.http} (process {found.pid})")


@app.command()
def status(http_port: HttpPort = 8000, state_folder: StateFolder = None) -> None:
    """Show where a server listens and which models are ready.

    Exits with 0 only if all models are ready, apart from those that were never loaded
    or were unloaded, so a supervisor can use it as a health check.
    """
    with one_line_errors("all"):
        found = _running(http_port, state_folder)
        control = Control.of(found)
        if not control.live():
            raise ServerError(f"{found.http} does not answer (process {found.pid}); see the log {found.log}")
        typer.echo(f"{found.grpc} and {found.http}, metrics {found.metrics}")
        typer.echo(f"process {found.pid}, repository {found.repository}, log {found.log}")
        typer.echo(f"device {found.device}")
        listed = control.models()
        for model in listed:
            typer.echo(model.describe())
        if not any(model.ready for model in listed) or not all(model.ready or model.idle for model in listed):
            raise typer.Exit(1)


@app.command()
def load(
    name: Annotated[str, typer.Argument(help="Model name: its folder in the repository.", metavar="NAME")],
    http_port: HttpPort = 8000,
    state_folder: StateFolder = None,
) -> None:
    """Load a model, or its newest version, and warm it up."""
    with one_line_errors("all"):
        found = _running(http_port, state_folder)
        for model in Control.of(found).load(name):
            say(f"{found.http} serves {name} version {model.version}")


@app.command()
def unload(
    name: Annotated[str, typer.Argument(help="Model name: its folder in the repository.", metavar="NAME")],
    http_port: HttpPort = 8000,
    state_folder: StateFolder = None,
) -> None:
    """Unload a model after its pending requests."""
    with one_line_errors("all"):
        found = _running(http_port, state_folder)
        Control.of(found).unload(name)
        say(f"{found.http} no longer serves {name}")


def _certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    """Check the pair of files; `InputError` for half a pair."""
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise InputError("TLS needs both --tls-cert and --tls-key")
    certificate = Certificate(chain, key)
    certificate.context()
    return certificate


def _running(http_port: int, folder: Path | None) -> State:
    """Return the server with this HTTP port; `ServerError` if none runs."""
    where = folder or files.state_folder()
    if found := state.read(where, http_port):
        return found
    raise ServerError(
        f"no server of this user runs with HTTP port {http_port} (looked in {where}); give its port with --http-port"
    )
