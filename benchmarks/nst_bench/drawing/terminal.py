"""Tables for terminals of any width: columns that do not fit are left out and named, never cut off."""

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
"""Columns of a summary in the order in which they are left out; other columns follow by weight, rightmost first."""

GAP = 2
"""Characters between two columns."""

WORDS, LONG = 16, 24
"""Characters that a text column gets if it needs them. A longer word than `LONG`, such as a path, may be broken; a
longer reason is printed below the table."""


@dataclass
class _Column:
    """A column: its title and cells, its minimum width, and its width without line breaks."""

    title: Text
    cells: list[Text]
    number: bool
    least: int
    natural: int

    @property
    def weight(self) -> int:
        """How late it is left out: numbers first, then texts, and figures in bold last."""
        if self.title.plain in FIRST_TO_GO:
            return FIRST_TO_GO.index(self.title.plain)
        bold = any(cell.style for cell in self.cells)
        return len(FIRST_TO_GO) + (2 * bold if self.number else 1)


def show(markdown: str, *, on: Console = console) -> None:
    """Print Markdown: tables as wide as the terminal, the rest as `rich` shows it."""
    for is_table, lines in groupby(markdown.splitlines(), key=lambda line: line.startswith("|")):
        text = "\n".join(lines)
        for part in _table(text, on) if is_table else [Markdown(text)] if text.strip() else []:
            on.print(part, soft_wrap=False)


def _table(text: str, on: Console) -> Iterator[RenderableType]:
    """Yield what fits of a Markdown table, then what does not."""
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
        yield Text(f"Not shown: {', '.join(left_out)}.", style="dim")
    yield from (Text(reason, style="dim") for reason in reasons)


def _column(markdown: Sequence[str], number: bool, on: Console) -> _Column:
    """Make a column of its title and cells without Markdown's marks; a number and its unit stay on one line."""
    texts = [Text(re.sub(r"\*+|`", "", cell), "bold" if "**" in cell else "") for cell in markdown]
    longest, natural = measure_renderables(on, on.options, texts)
    with_units = [text.cell_len for text in texts if re.fullmatch(r"[\d.,]+ (ms|s|MiB)", text.plain)]
    longest = max(longest, *with_units, 0)
    least = longest if number else min(max(longest, min(WORDS, natural)), LONG)
    return _Column(texts[0], texts[1:], number, least, natural)


def _kept(columns: Sequence[_Column], width: int) -> list[_Column]:
    """Return the columns that fit into `width`: at least one of numbers, and the texts that identify the rows."""
    kept = list(columns)
    while sum(column.least + GAP for column in kept) - GAP > width:
        words, numbers = ([column for column in kept if column.number is number] for number in (False, True))
        spare = [column for column in words if _tell_apart([other for other in words if other is not column])]
        spare += numbers if len(numbers) > 1 else []
        if not numbers or not spare:  # a table of texts alone keeps them all
            break
        kept.remove(min(reversed(spare), key=lambda column: column.weight))
    return kept


def _tell_apart(words: Sequence[_Column]) -> bool:
    """Return whether no two rows have the same texts."""
    rows = list(zip(*([cell.plain for cell in column.cells] for column in words), strict=True))
    return 0 < len(rows) == len(set(rows))


def _drawn(columns: Sequence[_Column], width: int) -> Table:
    """Draw columns at their minimum width, widened from left to right while there is room."""
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
