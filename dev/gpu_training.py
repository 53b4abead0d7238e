"""Train the shipped styles on a GPU that is there for minutes, with nothing to decide on it.

    make gpu-training PHOTOS=folder STYLES=folder      pack, then train on this machine's GPU, or rehearse without one
    python dev/gpu_training.py pack PHOTOS STYLES      write .gpu-training/ (at most 40 MB), which is all that a machine
                                                       with PyTorch and this repository needs
    python dev/gpu_training.py train OUT [MINUTES]     train all styles there; see `JOBS` for the order
    python dev/gpu_training.py rehearse OUT            the same with two iterations each, on any machine

STYLES holds the ten style images, named as their styles in the gallery are. Checkpoints are written every minute to
OUT/checkpoints.tar, logs and previews to OUT/logs.tar. Trainings go on from the checkpoints of the last GPU if
runs/gpu-training/checkpoints.tar is there when the styles are packed, else from the shipped ones.
"""

from __future__ import annotations

import copy
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nst_core.errors import ImageError
from nst_core.files import atomic_write
from nst_core.images import find_images, fit, open_image, save_image
from nst_core.shipped import checkpoint_path
from nst_trainer.devices import choose_device
from nst_trainer.images import is_blank, open_style
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.loop import Training
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.soap import soap
from nst_trainer.training.state import TrainingState
from nst_trainer.training.step import CapturedSteps, TrainingError, take_step
from nst_trainer.vgg import CONVOLUTIONS, Vgg16
from nst_trainer.weights import vgg16_weights

PACK = Path(".gpu-training")
LAST = Path("runs/gpu-training/checkpoints.tar")
"""What the last GPU left."""

SIDE_PIXELS = 288
"""Side of a packed photograph. Trainings crop 256 pixels of it, at a scale that covers it or 1/1.4 of it."""

QUALITY = 75
"""WebP quality of the packed photographs: 12 kB each."""

WEIGHED_DOWN = {"flowers": 3, "feedme": 3, "grocery": 3}
"""Groups of photographs, by the first word of their names, of which one in so many is packed."""

PHOTOS = "photos.npy"
"""The photographs once they are decoded."""

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """A training: `wave` and `share` say when it runs and for which share of the time; jobs of a wave run at once."""

    name: str
    wave: int
    share: float
    styles: str  # a style image, or "*" for all of them
    settings: TrainingSettings

    @property
    def captured(self) -> bool:
        """Whether its steps can be a CUDA graph."""
        return self.settings.temporal_weight == 0.0


FAST = TrainingSettings(arch="fast", batch=12, learning_rate=4e-3, grow=False)
JOHNSON = replace(FAST, arch="johnson", learning_rate=3e-3)

JOBS = [
    Job("gallery", 1, 0.4, "*", replace(FAST, batch=20)),
    Job("starry-night-fast", 1, 0.4, "the-starry-night", FAST),
    *(
        Job(f"{style}-fast", 2, 0.2, style, FAST)
        for style in ("composition-vii", "contrast-of-forms", "great-wave", "water-lilies")
    ),
    Job("starry-night-steady", 2, 0.2, "the-starry-night", replace(FAST, temporal_weight=200.0, style_weight=3.2)),
    Job("starry-night", 3, 0.4, "the-starry-night", JOHNSON),
    Job("udnie-johnson", 3, 0.4, "udnie", JOHNSON),
]


def pack(photos: Path, styles: Path) -> None:
    """Write `PACK`: photographs, style images, the loss network to relu4_3, and checkpoints to go on from."""
    shutil.rmtree(PACK, ignore_errors=True)
    for folder in ("styles", "start"):
        (PACK / folder).mkdir(parents=True)
    with tarfile.open(PACK / "photos.tar", "w") as archive:
        for path in balanced(find_images(photos)):
            try:
                pixels = fit(open_image(path), SIDE_PIXELS, SIDE_PIXELS).pixels
            except ImageError as error:
                print(f"skipped {error}")
                continue
            if not is_blank(pixels):
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, "webp", quality=QUALITY, method=6)
                entry = tarfile.TarInfo(f"{path.stem}.webp")
                entry.size = data.tell()
                data.seek(0)
                archive.addfile(entry, data)
    for path in find_images(styles):
        save_image(open_style(path, max_side=FAST.style_size), PACK / "styles" / f"{path.stem}.png")
    needed = {key: value.half() for key, value in vgg16_weights().items() if not key.startswith("conv5")}
    torch.save(needed, PACK / "vgg16.pth")
    if LAST.exists():
        with tarfile.open(LAST) as archive:
            archive.extractall(PACK / "start", filter="data")
    megabytes = sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file()) / 1e6
    print(f"packed {PACK}: {megabytes:.1f} MB")


def balanced(photos: Iterable[Path]) -> Iterator[Path]:
    """Yield the photographs but for those that `WEIGHED_DOWN` leaves out."""
    seen: Counter[str] = Counter()
    for path in photos:
        group = path.stem.split("_")[0]
        seen[group] += 1
        if seen[group] % WEIGHED_DOWN.get(group, 1) == 0:
            yield path


class DecodedPhotos:
    """The packed photographs in a device's memory; it takes the place of `nst_trainer.training.data.Photos`."""

    def __init__(self, pixels: Tensor, batch: int, crop: int, seed: int) -> None:
        """`pixels` are `uint8 [P, 3, S, S]`."""
        self.pixels, self.batch, self.crop, self.seed = pixels, batch, crop, seed
        self.broken: set[Path] = set()
        self.blank: set[Path] = set()

    def batches(self, iterations: Iterable[int]) -> Iterator[Tensor]:
        """Yield the batches `[B, 3, C, C]` of the `iterations`, in [0, 1]; a batch has one scale."""
        count = len(self.pixels)
        for iteration in iterations:
            choice = random.Random(f"{self.seed}/{iteration}")
            numbers = range(iteration * self.batch, (iteration + 1) * self.batch)
            chosen = [self._order(number // count)[number % count] for number in numbers]
            photos = self.pixels[torch.tensor(chosen, device=self.pixels.device)].float() / 255.0
            side = round(self.crop * choice.uniform(1.0, 1.4))
            photos = F.interpolate(photos, (side, side), mode="bilinear", antialias=True)
            yield torch.stack([self._cropped(photo, choice) for photo in photos])

    def _order(self, epoch: int) -> list[int]:
        return random.Random(f"{self.seed}/epoch {epoch}").sample(range(len(self.pixels)), len(self.pixels))

    def _cropped(self, photo: Tensor, choice: random.Random) -> Tensor:
        top, left = (choice.randint(0, photo.shape[1] - self.crop) for _ in range(2))
        crop = photo[:, top : top + self.crop, left : left + self.crop]
        return crop.flip(2) if choice.random() < 0.5 else crop


def decode(photos: Path) -> None:
    """Decode the packed photographs once for all trainings, into the file `photos`."""
    with tarfile.open(PACK / "photos.tar") as packed:
        files = (packed.extractfile(member) for member in packed)
        images = [np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")) for file in files if file]
    np.save(photos, np.stack(images).transpose(0, 3, 1, 2))


def train(out: Path, minutes: float, iterations: int | None = None) -> None:
    """Run all jobs, wave by wave, each in a process of its own; with `iterations` each that long, at small crops."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        decode(Path(work) / PHOTOS)
        run_waves(out, Path(work), minutes, iterations)


def run_waves(out: Path, work: Path, minutes: float, iterations: int | None) -> None:
    """Run the jobs in the folder `work`, and write what they have so far to `out`."""
    end = time.monotonic() + 60.0 * minutes
    shares = {wave: max(job.share for job in jobs) for wave, jobs in waves()}
    for wave, jobs in waves():
        left = end - time.monotonic()
        planned = left / 60.0 * shares[wave] / sum(share for later, share in shares.items() if later >= wave)
        length = ["--iterations", str(iterations)] if iterations else ["--minutes", f"{planned:.2f}"]
        running = [(job, start(job, work, length)) for job in jobs]
        while any(process.poll() is None for _, process in running):
            time.sleep(1.0 if iterations else 5.0)
            collect(out, work)
        for job, process in running:
            lines = (work / f"{job.name}.log").read_text().splitlines()
            print(f"{job.name}: status {process.returncode}; {lines[-1] if lines else 'no output'}", flush=True)
    collect(out, work)


def waves() -> list[tuple[int, list[Job]]]:
    """Return the jobs of each wave."""
    return [(wave, list(jobs)) for wave, jobs in groupby(JOBS, attrgetter("wave"))]


def start(job: Job, work: Path, length: list[str]) -> subprocess.Popen[bytes]:
    """Start a job, whose output goes to its log in `work`."""
    with (work / f"{job.name}.log").open("wb") as log:
        command = [sys.executable, __file__, "job", job.name, str(work), *length]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def collect(out: Path, work: Path) -> None:
    """Write what is there so far to `out`, checkpoints and logs apart."""
    for name, suffixes in (("checkpoints.tar", {".pth"}), ("logs.tar", {".log", ".png"})):
        with atomic_write(out / name) as beside, tarfile.open(beside, "w") as archive:
            for path in sorted(work.iterdir()):
                if path.suffix in suffixes:
                    archive.add(path, path.name)


def run_job(job: Job, work: Path, *, minutes: float | None, iterations: int | None) -> None:
    """Train one job; without CUDA graphs if they fail or do something else than plain steps."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 6))
    team = Team(device=choose_device()[0])
    started = time.monotonic()
    captured = job.captured and team.device.type == "cuda"
    if captured:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        captured = graphs_agree(training_of(job, work, team, minutes, iterations, captured=False))

    def train_on(*, captured: bool) -> None:
        left = minutes and max(0.1, minutes - (time.monotonic() - started) / 60.0)
        keep_writing(training_of(job, work, team, left, iterations, captured=captured))

    try:
        train_on(captured=captured)
    except (RuntimeError, TrainingError) as error:
        if not captured:
            raise
        print(f"without CUDA graphs: {error}", flush=True)
        (work / f"{job.name}.pth.resume").unlink(missing_ok=True)
        train_on(captured=False)


def training_of(
    job: Job, work: Path, team: Team, minutes: float | None, iterations: int | None, *, captured: bool
) -> Training:
    """Prepare a job's training from the last checkpoint that there is."""
    output = work / f"{job.name}.pth"
    places = (output, PACK / "start" / output.name)
    begin = next((place for place in places if place.exists()), checkpoint_path(Path(job.name)))
    styles = find_images(PACK / "styles")
    chosen = styles if job.styles == "*" else [path for path in styles if path.stem == job.styles]
    settings = replace(job.settings, iterations=iterations, batch=2, crop=64) if iterations else job.settings
    training = Training(
        chosen, None, output, loss_network(), settings, minutes=minutes, start=begin, team=team, captured=captured
    )
    pixels = torch.from_numpy(np.load(work / PHOTOS)).to(team.device)
    training.reader = DecodedPhotos(pixels, settings.batch, settings.crop, settings.seed)
    training.history["photos"] = len(pixels)
    return training


def loss_network() -> Vgg16:
    """Return the packed loss network; its last block, which no loss uses, is zero."""
    packed = torch.load(PACK / "vgg16.pth", weights_only=True)
    weights = {}
    for name in CONVOLUTIONS:
        for kind, shape in (("weight", (512, 512, 3, 3)), ("bias", (512,))):
            key = f"{name}.{kind}"
            weights[key] = packed[key].float() if key in packed else torch.zeros(shape)
    return Vgg16(weights)


def graphs_agree(training: Training, count: int = 12) -> bool:
    """Compare captured steps with plain ones, and print images per second of both; steps that fail do not agree."""
    batch = next(training.reader.batches(range(1)))
    losses, rates = {}, {}
    for name, step in (("plain", take_step), ("CUDA graph", CapturedSteps())):
        network = copy.deepcopy(training.state.network)
        state = TrainingState(network, soap(network, 1e-3))
        try:
            for number in range(2 * count):
                if number == count:
                    torch.cuda.synchronize()
                    begun = time.perf_counter()
                step(state, training.objective, batch, training.team, distilled=False, learning_rate=1e-3)
            torch.cuda.synchronize()
        except (RuntimeError, TrainingError) as error:
            print(f"{name}: {error}", flush=True)
            return False
        losses[name] = state.averages["content"] + state.averages["style"]
        rates[name] = count * len(batch) / (time.perf_counter() - begun)
    agree = abs(losses["plain"] / losses["CUDA graph"] - 1.0) < 0.02
    print(f"images/s {rates}, losses {losses}: {'the same' if agree else 'different, so no graphs'}", flush=True)
    return agree


def keep_writing(training: Training) -> None:
    """Train to the end, and write a checkpoint every minute."""
    begun = written = time.monotonic()
    first = training.state.iteration
    for progress in training.steps():
        now = time.monotonic()
        if now - written > CHECKPOINT_SECONDS:
            training.check_and_write()
            written = time.monotonic()
            rate = (progress.iteration - first) * training.settings.batch / (now - begun)
            print(f"iteration {progress.iteration}, {rate:.0f} images/s, {progress.style:.3f} style", flush=True)
    training.check_and_write()
    training.state_file.unlink()
    best, state = training.state.best, training.state
    rate = (state.iteration - first) * training.settings.batch / (time.monotonic() - begun)
    losses = ", ".join(f"{term} {loss:.3f}" for term, loss in best["losses"].items())
    print(f"{state.iteration} iterations, {rate:.1f} images/s; held out: {losses}", flush=True)


def main(command: str, *given: str) -> None:
    """Run one of the commands in the module's docstring."""
    if command == "pack":
        pack(*map(Path, given))
    elif command == "train":
        train(Path(given[0]), float(given[1]) if len(given) > 1 else 10.0)
    elif command == "rehearse":
        train(Path(given[0]), 1.0, iterations=2)
    elif command == "job":
        name, work, unit, length = given
        job = next(job for job in JOBS if job.name == name)
        minutes, iterations = (float(length), None) if unit == "--minutes" else (None, int(length))
        run_job(job, Path(work), minutes=minutes, iterations=iterations)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["help"]))
