"""Small pieces of the page: tables, figures, numbers as text. Everything that comes from outside is escaped here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, what it is sorted by if not by that, and classes of the style sheet."""

    text: str
    value: float | str | None = None
    style: str = ""


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> str:
    """Return a table that can be sorted by each column."""
    head = "".join(f'<th scope="col"><button type="button">{escape(heading)}</button></th>' for heading in headings)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(title: str, content: str, caption: str) -> str:
    """Return a picture with its title and what it says in words."""
    return f"<figure><h3>{escape(title)}</h3>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def legend(lines: Sequence[tuple[str, str]]) -> str:
    """Return buttons that show and hide lines, given their names and classes."""
    buttons = "".join(
        f'<li><button type="button" class="{style}" data-name="{escape(name)}" aria-pressed="true">'
        f"<i></i>{escape(name)}</button></li>"
        for name, style in lines
    )
    return f'<ul class="legend" aria-label="lines of the charts">{buttons}</ul>'


def section(name: str, title: str, *content: str) -> str:
    """Return a part of the page that the navigation leads to."""
    heading = f'<h2 id="{name}-h">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-h">{heading}{"".join(content)}</section>'


def number(value: float | None, digits: int = 4) -> Cell:
    """Return a number as a cell; empty where there is none."""
    if value is None or not math.isfinite(value):
        return Cell("", "")
    return Cell(f"{value:.{digits}f}", value)


def count(value: float) -> str:
    """Return a whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def _cell(cell: Cell | str) -> str:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    style = f' class="{cell.style}"' if cell.style else ""
    value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
    return f"<td{style}{value}>{escape(cell.text)}</td>"
