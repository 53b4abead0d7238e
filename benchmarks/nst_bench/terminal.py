"""Tables for a terminal of any width: what does not fit is left out and named, not cut in the middle of a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from nst_core.console import console

FIRST_TO_GO = ("p99", "spread", "n", "p95")
"""Columns of a summary, the least needed first; after them the rightmost column without a figure in bold."""

GAP = 2
"""Columns of the terminal between two of a table."""

NO_BREAK = "\N{NO-BREAK SPACE}"

WORDS, LONG = 16, 24
"""Columns of the terminal that words get if they need them. A word that is longer than `LONG`, such as a path, may be
broken; a reason that is longer stands below the table."""


def show(markdown: str, *, on: Console = console) -> None:
    """Print Markdown of this package: its tables as wide as the terminal, the rest as `rich` shows it."""
    for part in _parts(markdown, on.width):
        on.print(part, soft_wrap=False)


def _parts(markdown: str, width: int) -> Iterator[RenderableType]:
    for is_table, lines in groupby(markdown.splitlines(), key=lambda line: line.startswith("|")):
        block = list(lines)
        if not is_table:
            if any(line.strip() for line in block):
                yield Markdown("\n".join(block))
            continue
        head, rule, *body = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in block)
        numbers = [mark.endswith(":") for mark in rule]
        rows = [_Row.of(cells, numbers) for cells in body]
        columns = [
            _Column(name, tuple(row.cells[place] for row in rows), numbers[place]) for place, name in enumerate(head)
        ]
        kept = _kept(columns, width)
        yield _drawn(kept, width)
        if left_out := [column.head for column in columns if column not in kept and any(column.cells)]:
            yield Text(f"No room for: {', '.join(left_out)}.", style="dim")
        for row in rows:
            if row.reason:
                yield Text(f"{' '.join(filter(None, row.cells))}: {row.reason}", style="dim")


@dataclass(frozen=True)
class _Row:
    """Cells of a line, and the reason that stood in place of its figures, if it is too long for their column."""

    cells: tuple[str, ...]
    reason: str = ""

    @classmethod
    def of(cls, cells: Sequence[str], numbers: Sequence[bool]) -> _Row:
        """Of a line, and whether each of its columns is of numbers; a number and its unit stay together."""
        shown = [
            cell.replace(" ", NO_BREAK) if number and "unstable" not in cell else cell
            for cell, number in zip(cells, numbers, strict=True)
        ]
        for place, cell in enumerate(cells):
            if numbers[place] and len(cell) > LONG and re.fullmatch(r"\*[^*].*[^*]\*", cell):
                return cls((*shown[:place], "", *shown[place + 1 :]), cell.strip("*"))
        return cls(tuple(shown))


@dataclass(frozen=True)
class _Column:
    """A column in Markdown; of numbers it is set to the right."""

    head: str
    cells: tuple[str, ...]
    numbers: bool

    @property
    def least(self) -> int:
        """The width of its longest word, and some more for words."""
        texts = [_plain(text) for text in (self.head, *self.cells)]
        longest = max((len(word) for text in texts for word in text.split()), default=0)
        if self.numbers:
            return longest
        return min(max(longest, min(WORDS, max(map(len, texts)))), LONG)

    @property
    def natural(self) -> int:
        """The width without a line break."""
        return max(len(_plain(text)) for text in (self.head, *self.cells))

    @property
    def bold(self) -> bool:
        """Whether it has the figures that a reader looks for."""
        return any("**" in cell for cell in self.cells)


def _kept(columns: Sequence[_Column], width: int) -> list[_Column]:
    """Those that have a place in `width`; words that say which row it is always do."""
    kept = [column for column in columns if any(column.cells) or not column.numbers]
    while sum(column.least + GAP for column in kept) - GAP > width:
        numbers = [column for column in kept if column.numbers]
        if len(numbers) < 2:
            break
        named = [column for name in FIRST_TO_GO for column in numbers if column.head == name]
        others = [column for column in reversed(numbers) if not column.bold]
        kept.remove((named or others or numbers[::-1])[0])
    return kept


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """What each column needs at least, and from left to right more as long as there is room; else the widest less."""
    widths = [column.least for column in columns]
    left = width - sum(widths) - GAP * (len(widths) - 1)
    for place, column in enumerate(columns):
        more = max(0, min(left, column.natural - column.least))
        left -= more
        widths[place] += more
    for _ in range(-left):
        widths[widths.index(max(widths))] -= 1
    return widths


def _drawn(columns: Sequence[_Column], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0), show_edge=False)
    for column, own in zip(columns, _widths(columns, width), strict=True):
        table.add_column(_plain(column.head), justify="right" if column.numbers else "left", width=own, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(_plain(cell), style="bold" if "**" in cell else "") for cell in cells))
    return table


def _plain(text: str) -> str:
    """Without the marks of emphasis and code."""
    return re.sub(r"\*+|`", "", text)
