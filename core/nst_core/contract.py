"""The names that nst's parts and other people's programs agree on, each defined once; see docs/guides/serve.md.

Triton's Python-based backends run where nst is not installed, so they spell some of these names themselves; a test
holds them to this file.
"""

from enum import StrEnum

IMAGE = "image"
"""Input of every served style: content images, `uint8 [N, H, W, 3]`, sRGB."""

STYLE_WEIGHTS = "style_weights"
"""Second input of a model of several styles: how much of each, `float32 [N, S]`."""

STATISTICS = "statistics"
"""Means and variances of the normalisations, `float32 [N, K]`: from the first model of a tiled pair to the second."""

STYLIZED = "stylized"
"""Output: stylized images, `uint8 [N, H, W, 3]`."""

TEXTURE = "texture"
"""Output of a texture model, which has no content image."""

TOKEN_HEADER = "nst-token"
"""HTTP header and gRPC metadata that carry a server's token or control key."""


class Purpose(StrEnum):
    """What a model is for: the config parameter `purpose`. The last two are the parts of a tiled pair."""

    STYLE = "style"
    TEXTURE = "texture"
    STATISTICS = "statistics"
    TILED = "tiled"


class Parameter(StrEnum):
    """Parameters in a model's `config.pbtxt`, all strings there."""

    STYLES = "styles"
    """Names of the styles with commas, in the order of `style_weights`."""
    PURPOSE = "purpose"
    MULTIPLE = "multiple"
    """Both sides of what the network computes are multiples of this, pixels."""
    MIN_SIDE = "min_side"
    MAX_SIDE = "max_side"
    """The shortest and the longest side that an image may have, pixels."""
    MAX_PIXELS = "max_pixels"
    """Maximum of height times width."""
    OVERLAP = "overlap"
    """Of neighbouring tiles on each side, pixels."""
    PROFILE = "profile"
    """Shapes of a TensorRT plan: minimum/optimum/maximum."""


class Variable(StrEnum):
    """Environment variables that nst reads."""

    URL = "NST_URL"
    """Server that the client's commands ask."""
    TOKEN = "NST_TOKEN"
    """The server's token."""
    CA = "NST_CA"
    """PEM file of the certificates to trust."""
    CACHE = "NST_CACHE"
    STATE = "NST_STATE"
    """Folders in place of the user's."""
    PUBLIC_NAME = "NST_PUBLIC_NAME"
    """Host name at which `nst web` is visited behind a proxy."""
