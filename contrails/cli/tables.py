"""Tables that fit the terminal: words are wrapped, and the least important columns are left out first.

A cell wraps at the ends of its words. A word wider than its column, such as a path, wraps after a separator; a piece
that is still too wide is shortened in its middle.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED = 160
"""Width in characters if the output is not a terminal and $COLUMNS is not set."""
_PIECE = re.compile(r"(?:[^-_./=,;:|]|[-.,:](?=[0-9]))*[-_./=,;:|]*")
"""The pieces that a word can be wrapped into: each ends after separators, except those inside a number."""
_TEXT = 16
"""Smallest width of a text column with that much text; if there is less room, the column is left out."""
_SHORTEST = 4

Cell = str | Text


@dataclass(frozen=True)
class Column:
    """A column of a table.

    If the table is too wide, columns are left out from the highest `rank` down; those with rank 0 always stay. Words
    of a `whole` column, such as numbers and names, are not wrapped unless even the columns of rank 0 have no room.
    """

    heading: str
    rank: int = 0
    right: bool = False
    whole: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell] | None], title: str = "") -> None:
    """Print a table that fits the output; None instead of a row draws a line."""
    console = new_console()
    if title:
        console.print(title, style="italic", soft_wrap=True)
    console.print(new_table(columns, rows, console.width))


def new_console(*, stderr: bool = False) -> Console:
    """Return a console for tables, whose width is that of the output."""
    console = Console(markup=False, highlight=False, stderr=stderr)
    piped = not console.is_terminal and "COLUMNS" not in os.environ
    return Console(markup=False, highlight=False, stderr=stderr, width=_PIPED) if piped else console


def new_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell] | None], width: int) -> Table:
    """Return a table of at most `width` characters."""
    texts = [[str(cell) for cell in (column.heading, *cells)] for column, cells in _columns(columns, rows)]
    needs = [_need(column, cells) for column, cells in zip(columns, texts, strict=True)]
    shown = _shown(columns, needs, width)
    wants = [max(cell_len(line) for cell in texts[index] for line in cell.splitlines() or [""]) for index in shown]
    widths = _widths([needs[index] for index in shown], wants, width - _frame(len(shown)))
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_header=any(column.heading for column in columns))
    for index, column_width in zip(shown, widths, strict=True):
        justify: Literal["left", "right"] = "right" if columns[index].right else "left"
        heading = _fold(columns[index].heading, column_width)
        table.add_column(Text(heading), justify=justify, width=column_width)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(_fitted(row[index], size) for index, size in zip(shown, widths, strict=True)))
    if len(shown) < len(columns):
        left_out = ", ".join(column.heading for index, column in enumerate(columns) if index not in shown)
        table.caption, table.caption_justify = Text(f"left out in {width} columns: {left_out}", "dim"), "left"
    return table


def _columns(columns: Sequence[Column], rows: Sequence[Sequence[Cell] | None]) -> Iterator[tuple[Column, list[Cell]]]:
    for index, column in enumerate(columns):
        yield column, [row[index] for row in rows if row is not None]


def _need(column: Column, cells: Sequence[str]) -> int:
    """Return the smallest width of a column at which no word is broken."""
    words = [word for cell in cells for word in cell.split()]
    if column.right or column.whole:
        return max(map(cell_len, words), default=0)
    pieces = [piece for word in words for piece in _PIECE.findall(word)]
    least = min(_TEXT, max(map(cell_len, cells), default=0))
    return max(least, max(map(cell_len, pieces), default=0), max(map(cell_len, cells[0].split()), default=0))


def _frame(count: int) -> int:
    """Return the width of all separators and padding."""
    return 2 * count + 1


def _shown(columns: Sequence[Column], needs: Sequence[int], width: int) -> list[int]:
    """Return the indices of the columns that are not left out."""
    shown = list(range(len(columns)))
    while sum(needs[index] for index in shown) + _frame(len(shown)) > width:
        last = max(shown, key=lambda index: columns[index].rank)
        if not columns[last].rank:
            break
        shown.remove(last)
    return shown


def _widths(needs: Sequence[int], wants: Sequence[int], width: int) -> list[int]:
    """Return column widths: at first what each column needs, then one character in turn to each that wants more."""
    widths = list(needs)
    while sum(widths) > width and max(widths) > _SHORTEST:
        widths[widths.index(max(widths))] -= 1
    while sum(widths) < width and any(have < want for have, want in zip(widths, wants, strict=True)):
        for index, want in enumerate(wants):
            widths[index] += widths[index] < want and sum(widths) < width
    return widths


def _fitted(cell: Cell, width: int) -> Text:
    text = cell if isinstance(cell, Text) else Text(cell)
    folded = _fold(text.plain, width)
    return text if folded == text.plain else Text(folded, text.style)


def _fold(text: str, width: int) -> str:
    """Return text as lines of at most `width` characters, wrapped at the ends of words, else after separators."""
    return "\n".join(line for part in text.splitlines() for line in _lines(part, width))


def _lines(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split(" "):
        pieces = [word] if cell_len(word) <= width else [piece for piece in _PIECE.findall(word) if piece]
        for number, piece in enumerate(pieces):
            part = _shortened(piece, width)
            space = " " if line and not number else ""
            if line and cell_len(line + space + part) > width:
                yield line
                line, space = "", ""
            line += space + part
    yield line


def _shortened(piece: str, width: int) -> str:
    if cell_len(piece) <= width:
        return piece
    head = (width - 1) // 2
    return f"{piece[:head]}…{piece[len(piece) - (width - 1 - head) :]}"
