"""The exporter's error, besides `InputError`."""

from nst_core.errors import NstError


class ExportError(NstError):
    """A model cannot be exported or published, or its export differs from PyTorch."""
