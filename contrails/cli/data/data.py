"""`contrails data`: look at dataset files, audit their labels, join their shards."""

import json
import logging
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from contrails.cli.complete import complete_runs
from contrails.cli.options import FilePath, find_ensemble, json_option, require_picture
from contrails.cli.tables import Column, print_table
from contrails.errors import DataError

if TYPE_CHECKING:
    import numpy as np

_SHOWN = 5
_path_argument = click.argument("path", metavar="DATA", type=FilePath())


@click.group()
def data() -> None:
    """Look at dataset files, audit their labels, join their shards."""


@data.command()
@_path_argument
@json_option
@click.option(
    "--plot",
    metavar="FILE.png",
    type=FilePath(),
    help="Draw up to 12 records there, positive ones first.",
)
def info(path: Path, as_json: bool, plot: Path | None) -> None:
    """Show what the dataset file DATA holds.

    \b
    Example:
      contrails data info data/demo/train.h5
      contrails data info data/demo/train.h5 --plot train.png
    """
    from contrails.dataset.store import open_dataset
    from contrails.inspect.info import describe

    if plot is not None:
        require_picture(plot, "--plot")
    dataset = open_dataset(path)
    found = describe(dataset)
    if plot is not None:
        from contrails.inspect.pictures import plot_samples

        click.echo(f"{plot}: {plot_samples(dataset, plot)} records", err=True)
    if as_json:
        click.echo(json.dumps(found))
        return
    bands = found.pop("bands")
    print_table([Column(""), Column("")], [[key.replace("_", " "), text] for key, text in _readable(found).items()])
    unit = "" if found["units"] == "1" else f" {found['units']}"
    headings = ("band", *(f"{name}{unit}" for name in ("min", "mean", "std", "max")))
    rows = [[band, *(f"{value:.{2 if unit else 4}f}" for value in values.values())] for band, values in bands.items()]
    print_table([Column(heading, right=True) for heading in headings], rows)


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
    """Compare every row of DATA with its digest.

    Damaged records are named (exit code 4).

    \b
    Example:
      contrails data verify data/demo/train.h5
    """
    from contrails.dataset.mapping import repaired_by
    from contrails.dataset.store import open_dataset
    from contrails.dataset.verify import damaged_rows

    dataset = open_dataset(path)
    damaged = list(damaged_rows(dataset))
    if damaged:
        changed = f"if they were changed on purpose, {repaired_by(path)}"
        raise DataError("\n".join([f"{path} is damaged; copy it again, or prepare it again:", *damaged[:20], changed]))
    click.echo(f"{path}: {dataset.num_records} records, all as written; fingerprint {dataset.fingerprint}")


@data.command()
@click.argument("file", type=FilePath(dir_okay=False))
@click.option("-o", "--out", type=FilePath(dir_okay=False), help="Read FILE itself, and write this.")
def join(file: Path, out: Path | None) -> None:
    """Write the dataset file FILE from the shards beside it.

    They are made with `contrails prepare RAW FILE --shard I/N`, on any nodes. FILE holds the same bytes as if one call
    had made it; a shard that is missing, damaged or of other records is named (exit code 4).

    With -o, FILE is a dataset file that another program wrote anew: chunked, compressed, with links to other files, or
    with other labels. Its rows are read and written into OUT, with new digests; records whose old digests say something
    else are named.

    \b
    Example:
      contrails prepare data/demo/raw data/demo/train.h5 --shard 1/2
      contrails prepare data/demo/raw data/demo/train.h5 --shard 2/2
      contrails data join data/demo/train.h5
      contrails data join compressed.h5 -o data/train.h5
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if out is not None:
        _rewrite(file, out)
        return
    from contrails.dataset.join import join as join_shards
    from contrails.dataset.layout import shard_path

    joined = join_shards(file)
    of_shards = f" of {joined.num_shards} shards" if joined.num_shards else ""
    what = f"{file}: {joined.num_records} records{of_shards}, {file.stat().st_size / 1e6:.1f} MB"
    click.echo(what if joined.made else f"{what}, complete already: nothing to do")
    if not joined.num_shards:
        return
    first, last = (shard_path(file, index, joined.num_shards) for index in (1, joined.num_shards))
    click.echo(f"the shards can be removed: {first} to {last.name}")


def _rewrite(file: Path, out: Path) -> None:
    from contrails.dataset.layout import shard_path
    from contrails.dataset.rewrite import rewrite

    rewritten = rewrite(file, out)
    if rewritten.changed:
        first = ", ".join(rewritten.changed[:_SHOWN])
        click.echo(
            f"warning: {len(rewritten.changed)} of {rewritten.num_records} records of {file} are not what their "
            f"digests say ({first}): they were changed after they were written, or are damaged; {out} has them as they "
            "are now",
            err=True,
        )
    what = f"{out}: {rewritten.num_records} records, {out.stat().st_size / 1e6:.1f} MB"
    click.echo(what if rewritten.made else f"{what}, complete already: nothing to do")
    if rewritten.shard is not None:
        number = f"-{rewritten.shard.index}of{rewritten.shard.count}"
        named = out if out.stem.endswith(number) else file
        whole = named.with_name(f"{named.stem.removesuffix(number)}{named.suffix}")
        shard = shard_path(whole, rewritten.shard.index, rewritten.shard.count)
        click.echo(
            f"warning: {out} is shard {rewritten.shard.index} of {rewritten.shard.count} alone: with it as {shard} "
            f"and the other shards beside it, `contrails data join {shlex.quote(str(whole))}` makes the file of "
            "all records",
            err=True,
        )


@data.command()
@_path_argument
@click.option("-o", "--out", type=FilePath(), help="Folder: writes exclude.csv, and audit.html with pictures.")
@click.option("--filelist", type=FilePath(), help="Looks for near-duplicates across its folds alone.")
@click.option(
    "--aggregate",
    "ensemble_name",
    metavar="ENSEMBLE",
    shell_complete=complete_runs,
    help="Compares labels with its out-of-fold predictions.",
)
@click.option("--tiny", default=10, show_default=True, help="Labels with fewer pixels are suspicious.")
@click.option("--near", default=0.95, show_default=True, help="Correlation of images from which they are the same.")
@click.option("--dice", default=0.1, show_default=True, help="Dice of label and prediction below which they disagree.")
@json_option
def audit(
    path: Path,
    out: Path | None,
    filelist: Path | None,
    ensemble_name: str | None,
    tiny: int,
    near: float,
    dice: float,
    as_json: bool,
) -> None:
    """List suspicious labels of DATA for training without them.

    Pictures of them and the list exclude.csv are written. Looks for labels that out-of-fold predictions contradict,
    tiny and rectangular ones, duplicates and near-duplicates of records, and records of one place, soon after each
    other, of which one is marked and the other is not. Look at the pictures and remove from exclude.csv what is right,
    then name it in a recipe as data.exclude: these records are not trained on; they are still validated on, so that
    scores stay comparable.

    \b
    Example:
      contrails data audit data/demo/train.h5 --filelist filelists/demo.csv -o audit
      contrails data audit data/demo/train.h5 --aggregate default -o audit
      contrails submit --name clean -o data.exclude=audit/exclude.csv
    """
    from contrails.dataset.store import open_dataset
    from contrails.folds.filelists import read_filelist
    from contrails.inspect.audit import Limits, reasons
    from contrails.inspect.audit import audit as find

    dataset, listed = open_dataset(path), None
    predicted: Mapping[str, np.ndarray] = {}
    level = 0
    if ensemble_name is not None:
        from contrails.aggregate.decide.threshold import level_of
        from contrails.aggregate.ensemble import read_ensemble
        from contrails.aggregate.scores.outoffold import StoredProbabilities

        ensemble = read_ensemble(find_ensemble(ensemble_name))
        if ensemble.scored_by == "record":
            raise DataError(
                f"--aggregate {ensemble_name}: expected an ensemble that predicts masks, found one of classifiers, "
                "which say nothing of pixels; give another, or leave --aggregate out"
            )
        predicted, level = StoredProbabilities(ensemble, dataset), level_of(ensemble.threshold)
        listed = ensemble.filelist()
    if filelist is not None:
        listed = read_filelist(filelist)
    fold_of = None if listed is None else dict(zip(listed.record_ids, listed.folds, strict=True))
    findings = find(dataset, Limits(tiny_px=tiny, near=near, dice=dice), fold_of, predicted, level)
    excluded = reasons(findings, dataset)
    if out is not None:
        from contrails.folds.exclusions import write_exclusions
        from contrails.inspect.audit_page import write_page

        command = shlex.join(["contrails", *sys.argv[1:]])
        write_page(out / "audit.html", dataset, findings, predicted, level, command)
        write_exclusions(out / "exclude.csv", excluded, command)
    if as_json:
        click.echo(json.dumps([finding.to_dict(dataset) for finding in findings]))
        return
    for finding in findings:
        click.echo(f"{finding.kind}: {', '.join(finding.to_dict(dataset)['records'])}: {finding.reason}")
    click.echo(f"{len(findings)} findings among {dataset.num_records} records, {len(excluded)} records to exclude")
    if out is not None:
        click.echo(f"look at {out / 'audit.html'}, then train without them: -o data.exclude={out / 'exclude.csv'}")
