"""Publish versions of a model: write them beside the repository, and rename them into it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_core.errors import InputError
from nst_core.files import atomic_write
from nst_export.errors import ExportError

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A valid model name, which is used in file names, URLs and command lines."""


def check_names(name: str, styles: Sequence[str]) -> None:
    """Raise `ExportError` for a model name that Triton does not accept, or a style name that clients cannot write."""
    if not NAME.fullmatch(name):
        raise ExportError(
            f"{name!a} is not a valid model name; give one with --name, of ASCII letters, digits, '_', '-' and '.', "
            "not starting with '-' or '.'"
        )
    if bad := [style for style in styles if re.search(r"[,:]", style) or not style.isprintable() or not style.strip()]:
        raise ExportError(
            f"{bad[0]!a} is not a valid style name: it must be printable, without ',' and ':'; rename the style image "
            "and train again"
        )


def publish_version(
    files: Mapping[str, Path],
    name: str,
    repository: Path,
    config: model_config_pb2.ModelConfig | None,
    *,
    keep: int | None = None,
) -> Path:
    """Publish `files` (by their names in the folder) as the next version of a model; return the version's folder.

    `config` is None where Triton does not read the folder. With `keep`, only that many older versions are kept. Raises
    `ExportError` if the repository cannot be written; then nothing is published.
    """
    model = repository / name
    text = None if config is None else text_format.MessageToString(config)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _staging_folder(repository) as staging:
            version = str(next_version(model))
            _write_files(staging / name / version, files)
            if text is not None:
                _write_config(staging / name, text)
            if model.exists():
                # The version first: a Triton that polls in between serves it with the old config, which rarely
                # changes; in the other order it would open the old version with the new config.
                (staging / name / version).rename(model / version)
                if text is not None and _read(model / "config.pbtxt") != text:
                    _write_config(model, text)
            else:
                (staging / name).rename(model)
            if keep is not None:
                _remove_older(model, int(version), keep, staging)
    except (OSError, InputError) as error:
        raise ExportError(f"cannot publish {name} in {repository}: {_reason(error)}") from error
    return model / version


def _write_files(folder: Path, files: Mapping[str, Path]) -> None:
    folder.mkdir(parents=True)
    for name, file in files.items():
        with atomic_write(folder / name) as beside:
            shutil.copyfile(file, beside)


def _write_config(model: Path, text: str) -> None:
    with atomic_write(model / "config.pbtxt") as beside:
        beside.write_text(text)


def _reason(error: Exception) -> object:
    """Return the operating system's message of `error` or its cause, or `error` itself."""
    messages = (getattr(raised, "strerror", None) for raised in (error, error.__cause__))
    return next((message for message in messages if message), error)


def versions(folder: Path) -> list[int]:
    """Return the versions of a model, oldest first; empty for a folder that does not exist."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.exists() else []


def next_version(folder: Path) -> int:
    """Return the next version number; 1 for a new model."""
    return max(versions(folder), default=0) + 1


def _remove_older(model: Path, version: int, keep: int, staging: Path) -> None:
    """Keep `keep` versions before `version`; a rename removes an older version atomically."""
    older = [number for number in versions(model) if number < version]
    for number in older[: max(0, len(older) - keep)]:
        (model / str(number)).rename(staging / f"old-{number}")
        log.info("removed version %d of %s", number, model.name)


def _read(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None


@contextmanager
def _staging_folder(repository: Path) -> Iterator[Path]:
    """Make a folder from which models are renamed into the repository; it is removed afterwards.

    It is beside the repository, since Triton treats every folder in the repository as a model. If the repository is a
    file system of its own, such as a container's volume, it is inside, hidden.
    """
    parent = repository.resolve().parent
    beside = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    staging = Path(tempfile.mkdtemp(dir=parent if beside else repository, prefix=f".{repository.name}-"))
    staging.chmod(0o755)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
