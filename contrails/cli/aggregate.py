"""`contrails aggregate`: finished folds to an ensemble, its scores and a submission."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from contrails.errors import DataError
from contrails.runs import open_run

if TYPE_CHECKING:
    from contrails.aggregate.ensemble import Ensemble


@click.command()
@click.argument("run_name", metavar="RUN")
@click.option("--data", type=click.Path(path_type=Path), help="Dataset file to predict: writes submission.csv.")
@click.option("--sample", type=click.Path(path_type=Path), help="The competition's sample submission: fixes the ids.")
@click.option("--name", default="default", show_default=True, help="Name of the folder under RUN/aggregate.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def aggregate(run_name: str, data: Path | None, sample: Path | None, name: str, device: str, as_json: bool) -> None:
    """Merge the finished folds of RUN into an ensemble and, with --data, write its submission.

    The threshold is fitted on out-of-fold predictions. Running it again after more folds are finished makes it anew.
    A submission of another dataset is never overwritten: give --name.

    \b
    Example:
      contrails aggregate default --data data/demo/test.h5 --sample data/demo/raw/sample_submission.csv
    """
    import torch

    from contrails.aggregate.ensemble import make_ensemble
    from contrails.aggregate.predict import predict_masks
    from contrails.aggregate.submission import sample_ids, write_submission
    from contrails.data.store import open_dataset

    chosen = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    dataset = open_dataset(data) if data is not None else None
    if dataset is not None and sample is not None:
        sample_ids(sample, set(dataset.record_ids))  # before hours of prediction
    run = open_run(run_name)
    if dataset is not None:
        _require_same_records(run.aggregate(name) / "submission.csv", set(dataset.record_ids))
    ensemble = make_ensemble(run, name, chosen)
    submission = None
    if dataset is not None:
        submission = ensemble.path / "submission.csv"
        write_submission(submission, predict_masks(ensemble, dataset, chosen), sample)
    if as_json:
        result = {"ensemble": str(ensemble.path), "threshold": ensemble.threshold, "complete": ensemble.complete}
        click.echo(json.dumps(result | {"scores": ensemble.scores, "submission": submission and str(submission)}))
    else:
        _print(ensemble, submission)


def _require_same_records(submission: Path, record_ids: set[str]) -> None:
    """Check that a submission which is there already is of these records, so that it may be made anew.

    Raises:
        DataError: it is of others.
    """
    from contrails.aggregate.submission import sample_ids

    if not submission.exists():
        return
    try:
        sample_ids(submission, record_ids)
    except DataError as error:
        raise DataError(
            f"{submission} is the submission of another dataset, with other records; "
            "give --name for one of its own, or remove it"
        ) from error


def _print(ensemble: "Ensemble", submission: Path | None) -> None:
    console = Console()
    table = Table(title="Members" if ensemble.complete else "Members (partial: not every fold is finished)")
    for heading in ("fold", "epoch", "validation Dice"):
        table.add_column(heading, justify="right")
    for member in ensemble.members:
        score = "unscored" if member.dice is None else f"{member.dice:.4f}"
        table.add_row(member.fold, str(member.epoch), score)
    console.print(table)
    if "dice_cross_fitted" in ensemble.scores:
        console.print(f"out-of-fold Dice, threshold cross-fitted: {ensemble.scores['dice_cross_fitted']:.4f}")
    console.print(f"scores:     {ensemble.scores['records']}")
    console.print(f"threshold:  {ensemble.threshold:.4f}")
    console.print(f"ensemble:   {ensemble.path}", soft_wrap=True)
    if submission is not None:
        console.print(f"submission: {submission}", soft_wrap=True)
