"""Join finished parts and the sound of the source into one file, without encoding again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.encoder import decoding_times, opened_to_write, reorder_depth, writing
from nst_apps.video.codec.formats import CONTAINERS, VideoFormat, ffmpeg_path
from nst_core.files import atomic_write


def join_parts(parts: Sequence[Path], source: VideoSource, target: Path, *, cut: bool = False) -> None:
    """Join parts from `Encoder`, in their order, with the unchanged sound of `source` in one file.

    `source.end` must be the end of the last frame, as after iterating over `source.frames`; `cut` ends the sound
    there. Frames and sound keep their offset. The file appears whole or not at all.
    """
    with atomic_write(target) as beside, source.container() as given, _part(parts[0]) as first:
        container = CONTAINERS[target.suffix.lower()]
        with writing(target), opened_to_write(beside, container) as output:
            output.metadata.update(given.metadata)
            video = output.add_stream_from_template(first.streams.video[0], opaque=True)
            if video.codec_context.name == "hevc" and container in ("mp4", "mov"):
                video.codec_context.codec_tag = "hvc1"  # required by Apple's players
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


def _of_parts(parts: Sequence[Path], source: VideoSource, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of all parts as if they came from a single encoder.

    Each part's decoding times begin before its first frame, when the previous part has not ended. So they are
    replaced: a packet is decoded when the frame `depth` positions before it is shown. Every frame lasts until the next.
    """
    form, depth = source.format, 0
    shown: list[int] = []
    for part in parts:
        stamps = [pts for pts, _ in _stamped(part, form)]
        depth = max(depth, reorder_depth(stamps))
        shown += sorted(stamps)
    decoded = decoding_times(shown, depth, form)
    lasting = {pts: later - pts for pts, later in pairwise([*shown, max(source.end, shown[-1] + 1)])}
    for part in parts:
        for pts, packet in _stamped(part, form):
            packet.dts, packet.duration, packet.stream = next(decoded), lasting[pts], stream
            yield packet


def _stamped(part: Path, form: VideoFormat) -> Iterator[tuple[int, Packet[VideoStream]]]:
    """Yield the packets of a part with time stamps in the video's ticks; the part's own ticks are finer."""
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
        return  # truncated, as the frames are


def _part(path: Path) -> InputContainer:
    return av.open(ffmpeg_path(path), "r")
