"""`contrails data`: look at dataset files."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from contrails.cli.options import json_option
from contrails.errors import DataError

_path_argument = click.argument("path", metavar="DATA", type=click.Path(path_type=Path))


@click.group()
def data() -> None:
    """Look at dataset files."""


@data.command()
@_path_argument
@json_option
def info(path: Path, as_json: bool) -> None:
    """Show what the dataset file DATA holds.

    \b
    Example:
      contrails data info data/demo/train.h5
    """
    from contrails.data.inspect import describe
    from contrails.data.store import open_dataset

    found = describe(open_dataset(path))
    if as_json:
        click.echo(json.dumps(found))
        return
    bands = found.pop("bands")
    table = Table(show_header=False)
    for key, value in found.items():
        table.add_row(key.replace("_", " "), str(value))
    statistics = Table()
    for heading in ("band", "min K", "mean K", "std K", "max K"):
        statistics.add_column(heading, justify="right")
    for band, values in bands.items():
        statistics.add_row(band, *(f"{value:.2f}" for value in values.values()))
    console = Console()
    console.print(table)
    console.print(statistics)


@data.command()
@_path_argument
def verify(path: Path) -> None:
    """Compare every row of DATA with its digest; damaged records are named (exit code 4).

    \b
    Example:
      contrails data verify data/demo/train.h5
    """
    from contrails.data.inspect import damaged_rows
    from contrails.data.store import open_dataset

    dataset = open_dataset(path)
    damaged = list(damaged_rows(dataset))
    if damaged:
        raise DataError("\n".join([f"{path} is damaged; copy it again, or prepare it again:", *damaged[:20]]))
    click.echo(f"{path}: {dataset.num_records} records, all as written; fingerprint {dataset.fingerprint}")
