"""`contrails evaluate`: score an ensemble on labelled records."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from contrails.cli.complete import complete_runs
from contrails.cli.options import FilePath, choose_device, device_option, find_ensemble, json_option
from contrails.cli.tables import Column, print_table

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 5


@click.command()
@click.argument("name", metavar="ENSEMBLE", shell_complete=complete_runs)
@click.argument("data", type=FilePath())
@click.option("--csv", "csv_path", type=FilePath(dir_okay=False), help="CSV file to write, with one row per record.")
@click.option(
    "--by", type=click.Choice(["group", "time", "size"]), help="Also show the scores of subsets of the records."
)
@device_option
@json_option
def evaluate(name: str, data: Path, csv_path: Path | None, by: str | None, device: str, as_json: bool) -> None:
    """Score ENSEMBLE on the labelled records of DATA.

    ENSEMBLE is the folder of an ensemble, or the name of a run; DATA is a dataset file. Records that a member was
    trained on or selected by are left out, and their number is shown. Scores count pixels; those of a classifier
    (model.task = "classify") count records.

    \b
    Example:
      contrails evaluate default data/demo/validation.h5 --csv records.csv --by size
    """
    import numpy as np

    from contrails.aggregate.ensemble import read_ensemble
    from contrails.aggregate.scores.evaluate import evaluate_ensemble, seen_in_training
    from contrails.dataset.store import open_dataset
    from contrails.errors import DataError
    from contrails.files import write_atomic

    ensemble, dataset = read_ensemble(find_ensemble(name)), open_dataset(data)
    seen = seen_in_training(dataset, ensemble.filelist())
    rows = np.setdiff1d(np.arange(dataset.num_records), seen)
    if not len(rows):
        raise DataError(
            f"expected records that no member has seen in {data}, found none: all {dataset.num_records} were used to "
            "train or to select epochs; give another dataset, or use the out-of-fold scores in ensemble.json"
        )
    result = evaluate_ensemble(ensemble, dataset, rows, choose_device(device))
    if csv_path is not None:
        write_atomic(csv_path, result.table.to_csv(index=False))
    parts = result.by(by) if by else None
    left_out = f"; {len(seen)} that its file list names left out" if len(seen) else ""
    what = f"{len(result.table)} records that nothing was fitted on{left_out}"
    summary = result.summary() | {"records": what, "folds": ensemble.folds, "complete": ensemble.complete}
    if as_json:
        more = {} if parts is None else {"by": parts.to_dict("index")}
        click.echo(json.dumps(_without_nan(summary | more)))
        return
    if not ensemble.complete:
        click.echo(f"partial: {ensemble.folds}")
    click.echo(f"records: {what}")
    by_record = result.scored_by == "record"
    keys = ("tp", "fp", "fn", "tn", "dice", "iou", "precision", "recall", "auc_pr", *(["auc"] if by_record else []))
    shown = {key: summary[key] for key in keys}
    click.echo(f"by {result.scored_by}: ", nl=False)
    click.echo(", ".join(f"{key} {_text(value)}" for key, value in shown.items()))
    if parts is not None:
        _print(f"by {by}", parts[["records", "dice", "iou", "precision", "recall"]].reset_index(names=by or ""))
    if by_record:
        _print("records farthest from the truth", _farthest(result.table).head(_SHOWN))
        return
    columns = ["record_id", "time", "tp", "fp", "fn", "dice"]
    ranked = result.table.dropna(subset="dice").sort_values(["dice", "record_id"])[columns]
    _print("worst records", ranked.head(_SHOWN))
    if len(ranked) > _SHOWN:
        _print("best records", ranked.iloc[_SHOWN:].tail(_SHOWN)[::-1])


def _farthest(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the records of a classifier, largest error first, without records whose pixels are all ignored."""
    table = table[table[["tp", "fp", "fn", "tn"]].sum(axis=1) > 0]
    truth = table["tp"] + table["fn"]
    found = table[["record_id", "time"]].assign(truth=truth, probability=table["mean_probability"])
    order = (found["truth"] - found["probability"]).abs().sort_values(ascending=False, kind="stable").index
    return found.loc[order]


def _print(title: str, frame: "pd.DataFrame") -> None:
    columns = [Column(str(name), whole=True) for name in frame.columns]
    print_table(columns, [list(map(_text, row)) for row in frame.itertuples(index=False)], title)


def _text(value: object) -> str:
    return f"{value:.4f}".removesuffix(".0000") if isinstance(value, float) else str(value)


def _without_nan(value: Any) -> Any:
    """Return a value with NaN replaced by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
