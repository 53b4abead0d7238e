"""How a video is stylized and stored."""

from __future__ import annotations

from dataclasses import dataclass

from nst_apps.video.codec.formats import CODECS
from nst_apps.video.schedule import Schedule


@dataclass(frozen=True)
class VideoSettings:
    """How a video is stylized and stored; the options of `nst video`."""

    schedule: Schedule
    strength: float = 1.0
    preserve_color: bool = False
    max_side: int | None = None
    smooth: bool = False
    preview: bool = False
    codec: str = "h264"
    crf: int | None = None

    @property
    def options(self) -> dict[str, object]:
        """The settings that finished and new parts must share, by the names of the command's options."""
        return {
            "--style": str(self.schedule),
            "--strength": self.strength,
            "--preserve-color": self.preserve_color,
            "--max-side": self.max_side,
            "--smooth": self.smooth,
            "--preview": self.preview,
            "--codec": self.codec,
            "--crf": CODECS[self.codec].crf if self.crf is None else self.crf,
        }
