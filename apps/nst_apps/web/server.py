"""Track which styles the server offers and whether it answers, and stylize a thumbnail per style."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from nst_client.client import AsyncStyleClient
from nst_client.styles import Style
from nst_client.stylize.contact_sheet import default_photograph
from nst_core.errors import NstError
from nst_core.images import ImageData, encode_image, fit

POLL_SECONDS = 2.0
"""Time between two checks of the server."""

THUMBNAIL = 288, 216
"""Width and height of a thumbnail in pixels, sharp at half the size on a phone."""


@dataclass
class Server:
    """The served styles, which `watch` updates, so that the server may stop, restart and get new styles.

    `on_message` gets a line when the server starts to answer, and the reason when it stops.
    """

    client: AsyncStyleClient
    on_message: Callable[[str], None] = lambda line: None
    styles: list[Style] = field(default_factory=list)
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    trouble: str = "not asked yet"
    up: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Check the server, forever."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_SECONDS)

    async def illustrate(self) -> None:
        """Stylize missing thumbnails, forever; separate from `watch`, which a hanging model must not stop."""
        content = await asyncio.to_thread(lambda: fit(default_photograph(), *THUMBNAIL))
        while True:
            await self.up.wait()
            for style in self.styles:
                if key(style) not in self.thumbnails:
                    with suppress(NstError):  # a style that cannot be stylized now is tried again later
                        stylized = await self.client.stylize(content.pixels, style.name)
                        self.thumbnails[key(style)] = encode_image(ImageData(stylized), "JPEG", quality=88)
            known = {key(style) for style in self.styles}
            self.thumbnails = {name: data for name, data in self.thumbnails.items() if name in known}
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Check the server once. Never raises `NstError`, which goes to `trouble` and is reported."""
        try:
            self.styles = await self.client.styles()
        except NstError as error:
            self.lost(error)
            return
        if not self.up.is_set():
            self.on_message(f"{self.client.url} answers with {len(self.styles)} styles")
        self.trouble = ""
        self.up.set()

    def lost(self, error: NstError) -> None:
        """Note that the server did not answer; until it does, requests wait."""
        if self.trouble != str(error):
            self.on_message(str(error))
        self.trouble = str(error)
        self.up.clear()


def key(style: Style) -> str:
    """Return the key of a style's thumbnail, which changes when the model gets other styles."""
    return hashlib.sha256(repr(style).encode()).hexdigest()[:16]
