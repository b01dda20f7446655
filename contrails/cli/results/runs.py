"""`contrails runs`: list all runs."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click

from contrails.cli.complete import complete_runs
from contrails.cli.options import json_option
from contrails.cli.tables import Column, print_table
from contrails.errors import choices
from contrails.report.log import Entry, read_log, shown
from contrails.runs.folder import all_runs, open_run

_COLUMNS: dict[str, Callable[[Entry], Any]] = {
    "run": lambda entry: entry.name,
    "created": lambda entry: entry.created.replace("T", " "),
    "user": lambda entry: entry.user,
    "kind": lambda entry: entry.kind,
    "folds": lambda entry: entry.folds_done,
    "dice": lambda entry: entry.dice,
    "one_fold": lambda entry: entry.one_fold,
    "best": lambda entry: entry.best_dice,
    "held_out": lambda entry: entry.held_out,
    "leaderboard": lambda entry: entry.leaderboard,
    "gpu_hours": lambda entry: entry.usage.gpu_hours,
    "hours": lambda entry: entry.usage.hours,
    "lost": lambda entry: entry.usage.hours_lost,
    "differs": lambda entry: shown(entry.differs),
    "notes": lambda entry: entry.problem or "; ".join(entry.notes),
}
"""The value of each column; --sort puts the best score first, and other values in ascending order."""
_SCORES = {"dice", "one_fold", "best", "held_out", "leaderboard"}
_LEFT_OUT = (
    *("differs", "one_fold", "best", "leaderboard", "held_out", "kind", "notes"),
    *("gpu_hours", "lost", "hours", "created", "user"),
)
"""Columns that a narrow table leaves out, from the last of these on; run, folds and dice always stay."""
_CONDITION = re.compile(r"([\w.]+)(>=|<=|=|>|<)(.*)")


@click.command()
@click.argument("conditions", metavar="[FILTER]...", shell_complete=complete_runs, nargs=-1)
@click.option("--sort", default="created", show_default=True, help=f"Column to sort by: {', '.join(_COLUMNS)}.")
@click.option(
    "--baseline",
    metavar="RUN",
    shell_complete=complete_runs,
    help="Run to compare with, for runs that do not continue another one; default: the oldest run.",
)
@click.option("--csv", "style", flag_value="csv", help="Print the table as CSV.")
@click.option("--markdown", "style", flag_value="markdown", help="Print the table as Markdown.")
@click.option("--all", "every", is_flag=True, help="Also list runs of --debug, of --overfit and of drills.")
@json_option
def runs(
    conditions: tuple[str, ...], sort: str, baseline: str | None, style: str | None, every: bool, as_json: bool
) -> None:
    """List all runs with scores, hours and changed recipe keys.

    FILTER is a word in a run's name, changed keys or notes, or a condition on a column or a recipe key, such as
    dice>0.6 or model.encoder=resnet34. All filters must match.

    The column dice is the score of the aggregation, out of fold and cross-fitted. one_fold is the score of an
    aggregation of one fold, at the threshold that is best on its own validation records. best is the mean over the
    folds of the score of the best epoch. Scores of a classifier count records.

    \b
    Example:
      contrails runs
      contrails runs train.lr=0.001 'dice>0.6' --sort dice --markdown
    """
    if sort not in _COLUMNS:
        raise click.BadParameter(f"'{sort}': {choices(sort, _COLUMNS)}", param_hint="--sort")
    entries = read_log(all_runs(), open_run(baseline) if baseline else None)
    hidden = [] if every else [entry for entry in entries if entry.kind]
    entries = [entry for entry in entries if every or not entry.kind]
    for condition in conditions:
        _require_known(condition, entries)
        entries = [entry for entry in entries if _holds(entry, condition)]
    entries.sort(key=lambda entry: _order(_COLUMNS[sort](entry), best_first=sort in _SCORES))
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries]))
    elif style == "csv":
        click.echo(_csv(entries), nl=False)
    elif style == "markdown":
        click.echo(_markdown(entries))
    else:
        _print(entries)
        if hidden:
            click.echo(
                f"not listed: {len(hidden)} of --debug, --overfit or drills; `contrails runs --all` lists all", err=True
            )


def _holds(entry: Entry, condition: str) -> bool:
    match = _CONDITION.fullmatch(condition)
    if match is None:
        text = " ".join([entry.name, shown(entry.differs), *entry.notes]).lower()
        return condition.lower() in text
    name, sign, wanted = match.groups()
    found = _COLUMNS[name](entry) if name in _COLUMNS else entry.recipe.get(_key(entry, name))
    if sign == "=":
        number = _number(wanted)
        return shown({"": found}) == f"={wanted}" or (number is not None and _number(found) == number)
    left, right = _number(found), _number(wanted)
    if right is None:
        raise click.UsageError(f"filter '{condition}': expected a number after {sign}, found '{wanted}'")
    if left is None:
        return False
    return {">": left > right, "<": left < right, ">=": left >= right, "<=": left <= right}[sign]


def _require_known(condition: str, entries: Sequence[Entry]) -> None:
    match = _CONDITION.fullmatch(condition)
    if match and entries and match[1] not in _COLUMNS and not any(_key(entry, match[1]) for entry in entries):
        raise click.UsageError(f"filter '{condition}': no such column or key; {choices(match[1], _COLUMNS)}")


def _key(entry: Entry, name: str) -> str:
    """Return the recipe key that is, or ends with, `name`; empty if there is none."""
    return name if name in entry.recipe else next((key for key in entry.recipe if key.endswith(f".{name}")), "")


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _order(value: Any, *, best_first: bool) -> tuple[bool, Any]:
    """Return the sort key of a value; missing values come last."""
    missing = value is None or value == ""
    return missing, 0 if missing else -value if best_first else value


def _texts(entry: Entry) -> list[str]:
    found = {name: column(entry) for name, column in _COLUMNS.items()}
    found["folds"] = f"{entry.folds_done}/{entry.folds}"
    found["differs"] = found["differs"] or ("" if entry.compared_to else "(baseline)")
    return [_cell(entry, name, value) for name, value in found.items()]


def _cell(entry: Entry, name: str, value: Any) -> str:
    if isinstance(value, float):
        digits = 2 if name in ("gpu_hours", "hours", "lost") else 4
        return f"{value:.{digits}f}{_counted(entry, name)}"
    return "" if value is None else str(value)


def _counted(entry: Entry, name: str) -> str:
    """Return " by record" for a Dice score that counts records, else nothing."""
    return " by record" if entry.scored_by == "record" and name in ("dice", "one_fold", "best", "held_out") else ""


def _csv(entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for entry in entries:
        values = [column(entry) for column in _COLUMNS.values()]
        writer.writerow(["" if value is None else value for value in values])
    return text.getvalue()


def _markdown(entries: Sequence[Entry]) -> str:
    rows = [list(_COLUMNS), ["---"] * len(_COLUMNS), *map(_texts, entries)]
    lines = []
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _print(entries: Sequence[Entry]) -> None:
    if not entries:
        click.echo("no runs to list; start one with `contrails submit --folds 5`, or change the filters")
        return
    rows = [_texts(entry) for entry in entries]
    used = [index for index, name in enumerate(_COLUMNS) if name == "run" or any(row[index] for row in rows)]
    columns = [_column(name) for name in _COLUMNS]
    print_table([columns[index] for index in used], [[row[index] for index in used] for row in rows])


def _column(name: str) -> Column:
    words = name in ("run", "created", "user", "kind", "differs", "notes")
    rank = _LEFT_OUT.index(name) + 1 if name in _LEFT_OUT else 0
    return Column(name.replace("_", " "), rank, right=not words, whole=name in ("run", "created", "user"))
