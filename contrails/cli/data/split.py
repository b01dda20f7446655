"""`contrails split`: assign records to folds, or check a file list for leaks."""

import json
import shlex
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contrails.cli.options import FilePath
from contrails.errors import DataError

if TYPE_CHECKING:
    from contrails.folds.filelists import FileList

_SHOWN_LEAKS = 10


@click.command()
@click.argument("data", type=FilePath())
@click.option("--folds", "num_folds", type=int, default=5, show_default=True, help="Number of folds, at least 2.")
@click.option("-o", "--out", type=FilePath(), help="File list (CSV) to write.")
@click.option(
    "--hold-out",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    show_default=True,
    help="Fraction of the labelled records withheld from every fold.",
)
@click.option(
    "--window-hours",
    type=click.FloatRange(0),
    default=24.0,
    show_default=True,
    help="Records of one location closer than this many hours stay in one fold.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the choice between equally balanced assignments.",
)
@click.option(
    "--given",
    is_flag=True,
    help="Use the lists that came with the scenes: fold 0 validates on val, every fold trains on train.",
)
@click.option("--check", type=FilePath(), help="Check this file list for leaks between folds; write none.")
@click.option("--json", "as_json", is_flag=True, help="Print folds and leaks as JSON.")
def split(
    data: Path,
    num_folds: int,
    out: Path | None,
    hold_out: float,
    window_hours: float,
    seed: int,
    given: bool,
    check: Path | None,
    as_json: bool,
) -> None:
    """Assign the records of DATA to folds.

    The folds are balanced by positive records first and by all records second. Records of one location that are closer
    than --window-hours form a group, and a group is never split between folds. Records without a label are held out,
    and so are scenes on a list of test scenes.

    With --check, the exit code is 4 if the file list leaks between folds or does not name exactly the records of DATA.

    \b
    Example:
      contrails split data/demo/train.h5 --folds 5 -o filelists/demo.csv
      contrails split data/clouds.h5 --given -o filelists/clouds.csv
      contrails split data/demo/train.h5 --check filelists/from-a-colleague.csv
    """
    import numpy as np

    from contrails.dataset.store import open_dataset
    from contrails.folds import filelists
    from contrails.sources.records import without_location

    if (out is None) == (check is None):
        raise click.UsageError("give either -o FILE to write a file list, or --check FILE to check one")
    dataset = open_dataset(data)
    groups = filelists.time_groups(dataset.groups, dataset.timestamps, window_hours)
    subsets = np.array([dataset.subset(row) for row in range(dataset.num_records)])
    labelled = dataset.annotators > 0
    positive = dataset.positive_pixels(range(dataset.num_records)) > 0
    found = []
    if check is not None:
        path, filelist = check, filelists.read_filelist(check)
        filelists.require_match(filelist, dataset.record_ids, str(check))
        known = {dataset.record_ids[row]: groups[row] for row in np.flatnonzero(labelled)}
        found = list(filelists.leaks(filelist, known))
    else:
        assert out is not None
        path = out
        if given:
            filelist = filelists.given_folds(dataset.record_ids, groups, subsets.tolist(), labelled)
            command = shlex.join(["contrails", "split", str(data), "--given", "-o", str(out)])
        else:
            filelist = filelists.make_folds(
                dataset.record_ids, groups, positive, labelled & (subsets != "test"), num_folds,
                held_out=hold_out, seed=seed, timed=bool(np.isfinite(dataset.timestamps).any()),
            )  # fmt: skip
            command = _command(data, num_folds, out, hold_out, window_hours, seed)
        made = filelists.write_filelist(out, filelist, command)
        click.echo(f"{out}: {'written' if made else 'an equal file list exists already'}", err=True)
    table = _table(filelist, {dataset.record_ids[row] for row in np.flatnonzero(positive)})
    # only GOES records have a location and a time, which can be unknown; others have groups from `contrails prepare`
    unknown = (
        () if dataset.scenes else without_location(dataset.record_ids, dataset.groups, dataset.timestamps.tolist())
    )
    _warn(table, int(np.count_nonzero(~labelled)), len(unknown))
    _print(table, found, as_json)
    if check is not None and not found:
        click.echo(f"{check}: no leaks", err=True)
    if found:
        more = [f"and {len(found) - _SHOWN_LEAKS} more"] if len(found) > _SHOWN_LEAKS else []
        remedy = f"make a file list without leaks: `contrails split {shlex.quote(str(data))} -o NEW.csv`"
        raise DataError("\n".join([f"{path} leaks between folds:", *found[:_SHOWN_LEAKS], *more, remedy]))


def _command(data: Path, num_folds: int, out: Path, hold_out: float, window_hours: float, seed: int) -> str:
    options = [f"--folds={num_folds}", f"--hold-out={hold_out:g}", f"--window-hours={window_hours:g}", f"--seed={seed}"]
    return shlex.join(["contrails", "split", str(data), *options, "-o", str(out)])


def _table(filelist: "FileList", positive: Set[str]) -> list[dict[str, int]]:
    """Return a row of counts for each fold, 0 to K-1 first."""
    rows = []
    for fold in sorted(set(filelist.folds), key=lambda fold: (fold < 0, abs(fold))):
        members = [row for row, of in enumerate(filelist.folds) if of == fold]
        rows.append(
            {
                "fold": fold,
                "records": len(members),
                "positive": sum(filelist.record_ids[row] in positive for row in members),
                "groups": len({filelist.groups[row] for row in members}),
            }
        )
    return rows


def _warn(table: list[dict[str, int]], num_unlabelled: int, num_unknown: int) -> None:
    if num_unknown:
        click.echo(
            f"warning: location and time of {num_unknown} records are unknown (they were prepared without metadata): "
            "each forms a group of its own, so records of one location can be in different folds",
            err=True,
        )
    if num_unlabelled:
        click.echo(f"warning: {num_unlabelled} records have no label: no fold trains on them", err=True)
    for row in table:
        if row["fold"] >= 0 and row["positive"] == 0:
            click.echo(f"warning: fold {row['fold']} validates on no positive record: its Dice is undefined", err=True)


def _print(table: list[dict[str, int]], leaks: list[str], as_json: bool) -> None:
    from contrails.cli.tables import Column, print_table

    if as_json:
        click.echo(json.dumps({"folds": table, "leaks": leaks}))
        return
    names = {-1: "held out", -2: "always trained"}
    columns = [Column(heading, right=True) for heading in ("fold", "records", "positive", "groups")]
    rows = []
    for row in table:
        fold, *counts = row.values()
        rows.append([names.get(fold, str(fold)), *map(str, counts)])
    print_table(columns, rows)
