"""`nst export`: publish, inspect and verify models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from nst_core.console import console, fail, one_line_errors, plan_progress, say, show
from nst_core.contract import Purpose
from nst_core.devices import DEVICE_HELP, DeviceChoice, choose
from nst_core.errors import InputError, NstError
from nst_core.options import CommandLine, Group, ProgressJson
from nst_core.shipped import shipped_styles
from nst_export.tensorrt import DEFAULT_SHAPES

if TYPE_CHECKING:
    from nst_core.events import EventLog
    from nst_export.export_plan import ExportPlan, Target
    from nst_export.graph.rewrites import Runtime


ONNX_RUNTIME_ERRORS = 3
"""ONNX Runtime's log severity for errors; warnings are 2."""


class _CheckpointOrCommand(Group):
    """Run `nst export model.pth` as `nst export publish model.pth`, besides the commands `inspect` and `verify`."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        if not arguments or arguments[0] not in self.commands:
            arguments = ["publish", *arguments]
        return super().parse_args(context, arguments)


app = CommandLine(cls=_CheckpointOrCommand)


@app.callback()
def export() -> None:
    """Export checkpoints, verify them and publish them for Triton."""


@app.command()
def publish(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints (.pth, .model), folders of them, or names of shipped styles.",
            metavar="CHECKPOINT",
            autocompletion=lambda incomplete: [name for name in shipped_styles() if name.startswith(incomplete)],
        ),
    ],
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository",
            "-r",
            help="Model repository; by default model_repository, or engines for tensorrt-rtx.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Name of the served model; by default the file's.")
    ] = None,
    device: Annotated[DeviceChoice, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    tiled: Annotated[
        bool,
        typer.Option("--tiled", help="Also publish the two models that stylize images of any size in tiles."),
    ] = False,
    load: Annotated[
        str | None,
        typer.Option(help="Running server that loads the model, such as grpc://host:8001 or http://host:8000."),
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Older versions to keep; by default all.", min=0)] = None,
    runtime: Annotated[
        Literal["cpu", "gpu", "tensorrt"] | None,
        typer.Option(
            "--for",
            help="Runtime: cpu, gpu (ONNX Runtime CUDA) or tensorrt; by default chosen by --device.",
            rich_help_panel="Engine",
        ),
    ] = None,
    target: Annotated[
        Literal["onnx", "tensorrt", "tensorrt-rtx"] | None,
        typer.Option(
            help="Output: an ONNX file, a plan for this machine's GPU, or engines for other GPUs.",
            rich_help_panel="Engine",
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16"] | None,
        typer.Option(
            help="Precision of the convolutions; by default fp16 for TensorRT, else fp32.", rich_help_panel="Engine"
        ),
    ] = None,
    shapes: Annotated[
        str,
        typer.Option(
            help="TensorRT's minimum/optimum/maximum shape: height x width or batch x height x width.",
            rich_help_panel="Engine",
        ),
    ] = DEFAULT_SHAPES,
    compute_capability: Annotated[
        str | None,
        typer.Option(
            help="GPUs of tensorrt-rtx engines, such as 8.9,12.0; by default all that it supports.",
            rich_help_panel="Engine",
        ),
    ] = None,
    execution_provider: Annotated[
        Literal["openvino", "cpu"] | None,
        typer.Option(
            help="ONNX Runtime's execution provider on a CPU; by default openvino on x86-64, else cpu.",
            rich_help_panel="Engine",
        ),
    ] = None,
    rewrites: Annotated[
        str | None,
        typer.Option(
            help="Graph rewrites, separated by commas, or none; by default the fastest for the runtime.",
            rich_help_panel="Engine",
        ),
    ] = None,
    cores: Annotated[
        int, typer.Option(help="CPU cores of the serving machine.", min=1, rich_help_panel="Server")
    ] = os.cpu_count() or 1,
    instances: Annotated[
        int, typer.Option(help="Model instances that share the cores or the GPU.", min=1, rich_help_panel="Server")
    ] = 1,
    progress_json: ProgressJson = None,
) -> None:
    """Export checkpoints, verify them and publish them for Triton.

    nst export inspect FOLDER describes a published model. nst export verify FOLDER verifies an engine on another GPU.
    """
    with one_line_errors("export", command="nst export", progress_json=progress_json) as events:
        from nst_export.checkpoints import find_checkpoints
        from nst_export.export_plan import ExportPlan, default_provider
        from nst_export.tensorrt import parse_shapes

        found = find_checkpoints(checkpoints)
        if name and len(found) > 1:
            raise InputError(f"--name is for a single checkpoint, but there are {len(found)}; export them separately")
        capabilities = _compute_capabilities(target, compute_capability)
        chosen = _runtime(device, runtime, target)
        if execution_provider and chosen != "cpu":
            raise InputError(
                f"--execution-provider {execution_provider} is for a CPU, but the model is for {chosen}; leave it out, "
                "or add --for cpu"
            )
        plan = ExportPlan(
            target=target,
            precision=precision,
            runtime=chosen,
            provider=execution_provider or default_provider(),
            rewrites=None if rewrites is None else _names(rewrites),
            profile=parse_shapes(shapes),
            compute_capabilities=capabilities,
            tiled=tiled,
            cores=cores,
            instances=instances,
            keep=keep,
        )
        folder = repository or Path("engines" if target == "tensorrt-rtx" else "model_repository")
        if load and target == "tensorrt-rtx":
            raise InputError("--load does not go with --target tensorrt-rtx, which Triton cannot serve; leave it out")
        failures = _export_all(found, name, folder, plan, load, events)
        if failures:
            say(f"{failures} of {len(found)} exports failed")
            events.end("failed", message=f"{failures} of {len(found)} exports failed")
            raise typer.Exit(1)
        events.end("finished", output=folder)
        if target != "tensorrt-rtx" and not load:
            say(f"serve it with: nst serve --repository {folder}")


def _export_all(
    paths: list[Path], name: str | None, repository: Path, plan: ExportPlan, server: str | None, events: EventLog
) -> int:
    """Export each checkpoint, and load it on `server`; return how many failed. The error of a sole one is raised."""
    from nst_core.packages.onnx_runtime import import_onnxruntime
    from nst_export.pipeline import export_and_publish

    # OpenVINO's provider ignores a session's log severity, and warns of inputs that it optimises away.
    import_onnxruntime().set_default_logger_severity(ONNX_RUNTIME_ERRORS)
    failures = 0
    for position, path in enumerate(paths):
        events.progress("exporting", position, len(paths), unit="checkpoints", checkpoint=path)
        try:
            published = export_and_publish(
                path, name or path.stem, repository, plan, on_progress=say, progress_of=plan_progress
            )
        except NstError as error:
            if len(paths) == 1:
                raise
            fail(type(error)(f"{path}: {error}"))
            events.write("refused", checkpoint=path, message=" ".join(str(error).split()))
            failures += 1
            continue
        for model in published:
            # Both parts of a tiled model have the same checks.
            _show(model.verification, figures=model.verification["purpose"] != Purpose.STATISTICS)
            say(f"published {model.folder}")
            events.write("published", model=model.verification["model"], version=model.folder.name, folder=model.folder)
        if server:
            for model in published:
                _load(server, model.verification["model"], model.folder.name)
    return failures


def _load(url: str, model: str, version: str) -> None:
    """Load a published model on a running server; raises `ExportError` if the server does not."""
    from nst_export.errors import ExportError
    from nst_server.control import Control
    from nst_server.errors import ServerError

    try:
        Control.at(url).load(model, version)
    except ServerError as error:
        raise ExportError(f"published {model}, but {url} did not load it: {error}") from error
    say(f"{url} serves {model} version {version}")


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Model repository, model, version of a model, or ONNX file.", metavar="PATH")
    ],
    size: Annotated[int, typer.Option(help="Side in pixels of the image for which FLOP are counted.", min=64)] = 512,
) -> None:
    """Describe published models.

    It prints files, tensors, operators, precision, arithmetic, origin and verification.
    """
    with one_line_errors("export"):
        from nst_export.inspection import describe, find_versions

        for position, version in enumerate(find_versions(path)):
            if position:
                show("")
            for line in describe(version, size):
                show(line)


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(help="Version of a published model, such as engines/starry-night/1.", metavar="FOLDER")
    ],
) -> None:
    """Verify a published engine on this machine's GPU.

    It compares the engine with its verified FP32 graph, and adds the results to verification.json.
    """
    with one_line_errors("export"):
        from nst_export.gpu_engine import verify_published

        _show(verify_published(folder, progress_of=plan_progress))
        say(f"verified {folder}")


def _runtime(wanted: DeviceChoice, runtime: Runtime | None, target: Target | None) -> Runtime:
    """Return the runtime: `--for`, or that of the target, or that of the device, which is then shown."""
    from nst_export.export_plan import runtime_for

    if target in ("tensorrt", "tensorrt-rtx"):
        if runtime not in (None, "tensorrt"):
            raise InputError(f"--for {runtime} does not go with --target {target}; leave it out")
        runtime = "tensorrt"
    if runtime is None:
        device = choose(wanted)
        say(f"device {device}")
        return runtime_for(device, target)
    if wanted != "auto" and (wanted == "cpu") != (runtime == "cpu"):
        given = f"--target {target}" if target in ("tensorrt", "tensorrt-rtx") else f"--for {runtime}"
        raise InputError(f"--device {wanted} does not go with {given}; leave one of them out")
    return runtime


def _compute_capabilities(target: Target | None, names: str | None) -> tuple[str, ...]:
    from nst_export.tensorrt import compute_capabilities

    if target == "tensorrt-rtx":
        return tuple(compute_capabilities(names))
    if names:
        raise InputError(f"--compute-capability {names} has no effect without --target tensorrt-rtx; add that")
    return ()


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def _show(document: dict[str, Any], *, figures: bool = True) -> None:
    """Print the status of the engine for GPUs, if there is one, and a table of the worst results of every engine."""
    if engine := document["engine"]:
        say(f"{document['model']}: {engine['status']}" + (f" ({engine['library']})" if engine["library"] else ""))
    if not figures:
        return
    table = Table("engine", "checks", "max", "99.9 %", "mean", "PSNR", caption="absolute difference (of 255)")
    for name in dict.fromkeys(check["engine"] for check in document["checks"]):
        own = [check for check in document["checks"] if check["engine"] == name]
        judged = [check for check in own if check["judged"]]
        maximum, quantile, mean = (
            max(check[f"{figure}_difference"] for check in judged) for figure in ("max", "quantile", "mean")
        )
        minimum = min((check["psnr"] for check in judged if check["psnr"] is not None), default=None)
        psnr = "identical" if minimum is None else f"{minimum:.1f} dB"
        table.add_row(name, str(len(own)), f"{maximum} of 255", f"{quantile:g}", f"{mean:.5f}", psnr)
    console.print(table)
