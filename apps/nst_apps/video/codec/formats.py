"""What video files can hold: codecs, containers, frames, and colours as they are stored.

A frame inside nst is an image as everywhere: upright, sRGB, `uint8 [H, W, 3]`. Time stamps are the file's own,
whole ticks of its time base, so a variable frame rate needs no care.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from nst_core.images import Pixels

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""FFmpeg's name of what is written, by the file's suffix."""

BT709, UNSPECIFIED, BT601 = 1, 2, 6
"""Numbers of ITU-T H.273 for the colours of a video: primaries, transfer and matrix."""

SWSCALE_NUMBERS = {BT601: 5}
"""Matrices that swscale numbers otherwise than H.273."""


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg: what `crf` is unless the user says so, the largest that it may be, and settings for speed.

    `even`: the sides must be even numbers.
    """

    encoder: str
    crf: int
    largest: int
    options: dict[str, str]
    even: bool = True


CODECS = {
    "h264": Codec("libx264", 18, 51, {"preset": "superfast", "coder": "0", "b_strategy": "0"}),
    "hevc": Codec("libx265", 20, 51, {"preset": "superfast", "x265-params": "log-level=error"}),
    "vp9": Codec("libvpx-vp9", 24, 63, {"b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}, even=False),
}
"""By the name that the user gives. All store 8 bits and 4:2:0, which every player shows.

Stylized frames are full of detail, on which H.264's better entropy coder (CABAC) spends a quarter of the encoder's
time; the cheap one and a fixed pattern of frames cost 2 % of the file.
"""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a video, shown from `pts` on (ticks)."""

    pixels: Pixels
    pts: int


@dataclass(frozen=True)
class VideoFormat:
    """What frames of a video have in common: sides (pixels), ticks in seconds, frames a second, a pixel's shape.

    `colors` are those of BT.709 or BT.601, as they are stored.
    """

    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction = Fraction(1)
    colors: int = BT709


def output_sides(form: VideoFormat, codec: str) -> tuple[int, int]:
    """Width and height of what is written, pixels."""
    odd = CODECS[codec].even
    return form.width + odd * (form.width % 2), form.height + odd * (form.height % 2)


def error_text(error: BaseException) -> str:
    """Return the system's or FFmpeg's words for an error."""
    return getattr(error, "strerror", None) or str(error)


def ffmpeg_path(path: Path) -> str:
    """For FFmpeg, which takes `http:x.mp4` and `concat:x.mp4` for addresses; nothing before a slash is an address."""
    return str(path.absolute())


def ticks_of_frame(rate: Fraction, time_base: Fraction | None) -> int:
    """Ticks of a frame, at least 1."""
    return max(1, round(1 / (rate * (time_base or Fraction(1, 90_000)))))
