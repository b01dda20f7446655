"""`contrails compare`: compare two runs."""

import json
from dataclasses import asdict
from typing import Any

import click

from contrails.cli.complete import complete_runs
from contrails.cli.options import json_option
from contrails.cli.tables import Column, new_console, print_table
from contrails.errors import DataError
from contrails.report.log import Entry, differences, read_log
from contrails.report.naming import dice_by
from contrails.report.spark import sparkline
from contrails.runs.folder import Run, open_run
from contrails.runs.metrics import fold_metrics

_CURVES = {"val/dice": "validation Dice", "val/loss": "validation loss"}


@click.command()
@click.argument("first", metavar="A", shell_complete=complete_runs)
@click.argument("second", metavar="B", shell_complete=complete_runs)
@click.option("--name", default="default", show_default=True, help="Name of the ensemble's folder in both runs.")
@json_option
def compare(first: str, second: str, name: str, as_json: bool) -> None:
    """Compare two runs: recipes, curves and scores.

    Also tests whether the difference in Dice is significant. Both runs need an aggregation: a paired bootstrap over
    groups of their out-of-fold predictions gives the 95% interval of the difference. The threshold of each fold is
    chosen on the other folds.

    \b
    Example:
      contrails compare default bright
    """
    runs = [open_run(first), open_run(second)]
    if runs[0] == runs[1]:
        raise click.UsageError(f"expected two runs, found one: {first} and {second} are the same; give another name")
    entries = read_log(runs)
    curves = {key: [_mean_curve(run, key) for run in runs] for key in _CURVES}
    paired, why_not = _paired(runs, name)
    changed = {key: [entry.recipe.get(key) for entry in entries] for key in differences(*(e.recipe for e in entries))}
    if as_json:
        content = {"runs": [asdict(entry) for entry in entries], "recipe": changed, "curves": curves}
        click.echo(json.dumps(content | {"paired": paired, "paired_missing": why_not}))
        return
    rows: list[list[str] | None] = [[key, *map(_text, values)] for key, values in changed.items()]
    rows.append(None)
    for key, title in _CURVES.items():
        units = [" by record" if key == "val/dice" and entry.scored_by == "record" else "" for entry in entries]
        rows.append([title, *(f"{_curve(values)}{unit}" for values, unit in zip(curves[key], units, strict=True))])
    rows += [None, *([title, *scores] for title, scores in _scores(entries).items())]
    print_table([Column(heading) for heading in ("", *(run.name for run in runs))], rows)
    console = new_console()
    console.print(_verdict(paired, runs) if paired else f"no paired comparison: {why_not}", soft_wrap=True)


def _paired(runs: list[Run], name: str) -> tuple[dict[str, Any] | None, str | None]:
    """Return the comparison of the runs' out-of-fold predictions, or the reason why there is none."""
    from contrails.aggregate.ensemble import read_description
    from contrails.aggregate.scores.paired import compare_paired
    from contrails.aggregate.stored import stored_out_of_fold

    scored = []
    for run in runs:
        folder = run.aggregate(name)
        figures = read_description(folder)
        if figures is None:
            return None, f"{run.name} has no aggregation of this version; run `contrails aggregate {run.typed}`"
        try:
            scored.append(stored_out_of_fold(run, folder, figures))
        except DataError as error:
            return None, f"{run.name}: {error}"
    try:
        found = compare_paired(*scored)
    except DataError as error:
        return None, str(error)
    return asdict(found) | {"is_real": found.is_real}, None


def _verdict(paired: dict[str, Any], runs: list[Run]) -> str:
    low, high = paired["interval"]
    better, worse = (runs[1], runs[0]) if paired["difference"] > 0 else (runs[0], runs[1])
    answer = f"{better.name} is better than {worse.name}" if paired["is_real"] else "the difference may be chance"
    name = dice_by(paired["scored_by"])
    ahead = f"{runs[1].name} is ahead in {100 * paired['second_better']:.1f}% of the bootstrap draws"
    return (
        f"{answer}: {name} {paired['first']:.4f} and {paired['second']:.4f}, difference {paired['difference']:+.4f} "
        f"(95% interval {low:+.4f} to {high:+.4f}); {ahead}. Of "
        f"{paired['num_records']} records in {paired['num_groups']} groups, out of fold, without post-processing; "
        "epochs were selected on these records, so both scores are optimistic."
    )


def _mean_curve(run: Run, key: str) -> list[float]:
    """Return the mean of a metric over the folds, up to the last epoch that all folds with this metric have."""
    curves = []
    for fold in run.folds():
        curve = [row[key] for row in fold_metrics(fold) if isinstance(row.get(key), float | int)]
        if curve:
            curves.append(curve)
    return [sum(values) / len(values) for values in zip(*curves, strict=False)]


def _curve(values: list[float]) -> str:
    return f"{sparkline(values)} {values[0]:.4f} → {values[-1]:.4f}" if values else ""


def _scores(entries: list[Entry]) -> dict[str, list[str]]:
    rows = {
        "folds done": [f"{entry.folds_done} of {entry.folds}" for entry in entries],
        "Dice out of fold": [_dice(entry, entry.dice) for entry in entries],
        "Dice of one fold's own validation": [_dice(entry, entry.one_fold) for entry in entries],
        "Dice held out": [_dice(entry, entry.held_out) for entry in entries],
        "mean best Dice": [_dice(entry, entry.best_dice) for entry in entries],
        "leaderboard": [_text(entry.leaderboard) for entry in entries],
        "hours": [f"{entry.usage.hours:.2f}" for entry in entries],
    }
    return {title: values for title, values in rows.items() if any(values)}


def _dice(entry: Entry, value: float | None) -> str:
    return f"{_text(value)} by record" if value is not None and entry.scored_by == "record" else _text(value)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
