"""`contrails recipe`: print the keys of a recipe, or a recipe with its defaults filled in."""

import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
import tomli_w
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from contrails.cli.options import FilePath, json_option, overrides_option, read_recipe, recipe_argument, require_picture
from contrails.recipe.base import Section
from contrails.recipe.reading import keys, tables_of
from contrails.recipe.recipe import Recipe

_USUAL_SIDE = 256
"""Side of the OpenContrails records, in pixels."""


@click.group()
def recipe() -> None:
    """Show recipes with their defaults, and the keys of a recipe."""


@recipe.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON Schema.")
def schema(as_json: bool) -> None:
    """Print every key of a recipe: type, range, default, meaning.

    \b
    Example:
      contrails recipe schema
    """
    if as_json:
        click.echo(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    console = Console(highlight=False)
    for name, field in keys(Recipe):
        default = "required" if field.is_required() else f"default {_shown(field.default)}"
        console.print(f"[bold]{escape(name)}[/]  {escape(_type_name(field))}, {escape(default)}")
        console.print(Padding(escape(field.description or ""), (0, 0, 0, 4)))


@recipe.command()
@recipe_argument
@overrides_option
@json_option
@click.option(
    "--augment",
    "sheet",
    type=FilePath(dir_okay=False),
    help="Write a picture of a few augmented records of data.dataset to this file.",
)
@click.option(
    "--model", "with_model", is_flag=True, help="Print the layers, parameters, multiply-adds and memory of the network."
)
@click.option(
    "--side",
    type=click.IntRange(1, 65536),
    help="Side of a record for --model, in pixels; default: that of the dataset if it exists, else data.size or 256.",
)
def show(
    path: Path | None, overrides: tuple[str, ...], as_json: bool, sheet: Path | None, with_model: bool, side: int | None
) -> None:
    """Check RECIPE and print it with the defaults filled in.

    RECIPE defaults to jobs/default.toml. Empty keys are printed as comments. --model and --augment show the network or
    augmented records instead.

    `contrails submit --dry-run` also checks what depends on the data, such as bands, frames and the size of a crop.

    \b
    Example:
      contrails recipe show jobs/default.toml -o train.lr=3e-4
      contrails recipe show jobs/default.toml --model --side 128
      contrails recipe show jobs/default.toml -o augment.affine.probability=0.5 --augment sheet.png
    """
    from contrails.inputs.composites import check_composite
    from contrails.models.names import require_known, require_useful

    _, loaded = read_recipe(path, overrides)
    check_composite(loaded.data)
    require_known(loaded)
    require_useful(loaded)
    if sheet is not None:
        require_picture(sheet, "--augment")
    if with_model:
        _show_model(loaded, side, as_json=as_json)
    elif sheet is None:
        click.echo(loaded.model_dump_json(indent=2) if as_json else _toml(loaded), nl=as_json)
    if sheet is not None:
        from contrails.dataset.store import open_dataset
        from contrails.inspect.contact import plot_augmentation

        click.echo(f"{sheet}: {plot_augmentation(open_dataset(loaded.data.dataset), loaded, sheet)} records", err=True)


def _show_model(recipe: Recipe, side: int | None, *, as_json: bool) -> None:
    """Print the size of a recipe's network for records of its dataset, or of GOES if the dataset does not exist."""
    import torch

    from contrails.dataset.store import open_dataset
    from contrails.inputs.composites import channels_of
    from contrails.models.build import build_model
    from contrails.models.sizes import require_size
    from contrails.models.summary import size_of, summary

    dataset = open_dataset(recipe.data.dataset) if recipe.data.dataset.is_file() else None
    bands = dataset.band_names if dataset is not None else [f"b{band:02d}" for band in range(8, 17)]
    channels, frames = len(channels_of(recipe.data, bands)), max(len(recipe.data.frames), 1)
    apart = recipe.model.temporal.merge != "channels"
    known = (recipe.data.size or _USUAL_SIDE,) * 2 if dataset is None else dataset.votes.shape[1:]
    height, width = (side, side) if side else (recipe.data.crop,) * 2 if recipe.data.crop else known
    require_size(recipe, height, width)
    shape = (frames, channels, height, width) if apart else (frames * channels, height, width)
    with torch.device("meta"):  # on the device "meta" nothing is allocated or computed
        model = build_model(recipe, shape[-3]).to("meta")  # smp creates some weights on the CPU despite the context
    size = size_of(model, recipe, shape)
    if as_json:
        click.echo(json.dumps(size))
        return
    click.echo(summary(model, (1, *shape)))
    click.echo(f"input per record: {' x '.join(map(str, shape))}")
    click.echo(f"parameters: {size['parameters'] / 1e6:.2f} M")
    click.echo(f"multiply-adds per record: {size['macs'] / 1e9:.2f} G")
    click.echo(f"memory of a training step: about {size['memory_bytes'] / 1e9:.2f} GB, without the kernels' workspace")


def _toml(section: Section, table: str = "") -> str:
    """Return a section as TOML; a key without a value is a comment, as TOML has no null."""
    values, given = section.model_dump(mode="json"), section.model_dump(mode="json", exclude_none=True)
    tables = {name: value for name, value in section if isinstance(value, Section)}
    lines = [
        f"# {name} =\n" if value is None else _line(name, given[name])
        for name, value in values.items()
        if name not in tables
    ]
    below = [f"\n[{table}{name}]\n{_toml(value, f'{table}{name}.')}" for name, value in tables.items()]
    return "".join([*lines, *below])


def _line(name: str, value: Any) -> str:
    """Return the line of a key; a table is written inline, because a header would capture the keys that follow."""
    if not isinstance(value, dict):
        return tomli_w.dumps({name: value})
    entries = [tomli_w.dumps({key: entry}).strip() for key, entry in value.items()]
    return f"{name} = {{{', '.join(entries)}}}\n"


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Section) else list(value)


def _type_name(field: FieldInfo) -> str:
    """Return the type of a key with its range, such as `float > 0`; for a literal, its choices."""
    if tables_of(field):
        return "list of tables"
    name = _annotation_name(field.annotation)
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = []
    for limit in field.metadata:
        for attribute, sign in signs.items():
            if hasattr(limit, attribute):
                limits.append(f"{sign} {getattr(limit, attribute)}")
    return " ".join([name, ", ".join(limits)]).strip()


def _annotation_name(annotation: Any) -> str:
    if get_origin(annotation) is dict:
        return "table"
    if get_origin(annotation) is Literal:
        return " | ".join(json.dumps(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(_annotation_name(one) for one in get_args(annotation))
    if annotation is NoneType:
        return "none"
    return annotation.__name__ if type(annotation) is type else str(annotation)
