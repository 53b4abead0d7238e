"""The root of the exceptions, and those that more than one package raises.

    NstError                anything that nst says in one line
    ├── InputError          what was given cannot be used: a file, a value, a combination
    │   ├── ImageError      no image, damaged, or larger than the limit
    │   └── WriteError      a file cannot be written: a full disk, no permission
    └── MissingExtra        the packages of an optional part are not installed

The packages add their own: `nst_trainer.WeightsError`, `CheckpointError`, `TrainingError`;
`nst_export.ExportError`; `nst_server.ServerError`; `nst_client.ServiceError` and its children.
A message is one line: what is wrong, with the value, and what to do.
"""

from __future__ import annotations

from nst_core.distribution import install_command


class NstError(Exception):
    """The root: the command line prints its message as one line and exits with 1."""


class InputError(NstError):
    """Something that the user gave cannot be used."""


class ImageError(InputError):
    """A file that is no readable image, or an image beyond the limit of pixels."""


class WriteError(InputError):
    """A file cannot be written: a full disk, no permission."""


class MissingExtra(NstError):
    """Packages of an optional part are not installed."""

    def __init__(self, extra: str, missing: str) -> None:
        super().__init__(f"this needs the package {missing!r}: {install_command(extra)}")
