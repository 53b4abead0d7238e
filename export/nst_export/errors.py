"""What the exporter raises besides `InputError`."""

from nst_core.errors import NstError


class ExportError(NstError):
    """A model that cannot be exported or published, or whose export does not agree with PyTorch."""
