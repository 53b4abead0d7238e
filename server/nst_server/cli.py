"""`nst serve` and `nst-serve`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from nst_core.console import one_line_errors, say
from nst_server import triton


def serve(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Triton's model repository.")] = Path(
        "model_repository"
    ),
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port of HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the Prometheus metrics.")] = 8002,
    poll: Annotated[
        float | None,
        typer.Option(help="Look for new versions every so many seconds; if not given, only when asked to load.", min=1),
    ] = None,
    log: Annotated[Path, typer.Option(help="File for Triton's log.")] = Path("triton.log"),
    environment: Annotated[
        Path, typer.Option("--triton", help="Where Triton from PyPI is, or goes, if none is in PATH.")
    ] = Path(".triton"),
    install_only: Annotated[bool, typer.Option("--install-only", help="Install Triton and start nothing.")] = False,
) -> None:
    """Serve a model repository with NVIDIA's Triton until Ctrl-C."""
    with one_line_errors("all"):
        if install_only:
            triton.install(environment, say)
            return
        names = triton.models(repository)
        endpoints = triton.Endpoints(address, http_port, grpc_port, metrics_port)
        endpoints.check_free()
        installation = triton.find(environment, say)
        say(f"starting Triton on {repository} (log: {log})")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's end is a Ctrl-C
        with triton.running(installation, repository, endpoints, log, poll=poll, on_error=say) as process:
            say(f"ready: {', '.join(names)} on {endpoints.grpc} and {endpoints.http}; Ctrl-C ends it")
            status = process.wait()
            raise triton.ServerError(f"Triton ended by itself with exit status {status} (its log: {log})")


app = typer.Typer(add_completion=False)
app.command()(serve)
