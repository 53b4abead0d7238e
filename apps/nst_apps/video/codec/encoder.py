"""Encode frames into a video file without sound, and check what a file can hold."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.formats import (
    CODECS,
    CONTAINERS,
    SWSCALE_NUMBERS,
    Frame,
    VideoFormat,
    error_text,
    ffmpeg_path,
    output_sides,
    ticks_of_frame,
)
from nst_core.errors import InputError, WriteError

LIMITED_RANGE = 1
"""FFmpeg's number for values from 16 to 235."""

_MUXING = {
    "mp4": {"movflags": "+faststart"},
    "mov": {"movflags": "+faststart"},
    "nut": {"avoid_negative_ts": "disabled"},  # times stay as they are
}


class Encoder:
    """Encodes frames into a video file without sound; used in a `with` block, whose end completes the file.

    If the codec needs even sides, an odd side is padded by repeating its last column or row (`sides` is the written
    size). Raises `WriteError` if the file cannot be written.
    """

    def __init__(
        self, path: Path, form: VideoFormat, codec: str, crf: int | None = None, container: str = "nut"
    ) -> None:
        self._codec, self._path = CODECS[codec], path
        self.sides = output_sides(form, codec)
        self._container = opened_to_write(path, container)
        options = self._codec.options | {"crf": str(self._codec.crf if crf is None else crf)}
        stream: VideoStream = self._container.add_stream(self._codec.encoder, rate=form.rate, options=options)  # type: ignore[assignment]
        stream.width, stream.height = self.sides
        stream.pix_fmt = "yuv420p"
        stream.time_base = form.time_base
        context = stream.codec_context
        context.time_base = form.time_base
        context.sample_aspect_ratio = form.aspect
        context.colorspace = context.color_primaries = context.color_trc = form.colors
        context.color_range = LIMITED_RANGE
        context.flags |= Flags.global_header
        self._stream, self._form, self._convert, self._muxed = stream, form, VideoReformatter(), 0

    def add(self, frame: Frame) -> None:
        """Encode the next frame; time stamps must increase."""
        height, width = frame.pixels.shape[:2]
        down, across = self.sides[1] - height, self.sides[0] - width
        pixels = np.pad(frame.pixels, ((0, down), (0, across), (0, 0)), "edge") if down or across else frame.pixels
        image = VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), "rgb24")  # not copied
        coded = self._convert.reformat(
            image,
            format="yuv420p",
            dst_colorspace=SWSCALE_NUMBERS.get(self._form.colors, self._form.colors),
            dst_color_range=LIMITED_RANGE,
            threads=1,
        )
        coded.pts, coded.time_base = frame.pts, self._form.time_base
        self._mux(coded)

    def _mux(self, coded: VideoFrame | None) -> None:
        with writing(self._path):
            packets = self._stream.encode(coded)
            if coded is None and not self._muxed:
                _retime(packets, self._form)
            self._container.mux(packets)
            self._muxed += len(packets)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._path):
            try:
                if error is None:
                    self._mux(None)
            finally:
                self._container.close()


def check_target(target: Path, codec: str, crf: int | None, given: VideoSource | None = None) -> None:
    """Raise `InputError` for what would otherwise fail at the end: container, codec, CRF.

    If the source video is `given`, also check its sound and size.
    """
    if target.is_dir():
        raise InputError(f"{target} is a folder; give --output a file")
    if target.suffix.lower() not in CONTAINERS:
        raise InputError(f"cannot write {target} as a video; give it one of the suffixes {', '.join(CONTAINERS)}")
    if crf is not None and not 0 <= crf <= CODECS[codec].largest:
        raise InputError(f"--crf is {crf}; for {codec} give 0 (best) to {CODECS[codec].largest}")
    container = CONTAINERS[target.suffix.lower()]
    with av.open(io.BytesIO(), "w", format=container) as output:
        holds = output.supported_codecs
    for name in (codec, *(given.sound if given else ())):
        if name not in holds:
            raise InputError(f"{target}: a {target.suffix} file cannot hold {name}; use .mkv, which holds any codec")
    if given:
        _try_encoder(codec, crf, given.format)
        _try_container(target, container, given)


def _try_encoder(codec: str, crf: int | None, form: VideoFormat) -> None:
    """Encode a black frame and discard it. Raises `InputError` if the codec does not accept its size."""
    black = Frame(np.zeros((form.height, form.width, 3), np.uint8), 0)
    try:
        with Encoder(Path(os.devnull), form, codec, crf) as encoder:
            encoder.add(black)
    except WriteError as error:
        raise InputError(
            f"{codec} cannot store frames of {form.width}x{form.height} ({error_text(error.__cause__ or error)}); "
            "change the size with --max-side, or give another --codec"
        ) from error


def _try_container(target: Path, container: str, given: VideoSource) -> None:
    """Begin a file in memory. Raises `InputError` if the container does not accept the sound."""
    if not given.sound:
        return
    try:
        with given.container() as source, av.open(io.BytesIO(), "w", format=container) as output:
            for stream in source.streams.audio:
                output.add_stream_from_template(stream)
            output.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        raise InputError(
            f"{target}: a {target.suffix} file cannot hold this sound ({', '.join(given.sound)}: {error_text(error)}); "
            "use .mkv"
        ) from error


def _retime(packets: Sequence[Packet[VideoStream]], form: VideoFormat) -> None:
    """Set the decoding times of a video of a few frames, which x265 leaves undefined."""
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    if not stamps:
        return
    for packet, dts in zip(packets, decoding_times(sorted(stamps), reorder_depth(stamps), form), strict=False):
        packet.dts = dts


def reorder_depth(stamps: Sequence[int]) -> int:
    """Return how many frames a decoder holds back for packets that are shown at these times."""
    order = {pts: rank for rank, pts in enumerate(sorted(stamps))}
    return max(number - order[pts] for number, pts in enumerate(stamps))


def decoding_times(shown: Sequence[int], depth: int, form: VideoFormat) -> Iterator[int]:
    """Return the decoding times of packets, in their order, for frames that are shown at these times."""
    step = ticks_of_frame(form.rate, form.time_base)
    return chain((shown[0] - (depth - number) * step for number in range(depth)), shown)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise the errors of FFmpeg and the system in the block as `WriteError`."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise WriteError(f"cannot write {path}: {error_text(error)}") from error


def opened_to_write(path: Path, container: str) -> OutputContainer:
    """Open a new file with FFmpeg's container of this name. Raises `WriteError`."""
    options = _MUXING.get(container, {})
    with writing(path):
        return av.open(ffmpeg_path(path), "w", format=container, options=options)
