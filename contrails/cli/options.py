"""Options and arguments that several commands share."""

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from contrails.cli.complete import complete_keys
from contrails.errors import NodeError, RunError
from contrails.gpu import require_kernels
from contrails.runs.folder import Run, open_run

if TYPE_CHECKING:
    import torch

    from contrails.recipe.recipe import Recipe

_DEFAULT_RECIPE = Path("jobs/default.toml")


class FilePath(click.Path):
    """A path; an empty one is that of a shell variable that was not set, and would stand for the current folder."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("expected a path, found an empty text", param, ctx)
        return super().convert(value, param, ctx)


def default_recipe(path: Path | None) -> Path:
    """Return the recipe to use: `path`, or jobs/default.toml of the clone that is the current folder."""
    if path is not None:
        return path
    if not _DEFAULT_RECIPE.is_file():
        raise click.UsageError(f"there is no {_DEFAULT_RECIPE} in {Path.cwd()}; give the path of a recipe")
    return _DEFAULT_RECIPE


def read_recipe(path: Path | None, overrides: tuple[str, ...]) -> tuple[Path, "Recipe"]:
    """Return the path of the recipe and the recipe with its overrides."""
    from contrails.recipe.recipe import load_recipe

    chosen = default_recipe(path)
    return chosen, load_recipe(chosen, overrides)


def choose_device(name: str) -> "torch.device":
    """Return the device called `name`; auto is a GPU where torch finds one.

    Raises:
        NodeError: a GPU was asked for and torch finds none, or has no kernels for it.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise NodeError("--device cuda: torch finds no GPU on this machine; give --device cpu, or go to another")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda")
    require_kernels(device)
    return device


def find_ensemble(name: str) -> Path:
    """Return the folder of an ensemble: the path `name`, or aggregate/default of the run `name`.

    Raises:
        RunError: there is no such run either, or the run has no such aggregation; what comes next is said.
    """
    path = Path(name)
    if (path / "ensemble.json").is_file():
        return path
    run = open_run(name)
    folder, others = run.aggregate("default"), run.aggregations()
    if folder in others:
        return folder
    if others:
        step = f"give the folder of the one that you want, such as {shlex.quote(str(others[0]))}"
    elif any(fold.done.exists() for fold in run.folds()):
        step = f"make it with `contrails aggregate {run.typed}`"
    else:
        step = f"no fold of it is finished yet: look with `contrails status {run.typed}`, then aggregate it"
    raise RunError(f"expected an ensemble in {folder}, found none; {step}")


def read_shard(text: str) -> tuple[int, int]:
    """Read a --shard such as `2/5`."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"'{text}': expected I/N with I from 1 to N, such as 2/5", param_hint="--shard")
    return int(match[1]), int(match[2])


def read_numbers(text: str, option: str) -> list[int]:
    """Read `4`, `0,4` or `0-7`."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match is None:
            raise click.BadParameter(f"'{text}': expected numbers such as 4 or 0,4 or 0-7", param_hint=option)
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(numbers)) != len(numbers) or not numbers:
        raise click.BadParameter(f"'{text}': expected each number once", param_hint=option)
    return numbers


def require_picture(path: Path, option: str) -> None:
    """Check that the picture that `option` names can be written."""
    from contrails.inspect.pictures import endings

    if path.suffix[1:].lower() not in endings():
        raise click.BadParameter(
            f"'{path}': expected the ending of a picture, found '{path.suffix}'; known: {', '.join(endings())}",
            param_hint=option,
        )
    if not path.parent.is_dir():
        raise click.BadParameter(f"'{path}': there is no folder {path.parent}; make it first", param_hint=option)


recipe_argument = click.argument("path", metavar="[RECIPE]", required=False, type=FilePath())
name_option = click.option("--name", help="Name of the run; default: the recipe's file name.")
overrides_option = click.option(
    "-o",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_keys,
    help="Change a key of the recipe; KEY= goes back to its default.",
)
device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_outcomes(run: Run, outcomes: dict[str, str], *, as_json: bool) -> None:
    """Print what happened to each fold of a run that was submitted."""
    if as_json:
        click.echo(json.dumps({run.name: {"path": str(run.path), "folds": outcomes}}))
        return
    for key, outcome in outcomes.items():
        click.echo(f"{run.name} fold {key}: {outcome}")
    click.echo(f"next: `contrails status {run.typed}`")
