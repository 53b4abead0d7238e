"""Decode a video file's frames in order, upright, in sRGB, with the file's time stamps."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from nst_apps.video.codec.formats import (
    BT601,
    BT709,
    SWSCALE_NUMBERS,
    UNSPECIFIED,
    Frame,
    VideoFormat,
    ffmpeg_path,
    ticks_of_frame,
)
from nst_core.errors import ImageError
from nst_core.images import Pixels

SEEK_EARLY_SECONDS = 2
"""How long before a frame to look for its key frame."""

HD_ROWS = 720
"""From this height on a video without colour information has BT.709 colours, as in players; below it BT.601."""


class VideoSource:
    """The first video stream of a file. Raises `ImageError` if the file has none that can be decoded.

    `max_side` shrinks larger frames to that many pixels on their longer side. `opened` opens a file that is not on
    disk, for reading and seeking. `repeated` counts the frames so far that could not be decoded; each repeats the
    previous frame at its own time. `end` is when the last frame so far ends, in ticks.
    """

    def __init__(
        self, path: Path, *, max_side: int | None = None, opened: Callable[[], BinaryIO] | None = None
    ) -> None:
        self.path, self.repeated, self._open = path, 0, opened
        if not opened and not path.is_file():
            raise ImageError(_no_file(path))
        with self._stream() as (container, stream):
            first = next((frame for frame, _, _ in self._decoded(container, stream)), None)
            if first is None:
                raise ImageError(f"{path} has no frame that can be decoded")
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            self._step = ticks_of_frame(rate, stream.time_base)
            self.seconds = _seconds(container, stream)
            self.total = max(1, stream.frames or round(self.seconds * rate))
            self.sound = [stream.codec_context.codec.canonical_name for stream in container.streams.audio]
            time_base, aspect = stream.time_base or Fraction(1, 90_000), stream.sample_aspect_ratio or Fraction(1)
        self._turns = round((first.rotation or 0) / 90) % 4
        width, height = _within(first.width, first.height, max_side)
        self._coded = width, height
        if self._turns % 2:
            width, height, aspect = height, width, 1 / aspect
        self._matrix = first.colorspace
        if self._matrix == UNSPECIFIED:
            self._matrix = BT709 if first.height >= HD_ROWS else BT601
        # Other colours are converted to those of HD.
        colors = BT601 if self._matrix in (5, BT601) else BT709
        self.format = VideoFormat(width, height, time_base, rate, aspect, colors)
        self.start = self.end = self._stamp(first) or 0

    def frames(self, skip: int = 0, seconds: float | None = None) -> Generator[Frame, None, None]:
        """Yield the frames from number `skip` on in display order, up to `seconds` after the first frame if given.

        Decoding starts with the first frame, so that a frame's number and content do not depend on `skip`.
        """
        self.repeated = 0
        convert = VideoReformatter()
        until = None if seconds is None else self.start + seconds / self.format.time_base
        with self._stream() as (container, stream):
            for number, (frame, pts, repeated) in enumerate(self._decoded(container, stream)):
                if until is not None and pts >= until:
                    return
                self.repeated += repeated
                self.end = pts + (frame.duration or self._step)
                if number >= skip:
                    yield Frame(self._upright(frame, convert), pts)

    def between(self, first: float, until: float) -> Generator[Frame, None, None]:
        """Yield the frames that are shown from tick `first` to before `until`; both may be infinite.

        Decoding starts with a key frame shortly before them if the file has an index.
        """
        self.repeated = 0
        convert = VideoReformatter()
        with self._stream() as (container, stream):
            for frame, pts, repeated in self._from(container, stream, first):
                if pts >= until:
                    return
                if pts >= first:
                    self.repeated += repeated
                    self.end = pts + (frame.duration or self._step)
                    yield Frame(self._upright(frame, convert), pts)

    def _from(
        self, container: InputContainer, stream: VideoStream, first: float
    ) -> Iterator[tuple[VideoFrame, int, bool]]:
        """Yield what `_decoded` yields, from somewhere before tick `first` on."""
        # Key frames are found by their decoding time, which is before they are shown.
        early = first - SEEK_EARLY_SECONDS / self.format.time_base
        if early > self.start:
            try:
                container.seek(int(early), stream=stream)
                decoded = self._decoded(container, stream)
                begun = next(decoded, None)
            except av.FFmpegError:
                begun = None
            if begun and begun[1] <= first:
                return chain((begun,), decoded)
            container.seek(0)
        return self._decoded(container, stream)

    @contextmanager
    def container(self) -> Iterator[InputContainer]:
        """Open the file again. Raises FFmpeg's errors."""
        with ExitStack() as stack:
            file = stack.enter_context(self._open()) if self._open else ffmpeg_path(self.path)
            yield stack.enter_context(av.open(file, "r", options={"protocol_whitelist": "file,crypto,data"}))

    @contextmanager
    def _stream(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:
            with self.container() as container:
                streams = [
                    stream
                    for stream in container.streams.video
                    if not stream.disposition & stream.disposition.attached_pic
                ]
                if not streams:
                    raise ImageError(f"{self.path} has no video stream")
                streams[0].thread_type = "AUTO"
                yield container, streams[0]
        except (av.FFmpegError, OSError) as error:
            raise ImageError(f"cannot read {self.path} as a video ({error.strerror or error})") from error

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[tuple[VideoFrame, int, bool]]:
        """Yield each frame with its time stamp, and whether it replaces a broken frame.

        A packet without a frame at its time is broken if the decoder has reported an error before; otherwise it shows
        nothing by design.
        """
        awaited: list[int] = []
        last: VideoFrame | None = None
        latest, complained = None, False

        def missing(before: float) -> Iterator[tuple[VideoFrame, int, bool]]:
            while awaited and awaited[0] < before:
                pts = heapq.heappop(awaited)
                if complained and last is not None and latest is not None and pts > latest:
                    yield last, pts, True

        for packet in _packets(container, stream):
            stamp = None if packet is None or packet.is_discard else packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                heapq.heappush(awaited, stamp)
            try:
                frames = stream.decode(packet)
            except av.FFmpegError:
                frames, complained = [], True
            for frame in frames:
                if frame.is_corrupt:
                    complained = True
                    continue
                pts = self._stamp(frame)
                if pts is None:
                    pts = 0 if latest is None else latest + self._step
                for repeated in missing(pts):
                    latest = repeated[1]
                    yield repeated
                if awaited and awaited[0] == pts:
                    heapq.heappop(awaited)
                latest = pts if latest is None else max(pts, latest + 1)
                last = frame
                yield frame, latest, False
        yield from missing(float("inf"))

    @staticmethod
    def _stamp(frame: VideoFrame) -> int | None:
        return frame.dts if frame.pts is None else frame.pts

    def _upright(self, frame: VideoFrame, convert: VideoReformatter) -> Pixels:
        """Convert a frame to upright sRGB, according to its colour information."""
        width, height = self._coded
        scaled = (width, height) != (frame.width, frame.height)
        image = convert.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=SWSCALE_NUMBERS.get(self._matrix, self._matrix),
            interpolation="LANCZOS" if scaled else "BILINEAR",
            threads=1,
        )
        pixels = np.asarray(image.to_ndarray(), np.uint8)
        return np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels


def _seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return the duration that the file states, in seconds; 0 if it states none."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream] | None]:
    """Yield the packets of a stream, then None; a truncated file ends where it is cut."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass
    yield None


def _no_file(path: Path) -> str:
    if str(path) == "-":
        return "cannot read a video from stdin, since it is read more than once; give a file"
    if path.is_dir():
        return f"{path} is a folder; give a video file"
    return f"{path} is not a regular file; give a video file" if path.exists() else f"{path}: no such file"


def _within(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return width, height
    return max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer))
