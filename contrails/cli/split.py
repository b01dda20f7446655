"""`contrails split`: fold assignments for a dataset, and a check of existing ones."""

import json
import shlex
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from contrails.data.filelists import (
    HELD_OUT,
    FileList,
    leaks,
    make_folds,
    read_filelist,
    require_match,
    time_groups,
    write_filelist,
)
from contrails.errors import DataError


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--folds", "num_folds", type=click.IntRange(2), default=5, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="File list to write.")
@click.option("--hold-out", type=click.FloatRange(0, 0.9), default=0.0, show_default=True, help="Share no fold sees.")
@click.option(
    "--window-hours", type=click.FloatRange(0), default=24.0, show_default=True, help="Closer stays together."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--check", type=click.Path(path_type=Path), help="Say what leaks in this file list instead of making one."
)
@click.option("--json", "as_json", is_flag=True, help="Print the folds as JSON.")
def split(
    data: Path,
    num_folds: int,
    out: Path | None,
    hold_out: float,
    window_hours: float,
    seed: int,
    check: Path | None,
    as_json: bool,
) -> None:
    """Deal the records of DATA out to folds, positives balanced, records of one place and time together.

    \b
    Example:
      contrails split data/demo/train.h5 --folds 5 -o filelists/demo.csv
      contrails split data/demo/train.h5 --check filelists/from-a-colleague.csv
    """
    from contrails.data.store import open_dataset

    if (out is None) == (check is None):
        raise click.UsageError("give either -o FILE to write a file list, or --check FILE to look at one")
    dataset = open_dataset(data)
    groups = time_groups(dataset.groups, dataset.timestamps, window_hours)
    positive = dataset.positive_pixels() > 0
    if check is not None:
        filelist = read_filelist(check)
        require_match(filelist, dataset.record_ids, str(check))
        by_id = dict(zip(dataset.record_ids, groups, strict=True))
        found = list(leaks(filelist, [by_id[record_id] for record_id in filelist.record_ids]))
        if found:
            raise DataError("\n".join([f"{check} leaks between folds ({len(found)} groups):", *found[:10]]))
        click.echo(f"{check}: {len(filelist.record_ids)} records, nothing leaks", err=as_json)
    else:
        assert out is not None
        unlabelled = dataset.annotators == 0
        if unlabelled.any():
            raise DataError(
                f"{data}: {int(unlabelled.sum())} records have no label, so no fold can validate on them; "
                "split a labelled dataset"
            )
        filelist = make_folds(dataset.record_ids, groups, positive, num_folds, held_out=hold_out, seed=seed)
        made = write_filelist(out, filelist, _command(data, num_folds, out, hold_out, window_hours, seed))
        click.echo(f"{out}: {'written' if made else 'the same file list is there already'}", err=as_json)
    _print(filelist, dict(zip(dataset.record_ids, positive, strict=True)), as_json)


def _command(data: Path, num_folds: int, out: Path, hold_out: float, window_hours: float, seed: int) -> str:
    options = [f"--folds={num_folds}", f"--hold-out={hold_out:g}", f"--window-hours={window_hours:g}", f"--seed={seed}"]
    return shlex.join(["contrails", "split", str(data), *options, "-o", str(out)])


def _print(filelist: FileList, positive: dict[str, np.bool_], as_json: bool) -> None:
    rows = []
    for fold in sorted(set(filelist.folds)):
        members = [row for row, of in enumerate(filelist.folds) if of == fold]
        rows.append(
            {
                "fold": fold,
                "records": len(members),
                "positive": sum(bool(positive[filelist.record_ids[row]]) for row in members),
                "groups": len({filelist.groups[row] for row in members}),
            }
        )
    if as_json:
        click.echo(json.dumps(rows))
        return
    table = Table()
    for heading in ("fold", "records", "positive", "groups"):
        table.add_column(heading, justify="right")
    for entry in rows:
        name = "held out" if entry["fold"] == HELD_OUT else str(entry["fold"])
        table.add_row(name, str(entry["records"]), str(entry["positive"]), str(entry["groups"]))
    Console().print(table)
