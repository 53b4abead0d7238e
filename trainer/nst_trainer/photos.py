"""The training photographs: a folder as an endless, repeatable row of crops.

Crop number `i` depends on the seed and `i` alone, not on how many threads read or where the run
was interrupted, so a resumed training sees just what an uninterrupted one would have seen.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nst_core.errors import InputError, PictureError
from nst_core.images import Picture, fitted, open_picture

AHEAD = 4
"""Batches that are read while the network works on one."""


def to_tensor(picture: Picture) -> Tensor:
    """The picture's pixels as `[1, 3, H, W]`, FP32 in [0, 1]."""
    return torch.from_numpy(picture.pixels.transpose(2, 0, 1)[None].astype(np.float32)) / 255.0


def to_picture(tensor: Tensor) -> Picture:
    """One picture `[1, 3, H, W]` in [0, 1] as pixels, rounded to the nearest level."""
    levels = tensor.detach()[0].cpu().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return Picture(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))


class Photos:
    """Random crops of photographs, mirrored half of the time; every photograph once an epoch.

    Files are read ahead by threads: Pillow decodes and scales outside Python's lock. A file that
    cannot be read is passed over and remembered in `broken`.
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
        """`crop_of(iteration)` is the side of that iteration's crops in pixels.

        `part` is which pictures of each batch to read, if not all: a process's of several.
        """
        self.photos = photos
        self.batch = batch
        self.part = part if part is not None else range(batch)
        self.crop_of = crop_of
        self.seed = seed
        self.workers = workers
        self.broken: set[Path] = set()
        self._orders: dict[int, list[Path]] = {}

    def batches(self, first: int, end: int) -> Iterator[Tensor]:
        """The batches (or parts of them) `[B, 3, S, S]` of the iterations from `first` to before `end`, in [0, 1].

        Raises `InputError` when no file at all can be read.
        """
        pool = ThreadPoolExecutor(self.workers, "photos")
        try:
            numbers = (iteration * self.batch + position for iteration in range(first, end) for position in self.part)
            reading: deque[Future[Tensor]] = deque()
            reading.extend(pool.submit(self.crop, number) for number in islice(numbers, AHEAD * len(self.part)))
            while reading:
                batch = [reading.popleft().result() for _ in self.part]
                reading.extend(pool.submit(self.crop, number) for number in islice(numbers, len(self.part)))
                yield torch.stack(batch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def crop(self, number: int) -> Tensor:
        """Crop `number`, `[3, S, S]`; in place of a file that cannot be read comes the next in order."""
        size = self.crop_of(number // self.batch)
        choice = random.Random(f"{self.seed}/{number}")
        epoch, position = divmod(number, len(self.photos))
        order = self._order(epoch)
        for attempt in range(len(order)):
            path = order[(position + attempt) % len(order)]
            try:
                return _crop(path, size, choice)
            except PictureError:
                self.broken.add(path)
        raise InputError(f"none of the {len(order)} files can be read as a picture")

    def _order(self, epoch: int) -> list[Path]:
        """The photographs shuffled for an epoch; two are kept, since batches are read across its end."""
        if epoch not in self._orders:
            order = random.Random(f"{self.seed}/epoch {epoch}").sample(self.photos, len(self.photos))
            self._orders = {known: self._orders[known] for known in [*self._orders][-1:]} | {epoch: order}
        return self._orders[epoch]


def _crop(path: Path, size: int, choice: random.Random) -> Tensor:
    # Not far from the whole photograph: objects at the scale that people will stylise.
    covering = round(size * choice.uniform(1.0, 1.4))
    picture = open_picture(path)
    shorter = min(picture.width, picture.height)
    picture = fitted(
        picture,
        max(size, round(picture.width * covering / shorter)),
        max(size, round(picture.height * covering / shorter)),
    )
    left = choice.randint(0, picture.width - size)
    top = choice.randint(0, picture.height - size)
    pixels = picture.pixels[top : top + size, left : left + size]
    if choice.random() < 0.5:
        pixels = pixels[:, ::-1]
    return to_tensor(Picture(np.ascontiguousarray(pixels)))[0]
