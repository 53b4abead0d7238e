"""Video files: frames out of one, frames into one, and parts joined to a whole with the sound of another.

A frame inside nst is a picture as everywhere: upright, sRGB, `uint8 [H, W, 3]`. Time stamps are the file's own,
whole ticks of its time base, so a variable frame rate needs no care.
"""

from __future__ import annotations

import heapq
import io
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from nst_core.errors import ImageError, InputError, WriteError
from nst_core.files import atomic_write
from nst_core.images import Pixels

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""FFmpeg's name of what is written, by the file's suffix."""

_MUXING = {
    "mp4": {"movflags": "+faststart"},
    "mov": {"movflags": "+faststart"},
    "nut": {"avoid_negative_ts": "disabled"},  # times stay as they are
}

BT709, UNSPECIFIED, BT601 = 1, 2, 6
"""Numbers of ITU-T H.273 for the colours of a video: primaries, transfer and matrix."""

_SWSCALE = {BT601: 5}
"""What swscale calls the matrices that it numbers otherwise."""

LIMITED = 1
"""FFmpeg's number for levels from 16 to 235."""

SEEK_EARLY = 2
"""Seconds before a frame at which a key frame for it is looked for."""

HD = 720
"""Rows from which a video that does not say its colours has those of BT.709, as players take it; else BT.601."""


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

Painted frames are full of detail, on which H.264's better entropy coder (CABAC) spends a quarter of the encoder's time;
the cheap one and a fixed pattern of frames cost 2 % of the file.
"""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video, shown from `pts` on (ticks)."""

    pixels: Pixels
    pts: int


@dataclass(frozen=True)
class Format:
    """What frames of a video have in common: sides (pixels), ticks in seconds, frames a second, a pixel's shape.

    `colors` are those of BT.709 or BT.601, as they are stored.
    """

    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction = Fraction(1)
    colors: int = BT709


class Footage:
    """The first video stream of a file. Raises `ImageError` if the file has none that can be decoded.

    `max_side` shrinks larger frames to that many pixels on their longer side. `opened` opens a file that is not on a
    disk; it can be read and sought. `repeated` counts the frames that could not be decoded, as far as `frames` has
    come: each is the frame before once more, at its own time. `end` is when the last of them ends (ticks).
    """

    def __init__(
        self, path: Path, *, max_side: int | None = None, opened: Callable[[], BinaryIO] | None = None
    ) -> None:
        self.path, self.repeated, self._open = path, 0, opened
        if not opened and not path.is_file():
            raise ImageError(f"{path}: {_no_file(path)}")
        with self._stream() as (container, stream):
            first = next((frame for frame, _, _ in self._decoded(container, stream)), None)
            if first is None:
                raise ImageError(f"{path}: no frame of it can be decoded")
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            self._step = _step(rate, stream.time_base)
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
            self._matrix = BT709 if first.height >= HD else BT601
        # What is neither is converted to the colours of HD.
        colors = BT601 if self._matrix in (5, BT601) else BT709
        self.format = Format(width, height, time_base, rate, aspect, colors)
        self.start = self.end = self._stamp(first) or 0

    def frames(self, skip: int = 0, seconds: float | None = None) -> Generator[Frame, None, None]:
        """The frames from number `skip` on, in the order they are shown; with `seconds` only those of the beginning.

        All are decoded from the first on, so that number and picture of a frame never depend on where one begins.
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
        """The frames that are shown from tick `first` to before `until`; both may be infinite.

        Decoded from a key frame before them where the file lets, so that the far end of a long video is not far.
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
        """`_decoded` from somewhere before tick `first` on."""
        # A key frame is found by when it is decoded, which is before it is shown.
        early = first - SEEK_EARLY / self.format.time_base
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
        """The file, opened once more. Raises FFmpeg's errors."""
        with ExitStack() as stack:
            file = stack.enter_context(self._open()) if self._open else _literal(self.path)
            yield stack.enter_context(av.open(file, "r", options={"protocol_whitelist": "file,crypto,data"}))

    @contextmanager
    def _stream(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:
            with self.container() as container:
                streams = [one for one in container.streams.video if not one.disposition & one.disposition.attached_pic]
                if not streams:
                    raise ImageError(f"{self.path}: no video in it")
                streams[0].thread_type = "AUTO"
                yield container, streams[0]
        except (av.FFmpegError, OSError) as error:
            raise ImageError(f"{self.path}: not a video that can be read ({error.strerror or error})") from error

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[tuple[VideoFrame, int, bool]]:
        """Each frame with its time stamp, and whether it stands for one that is broken.

        A packet that is sent to the decoder and no frame comes of it at its time is a broken one, once the decoder
        has complained; before, it is one that shows nothing by design.
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
                for one in missing(pts):
                    latest = one[1]
                    yield one
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
        """In sRGB, by the colours that the frame says it has."""
        width, height = self._coded
        scaled = (width, height) != (frame.width, frame.height)
        picture = convert.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=_SWSCALE.get(self._matrix, self._matrix),
            interpolation="LANCZOS" if scaled else "BILINEAR",
            threads=1,
        )
        pixels = np.asarray(picture.to_ndarray(), np.uint8)
        return np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels


class Encoder:
    """Frames into a video file without sound; `with` it, and the file is complete at the block's end.

    Where the codec needs even sides the last column or row of an odd one is repeated once (`sides` are what is
    written). Raises `WriteError` where the file cannot be written.
    """

    def __init__(self, path: Path, form: Format, codec: str, crf: int | None = None, container: str = "nut") -> None:
        self._codec, self._path = CODECS[codec], path
        self.sides = sides(form, codec)
        self._container = _to_write(path, container)
        options = self._codec.options | {"crf": str(self._codec.crf if crf is None else crf)}
        stream: VideoStream = self._container.add_stream(self._codec.encoder, rate=form.rate, options=options)  # type: ignore[assignment]
        stream.width, stream.height = self.sides
        stream.pix_fmt = "yuv420p"
        stream.time_base = form.time_base
        context = stream.codec_context
        context.time_base = form.time_base
        context.sample_aspect_ratio = form.aspect
        context.colorspace = context.color_primaries = context.color_trc = form.colors
        context.color_range = LIMITED
        context.flags |= Flags.global_header
        self._stream, self._form, self._convert, self._muxed = stream, form, VideoReformatter(), 0

    def add(self, frame: Frame) -> None:
        """Encode one more; time stamps must rise."""
        height, width = frame.pixels.shape[:2]
        down, across = self.sides[1] - height, self.sides[0] - width
        pixels = np.pad(frame.pixels, ((0, down), (0, across), (0, 0)), "edge") if down or across else frame.pixels
        picture = VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), "rgb24")  # not copied
        coded = self._convert.reformat(
            picture,
            format="yuv420p",
            dst_colorspace=_SWSCALE.get(self._form.colors, self._form.colors),
            dst_color_range=LIMITED,
            threads=1,
        )
        coded.pts, coded.time_base = frame.pts, self._form.time_base
        self._mux(coded)

    def _mux(self, coded: VideoFrame | None) -> None:
        with _writing(self._path):
            packets = self._stream.encode(coded)
            if coded is None and not self._muxed:
                _time_anew(packets, self._form)
            self._container.mux(packets)
            self._muxed += len(packets)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _writing(self._path):
            try:
                if error is None:
                    self._mux(None)
            finally:
                self._container.close()


def sides(form: Format, codec: str) -> tuple[int, int]:
    """Width and height of what is written, pixels."""
    odd = CODECS[codec].even
    return form.width + odd * (form.width % 2), form.height + odd * (form.height % 2)


def check(target: Path, codec: str, crf: int | None, given: Footage | None = None) -> None:
    """Raise `InputError` for what would only fail at the end: a container, what it can hold, a quality.

    Of the footage `given` the sound and the sides must fit as well.
    """
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file to write")
    if target.suffix.lower() not in CONTAINERS:
        raise InputError(
            f"{target}: cannot write {target.suffix or 'a file without a suffix'}; use one of {', '.join(CONTAINERS)}"
        )
    if crf is not None and not 0 <= crf <= CODECS[codec].largest:
        raise InputError(f"--crf is {crf}: for {codec} it is from 0, the best, to {CODECS[codec].largest}")
    container = CONTAINERS[target.suffix.lower()]
    with av.open(io.BytesIO(), "w", format=container) as output:
        holds = output.supported_codecs
    for name in (codec, *(given.sound if given else ())):
        if name not in holds:
            raise InputError(f"{target}: a {target.suffix} file cannot hold {name}; use .mkv, which holds everything")
    if given:
        _try_encoder(codec, crf, given.format)
        _try_container(target, container, given)


def _try_encoder(codec: str, crf: int | None, form: Format) -> None:
    """Encode one black frame into nothing. Raises `InputError` where the codec does not take its sides."""
    black = Frame(np.zeros((form.height, form.width, 3), np.uint8), 0)
    try:
        with Encoder(Path(os.devnull), form, codec, crf) as encoder:
            encoder.add(black)
    except WriteError as error:
        raise InputError(
            f"{codec} cannot store frames of {form.width}x{form.height} ({_said(error.__cause__ or error)}): "
            "give --max-side, or another --codec"
        ) from error


def _try_container(target: Path, container: str, given: Footage) -> None:
    """Begin a file in memory. Raises `InputError` where the container does not take the sound as it is."""
    if not given.sound:
        return
    try:
        with given.container() as source, av.open(io.BytesIO(), "w", format=container) as output:
            for stream in source.streams.audio:
                output.add_stream_from_template(stream)
            output.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        raise InputError(
            f"{target}: a {target.suffix} file cannot hold this sound ({', '.join(given.sound)}: {_said(error)}); "
            "use .mkv"
        ) from error


def join(parts: Sequence[Path], source: Footage, target: Path, *, cut: bool = False) -> None:
    """The parts, made by `Encoder` and in their order, and the sound of `source` as it is, in one file.

    `source.end` must be that of the last frame, as when `source.frames` has come to it; `cut` ends the sound there.
    Pictures and sound begin as far apart as they did. The file appears whole or not at all.
    """
    with atomic_write(target) as beside, source.container() as given, _part(parts[0]) as first:
        container = CONTAINERS[target.suffix.lower()]
        with _writing(target), _to_write(beside, container) as output:
            output.metadata.update(given.metadata)
            video = output.add_stream_from_template(first.streams.video[0], opaque=True)
            if video.codec_context.name == "hevc" and container in ("mp4", "mov"):
                video.codec_context.codec_tag = "hvc1"  # what Apple's players ask for
            video.time_base = source.format.time_base
            sound = {stream.index: output.add_stream_from_template(stream) for stream in given.streams.audio}
            shift = Fraction(max(0, given.start_time or 0), av.time_base)
            until = source.end * source.format.time_base if cut else None
            flows = [_of_parts(parts, source, video)]
            flows += [_of_sound(given, sound, until)] if sound else []
            for packet in heapq.merge(*flows, key=lambda packet: (packet.dts or 0) * packet.time_base):
                ticks = round(shift / packet.time_base)
                packet.pts = None if packet.pts is None else packet.pts - ticks
                packet.dts = None if packet.dts is None else packet.dts - ticks
                output.mux_one(packet)


def _seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long it is, as the file says; 0 if it does not."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream] | None]:
    """Those of a stream, then None; a file that is cut off ends where it is cut."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass
    yield None


def _of_parts(parts: Sequence[Path], source: Footage, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The packets of all parts as of one encoder.

    Each part's decoding times begin before its first frame, where the part before has not ended. So they are given
    anew: every packet is decoded when the frame is shown that has come `depth` frames before it. And every frame lasts
    until the next.
    """
    form, depth = source.format, 0
    shown: list[int] = []
    for part in parts:
        stamps = [pts for pts, _ in _stamped(part, form)]
        depth = max(depth, _depth(stamps))
        shown += sorted(stamps)
    decoded = _decoding_times(shown, depth, form)
    lasting = {pts: later - pts for pts, later in pairwise([*shown, max(source.end, shown[-1] + 1)])}
    for part in parts:
        for pts, packet in _stamped(part, form):
            packet.dts, packet.duration, packet.stream = next(decoded), lasting[pts], stream
            yield packet


def _time_anew(packets: Sequence[Packet[VideoStream]], form: Format) -> None:
    """Give decoding times to the packets of a video of a few frames: x265 leaves theirs to chance."""
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    if not stamps:
        return
    for packet, dts in zip(packets, _decoding_times(sorted(stamps), _depth(stamps), form), strict=False):
        packet.dts = dts


def _depth(stamps: Sequence[int]) -> int:
    """How many frames a decoder holds back, for packets that are shown at these times."""
    order = {pts: rank for rank, pts in enumerate(sorted(stamps))}
    return max(number - order[pts] for number, pts in enumerate(stamps))


def _decoding_times(shown: Sequence[int], depth: int, form: Format) -> Iterator[int]:
    """Those of packets in their order, for frames that are shown at these times."""
    step = _step(form.rate, form.time_base)
    return chain((shown[0] - (depth - number) * step for number in range(depth)), shown)


def _stamped(part: Path, form: Format) -> Iterator[tuple[int, Packet[VideoStream]]]:
    """The packets of a part with their time stamps, in the ticks of the video again: the part's own are finer."""
    with _part(part) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is not None:
                ticks = packet.time_base / form.time_base
                packet.pts, packet.time_base = round(packet.pts * ticks), form.time_base
                yield packet.pts, packet


def _of_sound(given: InputContainer, streams: dict[int, av.AudioStream], until: Fraction | None) -> Iterator[Packet]:  # type: ignore[type-arg]
    try:
        for packet in given.demux(*given.streams.audio):
            if packet.dts is None or (until is not None and packet.dts * packet.time_base >= until):
                continue
            packet.stream = streams[packet.stream_index]
            yield packet
    except av.FFmpegError:
        return  # cut off, as the pictures are


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise WriteError(f"cannot write {path}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _to_write(path: Path, container: str) -> OutputContainer:
    options = _MUXING.get(container, {})
    with _writing(path):
        return av.open(_literal(path), "w", format=container, options=options)


def _part(path: Path) -> InputContainer:
    return av.open(_literal(path), "r")


def _literal(path: Path) -> str:
    """For FFmpeg, which takes `http:x.mp4` and `concat:x.mp4` for addresses; nothing before a slash is one."""
    return str(path.absolute())


def _no_file(path: Path) -> str:
    if str(path) == "-":
        return "a video is not read from a pipe, since it is read more than once: give a file"
    if path.is_dir():
        return "is a folder, not a video"
    return "is no regular file: give a video's file" if path.exists() else "no such file"


def _step(rate: Fraction, time_base: Fraction | None) -> int:
    """Ticks of a frame, at least 1."""
    return max(1, round(1 / (rate * (time_base or Fraction(1, 90_000)))))


def _within(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return width, height
    return max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer))
