"""`contrails submission`: look at submission files."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import click


@click.group()
def submission() -> None:
    """Look at submission files."""


@submission.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--sample", type=click.Path(path_type=Path), help="Sample submission: the ids must be the same.")
@click.option("--shape", default="256,256", show_default=True, help="Height and width of a mask in pixels.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def check(path: Path, sample: Path | None, shape: str, as_json: bool) -> None:
    """Decode every row of FILE and summarise it; a wrong row is named by its record (exit code 4).

    \b
    Example:
      contrails submission check submission.csv --sample sample_submission.csv
    """
    from contrails.aggregate.submission import check_submission

    sides = re.fullmatch("([1-9][0-9]*),([1-9][0-9]*)", shape)
    if sides is None:
        raise click.BadParameter(f"'{shape}': expected height,width such as 256,256", param_hint="--shape")
    summary = check_submission(path, (int(sides[1]), int(sides[2])), sample)
    if summary.positive_pixels == 0:
        click.echo("warning: every mask is empty", err=True)
    if summary.positive_pixels == summary.records * int(sides[1]) * int(sides[2]):
        click.echo("warning: every pixel of every mask is positive", err=True)
    if as_json:
        click.echo(json.dumps(asdict(summary)))
        return
    click.echo(f"{path}: valid, {summary.records} records, {summary.empty} empty, {summary.positive_pixels} pixels")
    if summary.positive_pixels:
        click.echo(f"largest: record {summary.largest_record} with {summary.largest_pixels} pixels")
