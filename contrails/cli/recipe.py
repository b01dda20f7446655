"""`contrails recipe`: what a recipe may say, and what one says with its defaults filled in."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contrails.cli.options import json_option, overrides_option, read_recipe, recipe_argument
from contrails.config import Recipe, keys, to_toml


@click.group()
def recipe() -> None:
    """Look at recipes."""


@recipe.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON Schema.")
def schema(as_json: bool) -> None:
    """Print every key of a recipe with its type and range, default and meaning.

    \b
    Example:
      contrails recipe schema
    """
    if as_json:
        click.echo(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    table = Table()
    for heading in ("key", "type", "default", "meaning"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "key")
    for name, field in keys(Recipe):
        default = "(required)" if field.is_required() else _shown(field.default)
        table.add_row(name, escape(_type_name(field)), escape(default), field.description)
    Console().print(table)


@recipe.command()
@recipe_argument
@overrides_option
@json_option
def show(path: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE (default: jobs/default.toml) and print it with the defaults filled in.

    \b
    Example:
      contrails recipe show jobs/default.toml -o train.lr=3e-4
    """
    _, loaded = read_recipe(path, overrides)
    click.echo(loaded.model_dump_json(indent=2) if as_json else to_toml(loaded), nl=as_json)


def _shown(value: Any) -> str:
    return "" if value is None else json.dumps(value, default=list)


def _type_name(field: FieldInfo) -> str:
    """Return a type with its range, such as `float > 0`, and the choices of a literal as such."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return " | ".join(json.dumps(choice) for choice in get_args(annotation))
    name = annotation.__name__ if type(annotation) is type else str(annotation)
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, attribute)}"
        for limit in field.metadata
        for attribute, sign in signs.items()
        if hasattr(limit, attribute)
    ]
    return " ".join([name, ", ".join(limits)]).strip()
