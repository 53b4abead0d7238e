"""`nst export` and `nst-export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from typer.core import TyperGroup

from nst_core.console import console, fail, one_line_errors, say, show
from nst_core.devices import DEVICE_HELP, DeviceChoice, choose
from nst_core.errors import InputError, NstError
from nst_core.options import CommandLine, ProgressJson

if TYPE_CHECKING:
    from nst_export.pipeline import Target
    from nst_export.rewrites import Engine


class _CheckpointOrCommand(TyperGroup):
    """`nst-export model.pth` is `nst-export publish model.pth`; `inspect` and `verify` are commands beside it."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        if not arguments or arguments[0] not in self.commands:
            arguments = ["publish", *arguments]
        return super().parse_args(context, arguments)


app = CommandLine(cls=_CheckpointOrCommand)


@app.callback()
def export() -> None:
    """Export checkpoints to ONNX or TensorRT, compare them with PyTorch, and publish them for Triton."""


@app.command()
def publish(
    checkpoints: Annotated[list[Path], typer.Argument(help="Trained styles (.pth, .model), or folders of them.")],
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository", "-r", help="Triton's model repository; if not given, model_repository (engines for RTX)."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Name of the served model; if not given, the file's.")
    ] = None,
    device: Annotated[DeviceChoice, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    engine: Annotated[
        Literal["cpu", "gpu", "tensorrt"] | None,
        typer.Option(
            "--for", help="What will run it: cpu, gpu (ONNX Runtime CUDA) or tensorrt. If not given, --device says."
        ),
    ] = None,
    execution_provider: Annotated[
        Literal["openvino", "cpu"] | None,
        typer.Option(
            help="Of ONNX Runtime on a CPU: openvino, or cpu, its own, for servers without OpenVINO (Arm, RHEL). "
            "If not given, openvino on x86-64."
        ),
    ] = None,
    target: Annotated[
        Literal["onnx", "tensorrt", "tensorrt-rtx"] | None,
        typer.Option(help="An ONNX file, a plan for this machine's GPU, or engines for named GPUs."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16"] | None,
        typer.Option(help="fp16: convolutions in half precision, normalisations not. If not given, TensorRT's."),
    ] = None,
    rewrites: Annotated[
        str | None,
        typer.Option(help="Rewrites of the graph, with commas, or none; if not given, those that pay (--for)."),
    ] = None,
    shapes: Annotated[
        str, typer.Option(help="For TensorRT: min/opt/max, each height x width or batch x height x width.")
    ] = "16x16/512x512/4x1920x1920",
    compute_capability: Annotated[
        str | None, typer.Option(help="For tensorrt-rtx: GPUs such as 8.9,12.0; if not given, all that it knows.")
    ] = None,
    tiled: Annotated[
        bool,
        typer.Option("--tiled", help="Also the two parts that paint a picture in tiles, for pictures of any size."),
    ] = False,
    cores: Annotated[int, typer.Option(help="Cores of the machine that will serve.", min=1)] = os.cpu_count() or 1,
    instances: Annotated[int, typer.Option(help="Copies that share those cores or the GPU.", min=1)] = 1,
    keep: Annotated[int | None, typer.Option(help="Older versions to keep; if not given, all.", min=0)] = None,
    load: Annotated[
        str | None, typer.Option(help="A running server to load it, grpc://host:8001 or http://host:8000.")
    ] = None,
    progress_json: ProgressJson = None,
) -> None:
    """Export checkpoints, compare each with PyTorch, and publish it for Triton.

    Beside it: nst-export inspect FOLDER says what was published; nst-export verify FOLDER runs an
    engine that could not run where it was exported.
    """
    with one_line_errors("export", command="nst export", progress_json=progress_json) as events:
        from nst_export import pipeline as exporter
        from nst_export import tensorrt

        found = exporter.find(checkpoints)
        if name and len(found) > 1:
            raise InputError(f"--name is for one checkpoint, and these are {len(found)}")
        capabilities = _capabilities(target, compute_capability)
        chosen = _engine(device, engine, target)
        if execution_provider and chosen != "cpu":
            raise InputError(f"--execution-provider {execution_provider} is for a CPU, and this is for {chosen}")
        plan = exporter.Plan(
            target=target,
            precision=precision,
            engine=chosen,
            provider=execution_provider or exporter.provider_here(),
            rewrites=None if rewrites is None else _names(rewrites),
            profile=tensorrt.profile_of(shapes),
            devices=capabilities,
            tiled=tiled,
            cores=cores,
            instances=instances,
            keep=keep,
        )
        folder = repository or Path("engines" if target == "tensorrt-rtx" else "model_repository")
        if load and target == "tensorrt-rtx":
            raise InputError("--load is for what Triton serves, and it has no backend for tensorrt-rtx")
        failures = 0
        for position, path in enumerate(found):
            events.progress("exporting", position, len(found), unit="checkpoints", checkpoint=path)
            try:
                published = exporter.export(path, name or path.stem, folder, plan, say=say)
            except NstError as error:
                if len(found) == 1:
                    raise
                fail(type(error)(f"{path}: {error}"))
                events.write("refused", checkpoint=path, message=" ".join(str(error).split()))
                failures += 1
                continue
            for one in published:
                _show(one.verification, figures=one.verification["purpose"] != "statistics")  # one gate for both parts
                say(f"published {one.folder}")
                model = one.verification["model"]
                events.write("published", model=model, version=one.folder.name, folder=one.folder)
            if load:
                for one in published:
                    _load(load, one.verification["model"], one.folder.name)
        if failures:
            say(f"{failures} of {len(found)} failed")
            events.end("failed", message=f"{failures} of {len(found)} failed")
            raise typer.Exit(1)
        events.end("finished", output=folder)
        if target != "tensorrt-rtx" and not load:
            say(f"serve it: nst-serve --repository {folder}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A repository, a model in it, a version of one, or an ONNX file.")],
    size: Annotated[int, typer.Option(help="Side of the picture whose arithmetic is counted, pixels.", min=64)] = 512,
) -> None:
    """Print what was published: tensors, precision, operators, size, arithmetic, verification, how it was made."""
    with one_line_errors("export"):
        from nst_export import inspection

        for position, folder in enumerate(inspection.find(path)):
            if position:
                show("")
            for line in inspection.describe(folder, size):
                show(line)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A version of a published model, such as engines/starry-night/1.")],
) -> None:
    """Run an engine for GPUs on this machine's, compare it with its verified graph, and note the figures."""
    with one_line_errors("export"):
        from nst_export import pipeline as exporter

        _show(exporter.verify_published(folder))
        say(f"verified {folder}")


def _engine(wanted: DeviceChoice, engine: Engine | None, target: Target | None) -> Engine:
    """What will run the model: `--for`, what the target is for, or what the device has, which is said."""
    from nst_export.pipeline import engine_for

    if target in ("tensorrt", "tensorrt-rtx"):
        if engine not in (None, "tensorrt"):
            raise InputError(f"--for {engine} does not go with --target {target}: leave it out")
        engine = "tensorrt"
    if engine is None:
        device = choose(wanted)
        say(f"device {device}")
        return engine_for(device, target)
    if wanted != "auto" and (wanted == "cpu") != (engine == "cpu"):
        given = f"--target {target}" if target in ("tensorrt", "tensorrt-rtx") else f"--for {engine}"
        raise InputError(f"--device {wanted} does not go with {given}: leave one of them out")
    return engine


def _load(url: str, model: str, version: str) -> None:
    """Have a running server load what was published; `ExportError` if it does not."""
    from nst_export.errors import ExportError
    from nst_server.control import Control
    from nst_server.errors import ServerError

    try:
        Control.at(url).load(model, version)
    except ServerError as error:
        raise ExportError(f"published, but {url} did not load {model}: {error}") from error
    say(f"{url} serves version {version} of {model}")


def _capabilities(target: Target | None, names: str | None) -> tuple[str, ...]:
    from nst_export import tensorrt

    if target == "tensorrt-rtx":
        return tuple(tensorrt.capabilities(names))
    if names:
        raise InputError("--compute-capability is for --target tensorrt-rtx")
    return ()


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def _show(document: dict[str, Any], *, figures: bool = True) -> None:
    """The engine, if there is one, and the gate's figures as a table."""
    if engine := document["engine"]:
        say(f"{document['model']}: {engine['status']}" + (f" ({engine['library']})" if engine["library"] else ""))
    if not figures:
        return
    table = Table("engine", "checks", "max", "99.9 %", "mean", "PSNR")
    for engine in dict.fromkeys(one["engine"] for one in document["checks"]):
        own = [one for one in document["checks"] if one["engine"] == engine]
        judged = [one for one in own if one.get("judged", True)]
        worst = {figure: max(one[figure] for one in judged) for figure in ("maximum", "quantile", "mean")}
        least = min((one["psnr"] for one in judged if one["psnr"] is not None), default=None)
        psnr = "same" if least is None else f"{least:.1f} dB"
        figures_shown = (f"{worst['maximum']} of 255", f"{worst['quantile']:g}", f"{worst['mean']:.5f}", psnr)
        table.add_row(engine, str(len(own)), *figures_shown)
    console.print(table)
