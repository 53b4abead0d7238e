"""`nst export` and `nst-export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from typer.core import TyperGroup

from nst_core.console import console, fail, one_line_errors, say
from nst_core.errors import InputError, NstError


class _CheckpointOrCommand(TyperGroup):
    """`nst-export model.pth` is `nst-export publish model.pth`; `inspect` and `verify` are commands beside it."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        if not arguments or arguments[0] not in self.commands:
            arguments = ["publish", *arguments]
        return super().parse_args(context, arguments)


app = typer.Typer(add_completion=False, cls=_CheckpointOrCommand)


@app.callback()
def export() -> None:
    """Export checkpoints to ONNX or TensorRT, compare them with PyTorch, and publish them for Triton."""


@app.command()
def publish(
    checkpoints: Annotated[list[Path], typer.Argument(help="Trained styles (.pth), or folders of them.")],
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository", "-r", help="Triton's model repository; if not given, model_repository (engines for RTX)."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the served model; if not given, the file's.")] = None,
    target: Annotated[
        Literal["onnx", "tensorrt", "tensorrt-rtx"],
        typer.Option(help="An ONNX file, an engine for this machine's GPU, or engines for named GPUs."),
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option(help="fp16: convolutions in half precision, normalisations not.")
    ] = "fp32",
    engine: Annotated[
        Literal["cpu", "gpu", "tensorrt"] | None,
        typer.Option("--for", help="What will run it; decides rewrites and Triton's config. If not given, cpu."),
    ] = None,
    rewrites: Annotated[
        str | None,
        typer.Option(help="Rewrites of the graph, with commas, or none; if not given, those that pay (--for)."),
    ] = None,
    shapes: Annotated[
        str, typer.Option(help="For TensorRT: min/opt/max, each height x width or batch x height x width.")
    ] = "64x64/512x512/4x1920x1920",
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
) -> None:
    """Export checkpoints, compare each with PyTorch, and publish it for Triton.

    Beside it: nst-export inspect FOLDER says what was published; nst-export verify FOLDER runs an
    engine that could not run where it was built.
    """
    with one_line_errors("export"):
        from nst_export import exporter, tensorrt
        from nst_export import repository as triton

        found = exporter.find(checkpoints)
        if name and len(found) > 1:
            raise InputError(f"--name is for one checkpoint, and these are {len(found)}")
        if target != "onnx" and engine not in (None, "tensorrt"):
            raise InputError(f"--for {engine} does not go with --target {target}: leave it out")
        devices: tuple[str, ...] = ()
        if target == "tensorrt-rtx":
            devices = tuple(tensorrt.capabilities(compute_capability))
        elif compute_capability:
            raise InputError("--compute-capability is for --target tensorrt-rtx")
        plan = exporter.Plan(
            target=target,
            precision=precision,
            engine=engine or ("cpu" if target == "onnx" else "tensorrt"),
            rewrites=None if rewrites is None else _names(rewrites),
            profile=tensorrt.Profile.parse(shapes),
            devices=devices,
            tiled=tiled,
            cores=cores,
            instances=instances,
            keep=keep,
        )
        folder = repository or Path("engines" if target == "tensorrt-rtx" else "model_repository")
        if load and target == "tensorrt-rtx":
            raise InputError("--load is for what Triton serves, and it has no backend for tensorrt-rtx")
        failures = 0
        for path in found:
            try:
                published = exporter.export(path, name or path.stem, folder, plan, say=say)
            except NstError as error:
                if len(found) == 1:
                    raise
                fail(type(error)(f"{path}: {error}"))
                failures += 1
                continue
            for one in published:
                _show(one.verification, figures=one.verification["purpose"] != "statistics")  # one gate for both parts
                say(f"published {one.folder}")
            for one in published if load else ():
                triton.load(str(load), one.verification["model"], one.folder.name)
                say(f"{load} serves version {one.folder.name} of {one.verification['model']}")
        if failures:
            say(f"{failures} of {len(found)} failed")
            raise typer.Exit(1)
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
                say("")
            for line in inspection.describe(folder, size):
                say(line)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A version of a published model, such as engines/starry-night/1.")],
) -> None:
    """Run a TensorRT engine on this machine's GPU, compare it with its verified graph, and note the figures."""
    with one_line_errors("export"):
        from nst_export import exporter

        _show(exporter.verify_published(folder))
        say(f"verified {folder}")


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def _show(document: dict[str, Any], *, figures: bool = True) -> None:
    """The engine, if there is one, and the gate's figures as a table."""
    if engine := document["engine"]:
        say(f"{engine['library']}: {engine['layers']} layers, {', '.join(engine['compute_capabilities'])}")
        say(f"{document['model']}: {engine['status']}")
    if not figures:
        return
    table = Table("engine", "batch x height x width", "largest difference", "99.9 %", "mean", "PSNR")
    for one in document["checks"]:
        psnr = "same" if one["psnr"] is None else f"{one['psnr']:.1f} dB"
        shape = " x ".join(map(str, one["shape"]))
        quantile, mean = f"{one['quantile']:g}", f"{one['mean']:.5f}"
        table.add_row(one["engine"], shape, f"{one['maximum']} of 255", quantile, mean, psnr)
    console.print(table)
