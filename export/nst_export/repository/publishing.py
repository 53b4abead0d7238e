"""Publishing: versions of a model are written beside the repository and renamed into it."""

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
"""A model's name, which stands in file names, URLs and command lines."""


def check_names(name: str, styles: Sequence[str]) -> None:
    """Raise `ExportError` for a model's name that Triton does not take, or a style's name that clients cannot write."""
    if not NAME.fullmatch(name):
        raise ExportError(
            f"{name!a} is no name for a served model: give another with --name, of ASCII letters, digits, '_', '-' "
            "and '.', not '-' or '.' first"
        )
    if bad := [style for style in styles if re.search(r"[,:]", style) or not style.isprintable() or not style.strip()]:
        raise ExportError(
            f"{bad[0]!a} is no name for a style: ',' and ':' separate styles and weights, and it must be printable"
        )


def publish_version(
    files: Mapping[str, Path],
    name: str,
    repository: Path,
    config: model_config_pb2.ModelConfig | None,
    *,
    keep: int | None = None,
) -> Path:
    """Put `files`, by the names they get, into the repository as the next version of a model; return its folder.

    `config` is None where no Triton reads the folder. With `keep`, only so many older versions stay. Raises
    `ExportError` for a repository that cannot be written; then nothing is published.
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
                # The version first: a Triton that polls in between serves it with the old config, which a new
                # export seldom changes; the other way round it would open the old version with the new config.
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
    """The operating system's message about `error` or its cause, or `error` itself."""
    messages = (getattr(raised, "strerror", None) for raised in (error, error.__cause__))
    return next((message for message in messages if message), error)


def versions(folder: Path) -> list[int]:
    """The versions of a model, oldest first; empty for a folder that does not exist."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.exists() else []


def next_version(folder: Path) -> int:
    """The number after the highest version; 1 for a new model."""
    return max(versions(folder), default=0) + 1


def _remove_older(model: Path, version: int, keep: int, staging: Path) -> None:
    """Keep `keep` versions before `version`; a rename removes an older version as a whole."""
    older = [number for number in versions(model) if number < version]
    for number in older[: max(0, len(older) - keep)]:
        (model / str(number)).rename(staging / f"old-{number}")
        log.info("removed version %d of %s", number, model.name)


def _read(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None


@contextmanager
def _staging_folder(repository: Path) -> Iterator[Path]:
    """A folder from which whole models are renamed into the repository; it is removed afterwards.

    It is beside the repository, since Triton takes every folder in the repository for a model. Where the repository is
    a file system of its own, such as a container's volume, it is inside, hidden.
    """
    parent = repository.resolve().parent
    beside = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    staging = Path(tempfile.mkdtemp(dir=parent if beside else repository, prefix=f".{repository.name}-"))
    staging.chmod(0o755)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
