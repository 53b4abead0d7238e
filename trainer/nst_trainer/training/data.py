"""The training photographs: a folder as an endless, repeatable sequence of crops.

Crop number `i` depends on the seed and `i` alone, not on the number of threads or on interruptions, so a resumed
training sees the same crops as an uninterrupted one.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nst_core.errors import ImageError, InputError
from nst_core.images import ImageData, Pixels, fit, open_image
from nst_trainer.images import is_blank, to_tensor

BATCHES_AHEAD = 4
"""Batches that are read ahead of the network."""


class Batches(Protocol):
    """What a training reads: batches by iteration, and the files that it left out."""

    broken: set[Path]
    blank: set[Path]

    def batches(self, iterations: Iterable[int]) -> Iterator[Tensor]:
        """Yield the batches `[B, 3, S, S]` of the `iterations`, in [0, 1]."""


class Photos:
    """Random crops of photographs, mirrored half of the time; every photograph once per epoch.

    Threads read files ahead: Pillow decodes and scales without holding Python's lock. Files that cannot be read are
    skipped and added to `broken`; those with a crop of a single colour, which teaches nothing, to `blank`.
    """

    def __init__(
        self,
        photos: list[Path],
        *,
        batch: int,
        crop_of: Callable[[int], int],
        seed: int,
        workers: int = 2,
        part: range | None = None,
    ) -> None:
        """`crop_of(iteration)` returns the side of that iteration's crops in pixels; it is called when they are read.

        `part` are the positions in each batch that this process reads; None means all.
        """
        self.photos = photos
        self.batch = batch
        self.part = part if part is not None else range(batch)
        self.crop_of = crop_of
        self.seed = seed
        self.workers = workers
        self.broken: set[Path] = set()
        self.blank: set[Path] = set()
        self._orders: dict[int, list[Path]] = {}
        self._ordering = threading.Lock()

    def batches(self, iterations: Iterable[int]) -> Iterator[Tensor]:
        """Yield the batches `[B, 3, S, S]` of the `iterations`, in [0, 1], or this process's part of them.

        Raises `InputError` if no photograph is usable.
        """
        pool = ThreadPoolExecutor(self.workers, "photos")
        try:
            wanted = self._wanted(iterations)
            reading: deque[Future[Tensor]] = deque()
            reading.extend(pool.submit(self.crop, *crop) for crop in islice(wanted, BATCHES_AHEAD * len(self.part)))
            while reading:
                batch = [reading.popleft().result() for _ in self.part]
                reading.extend(pool.submit(self.crop, *crop) for crop in islice(wanted, len(self.part)))
                yield torch.stack(batch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _wanted(self, iterations: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield the number and the side of each crop. All crops of a batch have the side of its first."""
        for iteration in iterations:
            side = self.crop_of(iteration)
            for position in self.part:
                yield iteration * self.batch + position, side

    def crop(self, number: int, side: int | None = None) -> Tensor:
        """Return crop `number`, `[3, side, side]`; the default of `side` is that of `crop_of`.

        The next photograph in order replaces a file that cannot be read or a blank crop.
        """
        side = side or self.crop_of(number // self.batch)
        choice = random.Random(f"{self.seed}/{number}")
        epoch, position = divmod(number, len(self.photos))
        order = self._order(epoch)
        for attempt in range(len(order)):
            path = order[(position + attempt) % len(order)]
            try:
                pixels = read_crop(path, side, choice)
            except ImageError:
                self.broken.add(path)
                continue
            if not is_blank(pixels):
                return to_tensor(ImageData(pixels))[0]
            self.blank.add(path)
        raise InputError(
            f"none of the {len(order)} photographs is usable: {len(self.broken)} cannot be read, "
            f"{len(self.blank)} are one colour all over; give other photographs with --photos"
        )

    def _order(self, epoch: int) -> list[Path]:
        """Return the shuffled photographs of an epoch; two epochs are kept, since batches are read across the end."""
        with self._ordering:
            if epoch not in self._orders:
                order = random.Random(f"{self.seed}/epoch {epoch}").sample(self.photos, len(self.photos))
                self._orders = {known: self._orders[known] for known in [*self._orders][-1:]} | {epoch: order}
            return self._orders[epoch]


def read_crop(path: Path, size: int, choice: random.Random) -> Pixels:
    """Return a random crop of `size` x `size` pixels, mirrored half of the time."""
    # The crop covers most of the photograph, so that objects have the scale of images that people stylize.
    covering = round(size * choice.uniform(1.0, 1.4))
    image = open_image(path)
    shorter = min(image.width, image.height)
    image = fit(
        image,
        max(size, round(image.width * covering / shorter)),
        max(size, round(image.height * covering / shorter)),
    )
    left = choice.randint(0, image.width - size)
    top = choice.randint(0, image.height - size)
    pixels = image.pixels[top : top + size, left : left + size]
    if choice.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
