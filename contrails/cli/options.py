"""Options, arguments and checks that several commands share."""

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
    """A path that must not be empty: an unset shell variable would otherwise mean the current folder."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("expected a path, found an empty text; check the shell variable that should hold it", param, ctx)
        return super().convert(value, param, ctx)


def default_recipe(path: Path | None) -> Path:
    """Return the recipe to use: `path`, or jobs/default.toml if the current folder is a clone."""
    if path is not None:
        return path
    if not _DEFAULT_RECIPE.is_file():
        raise click.UsageError(f"expected {_DEFAULT_RECIPE} in {Path.cwd()}, found none; give the path of a recipe")
    return _DEFAULT_RECIPE


def read_recipe(path: Path | None, overrides: tuple[str, ...]) -> tuple[Path, "Recipe"]:
    """Return the path of the recipe, and the recipe with its overrides applied."""
    from contrails.recipe.recipe import load_recipe

    chosen = default_recipe(path)
    return chosen, load_recipe(chosen, overrides)


def choose_device(name: str) -> "torch.device":
    """Return the torch device for --device; `auto` is a GPU if torch finds one, else the CPU.

    Raises:
        NodeError: --device cuda was given and torch finds no GPU; or the GPU has no kernels in this torch.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise NodeError(
            "--device cuda: expected a GPU, torch finds none on this machine; give --device cpu, or use another machine"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda")
    require_kernels(device)
    return device


def find_ensemble(name: str) -> Path:
    """Return the folder of an ensemble: the path `name`, or `aggregate/default` of the run called `name`.

    Raises:
        RunError: there is no such run, or it has no such aggregation; the message says how to make one.
    """
    path = Path(name)
    if (path / "ensemble.json").is_file():
        return path
    run = open_run(name)
    folder, others = run.aggregate("default"), run.aggregations()
    if folder in others:
        return folder
    if others:
        step = f"give the folder of another ensemble of this run, such as {shlex.quote(str(others[0]))}"
    elif any(fold.done.exists() for fold in run.folds()):
        step = f"make it with `contrails aggregate {run.typed}`"
    else:
        step = f"no fold has finished yet: check with `contrails status {run.typed}`, and aggregate it afterwards"
    raise RunError(f"expected an ensemble in {folder}, found none; {step}")


def read_shard(text: str) -> tuple[int, int]:
    """Return (I, N) of `--shard I/N`, such as `2/5`."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"'{text}': expected I/N with I from 1 to N, such as 2/5", param_hint="--shard")
    return int(match[1]), int(match[2])


def read_numbers(text: str, option: str) -> list[int]:
    """Return the numbers in `4`, `0,4` or `0-7`."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match is None:
            raise click.BadParameter(f"'{text}': expected numbers such as 4 or 0,4 or 0-7", param_hint=option)
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(numbers)) != len(numbers) or not numbers:
        raise click.BadParameter(f"'{text}': expected each number once, found one twice", param_hint=option)
    return numbers


def require_picture(path: Path, option: str) -> None:
    """Check that the picture file given for `option` has a known ending and lies in an existing folder."""
    from contrails.inspect.pictures import endings

    if path.suffix[1:].lower() not in endings():
        raise click.BadParameter(
            f"'{path}': expected the file name of a picture, found the ending '{path.suffix}'; "
            f"known endings: {', '.join(endings())}",
            param_hint=option,
        )
    if not path.parent.is_dir():
        raise click.BadParameter(f"'{path}': expected a folder {path.parent}, found none; make it", param_hint=option)


recipe_argument = click.argument("path", metavar="[RECIPE]", required=False, type=FilePath())
name_option = click.option("--name", help="Name of the run; default: the recipe's file name without its ending.")
overrides_option = click.option(
    "-o",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_keys,
    help="Set a key of the recipe, such as train.lr=0.001; KEY= alone restores its default. Can be repeated.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to compute on; auto is the GPU if there is one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def print_outcomes(run: Run, outcomes: dict[str, str], *, as_json: bool) -> None:
    """Print the outcome of a submission for each fold."""
    if as_json:
        click.echo(json.dumps({run.name: {"path": str(run.path), "folds": outcomes}}))
        return
    for key, outcome in outcomes.items():
        click.echo(f"{run.name} fold {key}: {outcome}")
    click.echo(f"next: `contrails status {run.typed}`")
