"""Measure the overhead of `nst batch` for many images, without files: the images exist only in a listing.

Usage: python dev/batch_scale.py [IMAGES [WORKERS]]; by default 10 million images and 2 workers. The listing, the blocks
through Ray, the manifest of errors and the memory are those of a real job; reading, stylizing and writing an image do
nothing, and one image in a hundred fails. The last line is one JSON document.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec import AbstractFileSystem

from nst_apps.batch.cluster import cluster
from nst_apps.batch.job import BatchJob
from nst_apps.batch.manifest import MANIFEST_FILE, Manifest
from nst_apps.batch.storage import Folder
from nst_apps.batch.workers import stylize_all
from nst_client import StyleClient
from nst_client.stylize.processing import StylizeOptions
from nst_core.console import progress, say
from nst_core.errors import ImageError

IN_A_FOLDER = 10_000


class Listing(AbstractFileSystem):
    """A file system of `count` images, `in_a_folder` per folder."""

    protocol = "listing"

    def __init__(self, count: int, in_a_folder: int, **options: Any) -> None:
        super().__init__(count=count, in_a_folder=in_a_folder, **options)
        self.count, self.in_a_folder = count, in_a_folder

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """List the folders, or a folder's images, with the details that s3fs returns."""
        path = path.strip("/")
        if not path:
            first, last, kind, form = 0, math.ceil(self.count / self.in_a_folder), "directory", "{:06}"
        else:
            first = int(path) * self.in_a_folder
            last, kind, form = min(first + self.in_a_folder, self.count), "file", path + "/{:012}.jpg"
        names = map(form.format, range(first, last))
        return [{"name": name, "type": kind, "size": 150_000} for name in names] if detail else list(names)


class Nothing(BatchJob):
    """A batch that stylizes nothing and fails for every hundredth image."""

    def stylize(self, name: str, client: StyleClient) -> None:
        """Do nothing, or fail; see `BatchJob`."""
        if name.endswith("00.jpg"):
            raise ImageError(f"{name}: damaged or unreadable (image file is truncated)")


def no_client() -> Any:
    """Return a placeholder for a client."""
    return object()


def timed(figures: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """Return the result of `work`; record its duration and this process's peak memory so far."""
    started = time.perf_counter()
    result = work()
    figures[f"{name}_seconds"] = round(time.perf_counter() - started, 2)
    figures[f"{name}_peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    say(f"{name}: {figures[f'{name}_seconds']} s, {figures[f'{name}_peak_mib']} MiB")
    return result


def shared_memory() -> float:
    """Return the MiB of Ray's object store in use, summed over its processes on this machine."""
    found = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue
        if lines["Name"].strip() == "raylet":
            found += int(lines["RssShmem"].split()[0])
    return round(found / 1024, 1)


def main(count: int, workers: int) -> None:
    """Measure each part, and print the document."""
    figures: dict[str, Any] = {"schema": "nst-batch-scale/1", "pictures": count, "workers": workers}
    with TemporaryDirectory() as folder:
        target = Folder.at(folder)

        def batch(in_a_folder: int) -> Nothing:
            listing = Listing(count=count, in_a_folder=in_a_folder)
            return Nothing(Folder("listing://", listing, ""), target, StylizeOptions({"style": 1.0}))

        work = batch(IN_A_FOLDER)
        figures["start_peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        todo = timed(
            figures, "listing", lambda: [pa.array(listing.missing, pa.string()) for listing in work.listings(True)]
        )
        figures["names_mib"] = round(sum(array.nbytes for array in todo) / 2**20, 1)
        sent = replace(work, source=target)  # workers do not read the source
        work.claim()
        manifest, blocks = Manifest(target), []
        with cluster(None, workers):

            def run() -> None:
                with progress("images", count) as update:
                    for block in stylize_all(sent, todo, no_client, workers):
                        manifest.add(block)
                        blocks.append(time.perf_counter())
                        if len(blocks) % 100 == 1:
                            figures["store_mib"] = max(figures.get("store_mib", 0.0), shared_memory())
                        update(manifest.stylized + manifest.failed, "")

            timed(figures, "blocks", run)
        gaps = np.diff(blocks)
        figures |= {"blocks": len(blocks), "block_ms": round(1000 * float(gaps.mean()), 2)}
        figures["block_ms_tenths"] = [round(1000 * float(part.mean()), 2) for part in np.array_split(gaps, 10)]
        timed(figures, "manifest", manifest.end)
        figures["manifest_mib"] = round((Path(folder) / MANIFEST_FILE).stat().st_size / 2**20, 1)
        assert manifest.stylized + manifest.failed == count
        figures["failed"] = manifest.failed
        flat = batch(count).source
        flat.file_system.count = flat.file_system.in_a_folder = figures["flat_names"] = min(count, 1_000_000)
        timed(figures, "flat_listing", lambda: [names for _, names in flat.folders()])
    print(json.dumps(figures))


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    count, workers = *given, *(10_000_000, 2)[len(given) :]
    main(count, workers)
