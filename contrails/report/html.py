"""Parts of the page as HTML, rendered by the templates beside this file, which escape all text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
parts: Any = _TEMPLATES.get_template("parts.html").module
"""The macros of `parts.html`."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, the value to sort by (default: the text), and classes of the style sheet."""

    text: str
    value: float | str | None = None
    style: str = ""


def render(template: str, **values: Any) -> Markup:
    """Return a rendered template; text that is not `Markup` is escaped."""
    return Markup(_TEMPLATES.get_template(template).render(**values))  # noqa: S704 - the template has escaped it


def section(name: str, title: str, *content: Markup) -> Markup:
    """Return a section of the page, which the navigation links to."""
    made: Markup = parts.section(name, title, content)
    return made


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> Markup:
    """Return a table that can be sorted by each column."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    made: Markup = parts.table(caption, headings, cells)
    return made


def number(value: float | None, digits: int = 4) -> Cell:
    """Return a number as a cell; empty if it is missing or not finite."""
    if value is None or not math.isfinite(value):
        return Cell("", "")
    return Cell(f"{value:.{digits}f}", value)


def count(value: float) -> str:
    """Return a whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")
