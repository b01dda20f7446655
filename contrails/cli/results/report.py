"""`contrails report`: write a report of a run as one HTML file."""

from pathlib import Path

import click

from contrails.cli.complete import complete_runs
from contrails.cli.options import FilePath
from contrails.cluster.status.overview import overview
from contrails.errors import RunError, StorageError
from contrails.runs.folder import open_run


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=complete_runs)
@click.option("-o", "--out", type=FilePath(), help="HTML file to write; default: report.html in the run folder.")
@click.option("--name", default="default", show_default=True, help="Name of the ensemble's folder in RUN/aggregate.")
@click.option(
    "--records", type=click.IntRange(0, 500), default=60, show_default=True, help="Number of records in the gallery."
)
def report(run_name: str, out: Path | None, name: str, records: int) -> None:
    """Write a report of RUN as one HTML file.

    It shows curves, scores, attempts and pictures, and loads nothing from the network. It can be written while folds
    still train; run the command again to update it. Scores and pictures need an aggregation.

    \b
    Example:
      contrails report default
      contrails report default -o default.html
    """
    from contrails.files import write_atomic
    from contrails.report.page import build_page

    run = open_run(run_name)
    path = (out or run.report).absolute()
    if path.is_dir():
        raise RunError(f"-o {path} is a folder; give the name of the HTML file in it, such as {path / 'report.html'}")
    page = build_page(run, overview([run])[run], run.aggregate(name), records)
    try:
        write_atomic(path, page)
    except StorageError as error:
        raise StorageError(f"{error}; or give -o FILE to write it elsewhere") from error
    click.echo(f"{path} ({len(page.encode()) / 1e6:.1f} MB)")
