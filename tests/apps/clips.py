"""Real encodings for the tests of video, made by PyAV, and what OpenCV's own FFmpeg reads of a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from nst_core.images import Pixels, fit, open_image, sample_photographs

TICKS = Fraction(1, 12_800)
"""A time base that mp4 keeps as it is."""

SIXTIETH = Fraction(1, 60)


def panned(count: int, width: int, height: int, step: int = 2) -> list[Pixels]:
    """A window that moves over a photograph, `step` pixels a frame."""
    whole = fit(open_image(sample_photographs()[0]), width + step * count, height).pixels
    return [np.ascontiguousarray(whole[:, step * n : step * n + width]) for n in range(count)]


def clip(
    path: Path,
    frames: Sequence[Pixels],
    *,
    stamps: Sequence[int] | None = None,
    sound: bool = False,
    rotation: int = 0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    key_every: int = 250,
) -> Path:
    """A video of 25 frames a second, or of these time stamps (ticks), with a tone of its length."""
    height, width = frames[0].shape[:2]
    times = list(stamps) if stamps is not None else [512 * n for n in range(len(frames))]
    options = {"crf": "12", "g": str(key_every)} if codec == "libx264" else {}
    with av.open(str(path), "w") as output:
        video = output.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.time_base = TICKS
        if rotation:
            video.set_display_rotation(rotation)
        audio = output.add_stream("aac", rate=44_100, layout="mono") if sound else None
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = time, TICKS
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if audio:
            samples = np.sin(np.arange(int(44_100 * float((times[-1] + 512) * TICKS))) / 20).astype(np.float32)
            tone = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            tone.rate, tone.pts, tone.time_base = 44_100, 0, Fraction(1, 44_100)
            output.mux(audio.encode(tone))
            output.mux(audio.encode(None))
    return path


@dataclass(frozen=True)
class Seen:
    """A video as OpenCV reads it: images in RGB and upright, their times in milliseconds, and its frame rate."""

    images: list[Pixels]
    milliseconds: list[float]
    rate: float


def seen(path: Path) -> Seen:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert capture.isOpened()
    images, times = [], []
    while True:
        good, image = capture.read()
        if not good:
            break
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return Seen(images, times, rate)


def sound(path: Path) -> list[bytes]:
    """The packets of the first audio stream."""
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]


def broken(path: Path, source: Path, frames: Sequence[int]) -> Path:
    """A copy in which the packets that are shown as these frames hold nonsense."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as file:
        for packet in file.demux(video=0):
            if packet.pts is not None and packet.pts // 512 in frames:
                nonsense = np.random.default_rng(packet.pts).bytes(packet.size - 5)
                data[packet.pos + 5 : packet.pos + packet.size] = nonsense
    path.write_bytes(data)
    return path


def apart(first: Pixels, second: Pixels) -> float:
    """Mean absolute difference of 255."""
    return float(np.abs(first.astype(int) - second.astype(int)).mean())
