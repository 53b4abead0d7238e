"""Images as arrays: decoded safely from many formats, and written atomically.

Inside nst an image is sRGB, upright, 8 bits per channel, `uint8 [H, W, 3]`, with its alpha channel and metadata beside
it (`ImageData`). Orientation, colour profile, palette, bit depth and transparency are resolved here, once. Import from
this package rather than from its modules.
"""

from nst_core.images.folders import find_images, sample_photographs, unreadable_images, unreadable_summary
from nst_core.images.formats import (
    DEFAULT_MAX_PIXELS,
    READABLE_SUFFIXES,
    UNREADABLE_SUFFIXES,
    WRITABLE_FORMATS,
    check_size,
    image_format,
)
from nst_core.images.metadata import Metadata
from nst_core.images.pixels import (
    LUMA_WEIGHTS,
    ImageData,
    Pixels,
    blend,
    fit,
    keep_colors,
    resize,
    side_by_side,
    with_pixels,
)
from nst_core.images.reading import from_pillow, open_image, process_of_file
from nst_core.images.writing import encode_image, save_image

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "LUMA_WEIGHTS",
    "READABLE_SUFFIXES",
    "UNREADABLE_SUFFIXES",
    "WRITABLE_FORMATS",
    "ImageData",
    "Metadata",
    "Pixels",
    "blend",
    "check_size",
    "encode_image",
    "find_images",
    "fit",
    "from_pillow",
    "image_format",
    "keep_colors",
    "open_image",
    "process_of_file",
    "resize",
    "sample_photographs",
    "save_image",
    "side_by_side",
    "unreadable_images",
    "unreadable_summary",
    "with_pixels",
]
