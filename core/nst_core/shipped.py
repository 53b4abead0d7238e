"""The trained styles that ship with nst: their names, what they are, and where their checkpoints are.

In a checkout `models` beside this module is a link to the repository's folder of that name; a wheel holds the files.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

FOLDER = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ShippedStyle:
    """A checkpoint that ships: its `name`, what it shows, and the `styles` that its network knows."""

    name: str
    title: str
    network: str
    artist: str = ""
    year: str = ""
    styles: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's file."""
        return FOLDER / f"{self.name}.pth"

    def __str__(self) -> str:
        author = f", {self.artist}, {self.year}" if self.artist else ""
        return f"{self.title}{author} ({self.network})"


def shipped_styles() -> dict[str, ShippedStyle]:
    """Return the styles that ship, by name, the recommended ones first."""
    table = tomllib.loads((FOLDER / "styles.toml").read_text(encoding="utf-8"))
    return {
        name: ShippedStyle(name, **{**entry, "styles": tuple(entry.get("styles", (name,)))})
        for name, entry in table.items()
    }


def checkpoint_path(given: Path) -> Path:
    """Return the file that a user means: `given` if it exists, else the shipped style of that name, else `given`."""
    if given.exists() or str(given) not in shipped_styles():
        return given
    return shipped_styles()[str(given)].checkpoint


def suggestion(given: Path) -> str:
    """Return the hint for a checkpoint that does not exist; empty for a path that resembles no shipped style."""
    nearest = get_close_matches(given.stem, shipped_styles(), 1)
    if not nearest and (given.suffix or given.parent != Path()):
        return ""
    return "".join(f"did you mean {name}? " for name in nearest) + "nst styles --shipped lists the styles that ship"
