"""Names that nst's packages and other programs agree on, each defined once; docs/reference describes them.

Triton's Python-based backends run where nst is not installed and repeat some of these names; a test compares them with
this file.
"""

from enum import StrEnum

IMAGE = "image"
"""Input of every served style: content images, `uint8 [N, H, W, 3]`, sRGB."""

STYLE_WEIGHTS = "style_weights"
"""Second input of a model with several styles: the weight of each style, `float32 [N, S]`."""

STATISTICS = "statistics"
"""Means and variances of the normalization layers, `float32 [N, K]`: output of a tiled pair's first model, input of its
second."""

STYLIZED = "stylized"
"""Output: stylized images, `uint8 [N, H, W, 3]`."""

TEXTURE = "texture"
"""Output of a texture model, which has no content image."""

TOKEN_HEADER = "nst-token"
"""HTTP header and gRPC metadata key that carry a server's token or control key."""


class Purpose(StrEnum):
    """A model's purpose: the config parameter `purpose`. The last two are the parts of a tiled pair."""

    STYLE = "style"
    TEXTURE = "texture"
    STATISTICS = "statistics"
    TILED = "tiled"


class Parameter(StrEnum):
    """Parameters in a model's `config.pbtxt`; all values are strings."""

    STYLES = "styles"
    """Comma-separated names of the styles, in the order of `style_weights`."""
    PURPOSE = "purpose"
    MULTIPLE = "multiple"
    """The network computes on sides that are multiples of this, in pixels."""
    MIN_SIDE = "min_side"
    MAX_SIDE = "max_side"
    """Minimum and maximum length of an image's sides, in pixels."""
    MAX_PIXELS = "max_pixels"
    """Maximum pixels (height times width) of an image."""
    OVERLAP = "overlap"
    """Overlap of neighbouring tiles on each side, in pixels."""
    PROFILE = "profile"
    """Shapes of a TensorRT plan, `minimum/optimum/maximum`."""


class Variable(StrEnum):
    """Environment variables that nst reads."""

    URL = "NST_URL"
    """Server that the client commands use."""
    TOKEN = "NST_TOKEN"
    """The server's token."""
    CA = "NST_CA"
    """PEM file of the certificates to trust."""
    CACHE = "NST_CACHE"
    STATE = "NST_STATE"
    """Folders that replace the user's cache and state folders."""
    PUBLIC_NAME = "NST_PUBLIC_NAME"
    """Public host name of `nst web` behind a proxy."""
