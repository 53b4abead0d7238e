"""The root exception, and exceptions that several packages raise.

    NstError                every error that nst reports on one line
    ├── InputError          the input cannot be used: a file, a value, a combination
    │   ├── ImageError      not an image, damaged, or over the pixel limit
    │   └── WriteError      a file cannot be written: a full disk, no permission
    └── MissingExtra        the packages of an optional part are not installed

Other packages add their own: `nst_trainer.WeightsError`, `CheckpointError`, `TrainingError`;
`nst_export.ExportError`; `nst_server.ServerError`; `nst_client.ServiceError` and its children.
A message is one line: what happened, with the value, and what to do next.
"""

from __future__ import annotations

from nst_core.distribution import install_command


class NstError(Exception):
    """The root: the command line prints its message as one line and exits with 1."""


class InputError(NstError):
    """The user's input cannot be used."""


class ImageError(InputError):
    """A file is not a readable image, or an image exceeds the pixel limit."""


class WriteError(InputError):
    """A file cannot be written: a full disk, no permission."""


class MissingExtra(NstError):
    """Packages of an optional part are not installed."""

    def __init__(self, extra: str, missing: str) -> None:
        super().__init__(f"the package {missing!r} is not installed; run {install_command(extra)}")
