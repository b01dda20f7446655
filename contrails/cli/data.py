"""`contrails data`: look at dataset files, join their shards."""

import json
import logging
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from contrails.cli.options import json_option
from contrails.errors import DataError

_path_argument = click.argument("path", metavar="DATA", type=click.Path(path_type=Path))


@click.group()
def data() -> None:
    """Look at dataset files, join their shards."""


@data.command()
@_path_argument
@json_option
@click.option(
    "--plot",
    metavar="FILE.png",
    type=click.Path(path_type=Path),
    help="Draw up to 12 records there, positive ones first.",
)
def info(path: Path, as_json: bool, plot: Path | None) -> None:
    """Show what the dataset file DATA holds.

    \b
    Example:
      contrails data info data/demo/train.h5
      contrails data info data/demo/train.h5 --plot train.png
    """
    from contrails.data.info import describe
    from contrails.data.store import open_dataset

    if plot is not None:
        _require_picture(plot)
    dataset = open_dataset(path)
    found = describe(dataset)
    if plot is not None:
        from contrails.data.pictures import plot_samples

        click.echo(f"{plot}: {plot_samples(dataset, plot)} records", err=True)
    if as_json:
        click.echo(json.dumps(found))
        return
    bands = found.pop("bands")
    table = Table(show_header=False)
    for key, value in _readable(found).items():
        table.add_row(key.replace("_", " "), value)
    statistics = Table()
    for heading in ("band", "min K", "mean K", "std K", "max K"):
        statistics.add_column(heading, justify="right")
    for band, values in bands.items():
        statistics.add_row(band, *(f"{value:.2f}" for value in values.values()))
    console = Console()
    console.print(table)
    console.print(statistics)


def _readable(found: dict[str, Any]) -> dict[str, str]:
    """Return what `describe` found as a person reads it."""
    share = found["positive_share"]
    texts = {key: str(value) for key, value in found.items()} | {
        "bytes": f"{found['bytes'] / 1e6:.1f} MB",
        "fingerprint": f"{found['fingerprint'][:12]} (in full: --json)",
        "shape": ", ".join(f"{axis} {count}" for axis, count in found["shape"].items()),
        "frames": ", ".join(map(str, found["frames"])),
        "annotators": ", ".join(map(str, found["annotators"])),
        "positive_share": "" if share is None else f"{100 * share:.3g} % of the labelled pixels",
    }
    if share is None:
        texts |= dict.fromkeys(("annotators", "positive_records", "positive_share"), "unlabelled")
    return {"size" if key == "bytes" else key: text for key, text in texts.items()}


@data.command()
@_path_argument
def verify(path: Path) -> None:
    """Compare every row of DATA with its digest; damaged records are named (exit code 4).

    \b
    Example:
      contrails data verify data/demo/train.h5
    """
    from contrails.data.store import open_dataset
    from contrails.data.verify import damaged_rows

    dataset = open_dataset(path)
    damaged = list(damaged_rows(dataset))
    if damaged:
        raise DataError("\n".join([f"{path} is damaged; copy it again, or prepare it again:", *damaged[:20]]))
    click.echo(f"{path}: {dataset.num_records} records, all as written; fingerprint {dataset.fingerprint}")


@data.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def join(out: Path) -> None:
    """Write the dataset file OUT from all its shards, which lie beside it.

    They are made with `contrails prepare RAW OUT --shard I/N`, on any nodes. OUT holds the same bytes as if one call
    had made it; a shard that is missing, damaged or of other records is named (exit code 4).

    \b
    Example:
      contrails prepare data/demo/raw data/demo/train.h5 --shard 1/2
      contrails prepare data/demo/raw data/demo/train.h5 --shard 2/2
      contrails data join data/demo/train.h5
    """
    from contrails.data.join import join as join_shards
    from contrails.data.layout import shard_path

    logging.basicConfig(format="%(levelname)s: %(message)s")
    joined = join_shards(out)
    what = f"{out}: {joined.num_records} records of {joined.num_shards} shards, {out.stat().st_size / 1e6:.1f} MB"
    click.echo(what if joined.made else f"{what}, complete already: nothing to do")
    first, last = (shard_path(out, index, joined.num_shards) for index in (1, joined.num_shards))
    click.echo(f"the shards can be removed: {first} to {last.name}")


def _require_picture(path: Path) -> None:
    from contrails.data.pictures import endings

    if path.suffix[1:].lower() not in endings():
        raise click.BadParameter(
            f"'{path}': expected the ending of a picture, found '{path.suffix}'; known: {', '.join(endings())}",
            param_hint="--plot",
        )
    if not path.parent.is_dir():
        raise click.BadParameter(f"'{path}': there is no folder {path.parent}; make it first", param_hint="--plot")
