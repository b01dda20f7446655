"""`contrails submission`: check submission files."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import click

from contrails.cli.options import FilePath


@click.group()
def submission() -> None:
    """Check submission files."""


@submission.command()
@click.argument("path", metavar="FILE", type=FilePath())
@click.option("--sample", type=FilePath(), help="Sample submission; its ids must be the same.")
@click.option("--shape", default="256,256", show_default=True, help="Height,width of all masks in pixels.")
@click.option("--data", type=FilePath(), help="Predicted dataset file; its ids, shapes and convention are used.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def check(path: Path, sample: Path | None, shape: str, data: Path | None, as_json: bool) -> None:
    """Decode every row of FILE and summarise it.

    An invalid row is an error that names its record (exit code 4).

    \b
    Example:
      contrails submission check submission.csv --sample data/demo/raw/sample_submission.csv
      contrails submission check submission.csv --data data/demo/test.h5
    """
    from contrails.aggregate.output.submission import check_submission
    from contrails.dataset.rle import DEFAULT
    from contrails.dataset.store import open_dataset

    sides = re.fullmatch("([1-9][0-9]{0,5}),([1-9][0-9]{0,5})", shape)
    if sides is None:
        raise click.BadParameter(f"'{shape}': expected height,width such as 256,256", param_hint="--shape")
    dataset = None if data is None else open_dataset(data)
    shapes = (int(sides[1]), int(sides[2])) if dataset is None else dataset.whole_shapes
    summary = check_submission(path, shapes, sample, DEFAULT if dataset is None else dataset.convention)
    if summary.positive_pixels == 0:
        click.echo("warning: every mask is empty", err=True)
    elif summary.whole == summary.records:
        click.echo("warning: every pixel of every mask is positive", err=True)
    elif summary.whole + summary.empty == summary.records:
        click.echo(
            f"warning: {summary.whole} masks hold all pixels of their records, the others none, as a classifier's do: "
            "for masks of parts of a record, use segmenters with the classifier as their --gate",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(asdict(summary)))
        return
    click.echo(f"{path}: valid, {summary.records} records, {summary.empty} empty, {summary.positive_pixels} pixels")
    if summary.positive_pixels:
        click.echo(f"largest: record {summary.largest_record} with {summary.largest_pixels} pixels")
