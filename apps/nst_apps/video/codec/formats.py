"""What video files contain: codecs, containers, frames and colours.

A frame inside nst is like any image: upright, sRGB, `uint8 [H, W, 3]`. Time stamps are the file's own, in whole ticks
of its time base, so a variable frame rate needs no special care.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from nst_core.images import Pixels

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""FFmpeg's name of the container, by the file's suffix."""

BT709, UNSPECIFIED, BT601 = 1, 2, 6
"""Numbers of ITU-T H.273 for the colours of a video: primaries, transfer and matrix."""

SWSCALE_NUMBERS = {BT601: 5}
"""swscale's numbers for matrices where they differ from H.273."""


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg: the default `crf`, the largest allowed, and options for speed.

    `even` if the sides must be even numbers.
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
"""Codecs by the name that the user gives. All store 8 bits and 4:2:0, which every player supports.

Stylized frames are full of detail, on which H.264's better entropy coder (CABAC) spends a quarter of the encoder's
time; the cheaper one and a fixed pattern of frames make the file 2 % larger.
"""


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video `uint8 [H, W, 3]`, shown from `pts` on, in ticks."""

    pixels: Pixels
    pts: int


@dataclass(frozen=True)
class VideoFormat:
    """What the frames of a video share: size in pixels, time base in seconds, frames/s, and pixel aspect ratio.

    `colors` is BT.709 or BT.601, as stored.
    """

    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction = Fraction(1)
    colors: int = BT709


def output_sides(form: VideoFormat, codec: str) -> tuple[int, int]:
    """Return width and height of the written frames, in pixels."""
    odd = CODECS[codec].even
    return form.width + odd * (form.width % 2), form.height + odd * (form.height % 2)


def error_text(error: BaseException) -> str:
    """Return the system's or FFmpeg's message of an error."""
    return getattr(error, "strerror", None) or str(error)


def ffmpeg_path(path: Path) -> str:
    """Return an absolute path, since FFmpeg reads `http:x.mp4` and `concat:x.mp4` as URLs."""
    return str(path.absolute())


def ticks_of_frame(rate: Fraction, time_base: Fraction | None) -> int:
    """Return the duration of a frame in ticks, at least 1."""
    return max(1, round(1 / (rate * (time_base or Fraction(1, 90_000)))))
