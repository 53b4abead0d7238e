"""How a video is stylized and stored."""

from __future__ import annotations

from dataclasses import dataclass

from nst_apps.video.codec.formats import CODECS
from nst_apps.video.schedule import Schedule


@dataclass(frozen=True)
class VideoSettings:
    """How a video is stylized and stored; the options of `nst video`."""

    schedule: Schedule
    """The styles over time."""
    strength: float = 1.0
    """Blend between the content video (0) and the stylized video (1)."""
    preserve_color: bool = False
    """Whether to keep the colours of the content video."""
    max_side: int | None = None
    """Longer side to which larger frames are shrunk, in pixels."""
    smooth: bool = False
    """Whether to reduce flicker by blending each frame with the previous one along the motion."""
    preview: bool = False
    """Whether to stylize the first five seconds only."""
    codec: str = "h264"
    """`h264`, `hevc` or `vp9`."""
    crf: int | None = None
    """Constant rate factor of the codec, lower is better; None for the codec's default."""

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
