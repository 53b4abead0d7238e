"""`nst export` and `nst-export`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nst_core.console import console, one_line_errors, say


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A trained style (.pth).")],
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Triton's model repository.")] = Path(
        "model_repository"
    ),
    name: Annotated[str | None, typer.Option(help="Name of the served model; if not given, the file's.")] = None,
    cores: Annotated[int, typer.Option(help="Cores of the machine that will serve.", min=1)] = os.cpu_count() or 1,
    instances: Annotated[int, typer.Option(help="Copies that share those cores.", min=1)] = 1,
) -> None:
    """Export a checkpoint to ONNX, compare it with PyTorch, and publish it for Triton."""
    with one_line_errors("export"):
        from nst_export import onnx, verify
        from nst_export import repository as triton
        from nst_export.served import ServedModel
        from nst_export.verify import ExportError
        from nst_trainer.checkpoint import load

        style = load(checkpoint)
        network = style.network
        if network.arguments.get("texture"):
            raise ExportError(
                f"{checkpoint} makes a texture from noise and takes no photograph: nst texture {checkpoint}"
            )
        model = ServedModel(network).eval()
        serving = triton.Serving(style.styles, cores, instances, network.min_side)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            say(f"exporting {checkpoint} ({network.name}, width {network.arguments['width']:g})")
            onnx.export(model, file, {"styles": ",".join(style.styles), "commit": str(style.training.get("commit"))})
            agreements = verify.verify(model, file)
            table = Table("engine", "batch x height x width", "largest difference", "mean", "PSNR")
            for one in agreements:
                psnr = "same" if one.psnr is None else f"{one.psnr:.1f} dB"
                shape = " x ".join(map(str, one.shape))
                table.add_row(one.engine, shape, f"{one.maximum} of 255", f"{one.mean:.5f}", psnr)
            console.print(table)
            published = triton.publish(file, name or checkpoint.stem, repository, serving)
        say(f"published {published / 'model.onnx'}")
        say(f"serve it: nst-serve --repository {repository}")


app = typer.Typer(add_completion=False)
app.command()(export)
