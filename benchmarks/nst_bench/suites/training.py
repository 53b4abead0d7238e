"""Training throughput: nst against a plain PyTorch loop, as most tutorials write it.

The plain loop reads photographs between steps, keeps PyTorch's contiguous layout, and runs the loss network to relu4_3
for the stylized *and* the content images. Network, loss, size and batch are the same.
"""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from nst_bench import options
from nst_bench.drawing.tables import SUMMARY, columns, table
from nst_bench.machine.gpu import torch_device
from nst_bench.measure import interleaved, summarize, timed
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_bench.workers import Worker
from nst_core.images import open_image, sample_photographs
from nst_core.process import keep_freed_memory
from nst_trainer.images import to_tensor
from nst_trainer.losses import CONTENT_LAYERS, STYLE_LAYERS, total_variation
from nst_trainer.networks import Johnson
from nst_trainer.training.data import Photos
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.loop import Training
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.vgg import CONVOLUTIONS, MEAN, Vgg16, Weights
from nst_trainer.weights import vgg16_weights

WARM_STEPS = 2
"""Steps of each loop that are not counted."""


@dataclass(frozen=True)
class TrainingEffort(Effort):
    """The network, and the steps at each of `crops` (side in pixels)."""

    width: Annotated[float, typer.Option(help="Width multiplier of Johnson's network.", min=0.1)] = 1.0
    batch: Annotated[int, typer.Option(help="Photographs per iteration.", min=1)] = 4
    steps: int = 8
    crops: tuple[int, ...] = (128, 256)


def measure(context: Context[TrainingEffort], *, vgg: options.Vgg = None) -> Document:
    """Compare training speed with a plain PyTorch loop.

    Both train the same network with the same loss, crops and batches, in turns.
    """
    # Each loop runs in its own process, as it does for a user: ours with the memory settings of `nst train`.
    device, effort = torch_device(context.device), context.effort
    rows = []
    for crop in effort.crops:
        settings = TrainingSettings(width=effort.width, batch=effort.batch, crop=crop, iterations=100 * effort.steps)
        with (
            tempfile.TemporaryDirectory() as folder,
            Worker(partial(_steps_of_plain, settings, vgg, device)) as plain,
            Worker(partial(_steps_of_ours, Path(folder), settings, vgg, device)) as ours,
        ):
            works = {"plain": partial(plain.ask, timed), "nst": partial(ours.ask, timed)}
            seconds = interleaved(works, WARM_STEPS + effort.steps, clock=operator.call)
        figures = {name: summarize(taken[WARM_STEPS:]) for name, taken in seconds.items()}
        rate = {name: 1000.0 * effort.batch / summary.median for name, summary in figures.items()}
        own = {name: asdict(summary) | {"images_per_second": rate[name]} for name, summary in figures.items()}
        rows.append({"crop": crop, **own, "ratio": rate["nst"] / rate["plain"]})
        rates = f"nst {rate['nst']:.2f} images/s, plain loop {rate['plain']:.2f} images/s"
        context.on_progress(f"{crop} x {crop}: {rates}")
    precision, why = Team(device=device).precision()
    return {
        "precision": {"nst": str(precision).removeprefix("torch."), "why": why, "plain": "float32"},
        "width": effort.width,
        "batch": effort.batch,
        "crops": rows,
    }


def _steps_of_plain(settings: TrainingSettings, vgg: Path | None, where: torch.device) -> Callable[[], object]:
    """Return a step of the plain loop."""
    return partial(next, plain_loop(settings, vgg16_weights(vgg), where))


def _steps_of_ours(
    folder: Path, settings: TrainingSettings, vgg: Path | None, where: torch.device
) -> Callable[[], object]:
    """Return a step of a real training in `folder`, at full crops, which are the last part of its schedule."""
    keep_freed_memory()
    if where.type == "cuda":  # as nst train does
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    style, team = [sample_photographs()[0]], Team(device=where)
    training = Training(style, None, folder / "a.pth", Vgg16(vgg16_weights(vgg)), settings, team=team)
    training.state.iteration = int(0.86 * settings.iterations)
    return partial(next, training.steps())


def plain_loop(settings: TrainingSettings, weights: Weights, where: torch.device) -> Iterator[float]:
    """Run endless steps and yield the loss of each."""
    torch.manual_seed(settings.seed)
    network = Johnson(width=settings.width).to(where)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    loss_network = _PlainVgg(weights, where)
    photos = Photos(sample_photographs(), batch=settings.batch, crop_of=lambda _: settings.crop, seed=settings.seed)
    style = to_tensor(open_image(sample_photographs()[0], max_side=settings.style_size))
    with torch.no_grad():
        targets = {layer: _gram(value) for layer, value in loss_network(style.to(where)).items()}
    number = 0
    while True:
        x = torch.stack([photos.crop(number + position) for position in range(settings.batch)]).to(where)
        number += settings.batch
        optimizer.zero_grad()
        y = network(x)
        of_x, of_y = loss_network(x), loss_network(y)
        loss = settings.tv_weight * total_variation(y)
        for layer in CONTENT_LAYERS:
            loss = loss + settings.content_weight * F.mse_loss(of_y[layer], of_x[layer])
        for layer, target in targets.items():
            difference = (_gram(of_y[layer]) - target).square().sum(dim=(1, 2)) / target.square().sum()
            loss = loss + settings.style_weight * difference.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item()


class _PlainVgg:
    """VGG-16 to relu4_3 as a list of convolutions, in PyTorch's default layout."""

    def __init__(self, weights: Weights, where: torch.device) -> None:
        self.convolutions = [
            (name, weights[f"{name}.weight"].contiguous().to(where), weights[f"{name}.bias"].to(where))
            for name in CONVOLUTIONS
            if name <= "conv4_3"
        ]
        self.mean = torch.tensor(MEAN, device=where).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        x, features = 255.0 * images - self.mean, {}
        for name, weight, bias in self.convolutions:
            if name.endswith("_1") and name != "conv1_1":
                x = F.max_pool2d(x, 2)
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            layer = name.replace("conv", "relu")
            if layer in STYLE_LAYERS:
                features[layer] = x
        return features


def _gram(features: Tensor) -> Tensor:
    n, c, h, w = features.shape
    flat = features.view(n, c, h * w)
    return flat @ flat.transpose(1, 2) / (c * h * w)


def tables(document: Document) -> list[str]:
    """Render the training throughput."""
    precision = document["precision"]
    rows = []
    for row in document["crops"]:
        rows.append({**row["plain"], "crop": row["crop"], "loop": "plain PyTorch"})
        rows.append({**row["nst"], "crop": row["crop"], "loop": "nst", "ratio": row["ratio"]})
    about = columns(
        "crops   | loop   | images/s                | relative to plain",
        "{crop}² | {loop} | {images_per_second:.2f} | **{ratio:.2f}**",
    )
    return [
        f"Johnson's network, width {document['width']:g}, batches of {document['batch']}. The plain loop uses "
        f"{precision['plain']}, nst's convolutions {precision['nst']}: {precision['why']}. Milliseconds per step.",
        "",
        *table(rows, about | SUMMARY, left=2),
    ]


SUITE = Suite(
    name="training",
    title="Training",
    measure=measure,
    tables=tables,
    effort=TrainingEffort(),
    on_cpu={"full": Cost(130, TrainingEffort())},
    on_gpu={"full": Cost(130, TrainingEffort())},
    rank=120,
)
