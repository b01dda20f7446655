"""Options and arguments that several commands share."""

from pathlib import Path

import click

from contrails.config import Recipe, load_recipe

_DEFAULT_RECIPE = Path("jobs/default.toml")


def default_recipe(path: Path | None) -> Path:
    """Return the recipe to use: `path`, or jobs/default.toml of the clone that is the current folder."""
    if path is not None:
        return path
    if not _DEFAULT_RECIPE.is_file():
        raise click.UsageError(f"there is no {_DEFAULT_RECIPE} in {Path.cwd()}; give the path of a recipe")
    return _DEFAULT_RECIPE


def read_recipe(path: Path | None, overrides: tuple[str, ...]) -> tuple[Path, Recipe]:
    """Return the path of the recipe and the recipe with its overrides."""
    chosen = default_recipe(path)
    return chosen, load_recipe(chosen, overrides)


recipe_argument = click.argument("path", metavar="[RECIPE]", required=False, type=click.Path(path_type=Path))
name_option = click.option("--name", help="Name of the run; default: the recipe's file name.")
overrides_option = click.option(
    "-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
