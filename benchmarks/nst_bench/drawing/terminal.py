"""Tables for a terminal of any width: what does not fit is left out and named, not cut in the middle of a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.measure import measure_renderables
from rich.table import Table
from rich.text import Text

from nst_core.console import console

FIRST_TO_GO = ("p99", "spread", "n", "p95")
"""Columns of a summary, the least needed first; after them the rightmost of the columns that weigh least."""

GAP = 2
"""Columns of the terminal between two of a table."""

WORDS, LONG = 16, 24
"""Columns of the terminal that words get if they need them. A word that is longer than `LONG`, such as a path, may be
broken; a reason that is longer stands below the table."""


@dataclass
class _Column:
    """Of a table: its title and cells, the width that it needs at least, and the one without a line break."""

    title: Text
    cells: list[Text]
    number: bool
    least: int
    natural: int

    @property
    def weight(self) -> int:
        """How late it is left out: after numbers words, and last the figures in bold that a reader looks for."""
        if self.title.plain in FIRST_TO_GO:
            return FIRST_TO_GO.index(self.title.plain)
        bold = any(cell.style for cell in self.cells)
        return len(FIRST_TO_GO) + (2 * bold if self.number else 1)


def show(markdown: str, *, on: Console = console) -> None:
    """Print Markdown of this package: its tables as wide as the terminal, the rest as `rich` shows it."""
    for is_table, lines in groupby(markdown.splitlines(), key=lambda line: line.startswith("|")):
        text = "\n".join(lines)
        for part in _table(text, on) if is_table else [Markdown(text)] if text.strip() else []:
            on.print(part, soft_wrap=False)


def _table(text: str, on: Console) -> Iterator[RenderableType]:
    """What fits of a table in Markdown, and below it what does not."""
    head, rule, *body = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines())
    numbers = [mark.endswith(":") for mark in rule]
    reasons = []
    for cells in body:
        for place, cell in enumerate(cells):
            if numbers[place] and len(cell) > LONG and re.fullmatch(r"\*[^*].*[^*]\*", cell):
                cells[place] = ""
                reasons.append(f"{' '.join(filter(None, cells))}: {cell.strip('*')}")
    columns = [_column(texts, number, on) for *texts, number in zip(head, *body, numbers, strict=True)]
    used = [column for column in columns if any(column.cells) or not column.number]
    kept = _kept(used, on.width)
    yield _drawn(kept, on.width)
    if left_out := [column.title.plain for column in used if column not in kept]:
        yield Text(f"No room for: {', '.join(left_out)}.", style="dim")
    yield from (Text(reason, style="dim") for reason in reasons)


def _column(markdown: Sequence[str], number: bool, on: Console) -> _Column:
    """Of its title and cells, without the marks of emphasis and code; a number and its unit stay together."""
    texts = [Text(re.sub(r"\*+|`", "", cell), "bold" if "**" in cell else "") for cell in markdown]
    longest, natural = measure_renderables(on, on.options, texts)
    with_units = [text.cell_len for text in texts if re.fullmatch(r"[\d.,]+ (ms|s|MiB)", text.plain)]
    longest = max(longest, *with_units, 0)
    least = longest if number else min(max(longest, min(WORDS, natural)), LONG)
    return _Column(texts[0], texts[1:], number, least, natural)


def _kept(columns: Sequence[_Column], width: int) -> list[_Column]:
    """Those that have a place in `width`: at least one of numbers, and the words that tell the rows apart."""
    kept = list(columns)
    while sum(column.least + GAP for column in kept) - GAP > width:
        words, numbers = ([column for column in kept if column.number is number] for number in (False, True))
        spare = [column for column in words if _tell_apart([other for other in words if other is not column])]
        spare += numbers if len(numbers) > 1 else []
        if not numbers or not spare:  # what is of words alone says nothing else
            break
        kept.remove(min(reversed(spare), key=lambda column: column.weight))
    return kept


def _tell_apart(words: Sequence[_Column]) -> bool:
    """Whether no two rows have the same."""
    rows = list(zip(*([cell.plain for cell in column.cells] for column in words), strict=True))
    return 0 < len(rows) == len(set(rows))


def _drawn(columns: Sequence[_Column], width: int) -> Table:
    """Each column as wide as it must be, and from left to right wider as long as there is room."""
    left = width - sum(column.least + GAP for column in columns) + GAP
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0), show_edge=False)
    for column in columns:
        more = max(0, min(left, column.natural - column.least))
        left -= more
        table.add_column(
            column.title,
            justify="right" if column.number else "left",
            max_width=column.least + more,
            overflow="fold",
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table
