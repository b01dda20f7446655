"""`contrails data`: inspect and verify dataset files, audit their labels, join their shards."""

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
    """Inspect dataset files, audit their labels, join their shards."""


@data.command()
@_path_argument
@json_option
@click.option(
    "--plot",
    metavar="FILE.png",
    type=FilePath(),
    help="Also write a picture of up to 12 records, positive ones first.",
)
def info(path: Path, as_json: bool, plot: Path | None) -> None:
    """Show the contents of the dataset file DATA.

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
    rows, digits = [], 2 if unit else 4
    for band, values in bands.items():
        rows.append([band, *(f"{value:.{digits}f}" for value in values.values())])
    print_table([Column(heading, right=True) for heading in headings], rows)


def _readable(found: dict[str, Any]) -> dict[str, str]:
    """Return the results of `describe` as texts for a table."""
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

    Lists the damaged records; the exit code is 4 if there are any.

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
        changed = f"if the records were changed on purpose, {repaired_by(path)}"
        raise DataError("\n".join([f"{path} is damaged; copy it again, or prepare it again:", *damaged[:20], changed]))
    click.echo(f"{path}: {dataset.num_records} records, all intact; fingerprint {dataset.fingerprint}")


@data.command()
@click.argument("file", type=FilePath(dir_okay=False))
@click.option(
    "-o",
    "--out",
    type=FilePath(dir_okay=False),
    help="Write a repaired copy of FILE to this path, instead of joining shards.",
)
def join(file: Path, out: Path | None) -> None:
    """Write the dataset file FILE from the shards beside it.

    `contrails prepare RAW FILE --shard I/N` makes the shards, on any nodes. FILE is byte-identical to a file that was
    packed in one call. If a shard is missing, damaged or made from other records, it is named and the exit code is 4.

    With -o, FILE is a dataset file that another program has rewritten: chunked, compressed, with links to other files,
    or with other labels. Its rows are copied to OUT with new digests. Records that differ from their old digests are
    listed.

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
            f"warning: {len(rewritten.changed)} of {rewritten.num_records} records of {file} do not match their "
            f"digests ({first}): they were changed after they were written, or are damaged; {out} holds them "
            "unchanged, with new digests",
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
            f"warning: {out} holds only shard {rewritten.shard.index} of {rewritten.shard.count}; for the file of all "
            f"records name it {shard}, put the other shards beside it, and run "
            f"`contrails data join {shlex.quote(str(whole))}`",
            err=True,
        )


@data.command()
@_path_argument
@click.option("-o", "--out", type=FilePath(), help="Folder to write exclude.csv and audit.html to.")
@click.option(
    "--filelist", type=FilePath(), help="Report near-duplicates only between different folds of this file list."
)
@click.option(
    "--aggregate",
    "ensemble_name",
    metavar="ENSEMBLE",
    shell_complete=complete_runs,
    help="Compare the labels with out-of-fold predictions of this ensemble or run.",
)
@click.option("--tiny", default=10, show_default=True, help="Report labels with fewer positive pixels than this.")
@click.option("--near", default=0.95, show_default=True, help="Report pairs of images with at least this correlation.")
@click.option(
    "--dice", default=0.1, show_default=True, help="Report labels whose Dice with the prediction is below this."
)
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
    """List suspicious labels of DATA.

    Suspicious are labels that contradict out-of-fold predictions, tiny and rectangular labels, duplicate and
    near-duplicate records, and pairs of records of one location at nearly the same time of which only one is marked.

    With -o, pictures of them (audit.html) and the exclusion list exclude.csv are written. Look at the pictures, remove
    correctly labelled records from exclude.csv, and set data.exclude to it in a recipe. Excluded records are not
    trained on. They are still validated on, so that scores stay comparable.

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
                f"--aggregate {ensemble_name}: expected an ensemble that predicts masks, found an ensemble of "
                "classifiers; give another ensemble, or leave --aggregate out"
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
        click.echo(f"look at {out / 'audit.html'}; to train without them: -o data.exclude={out / 'exclude.csv'}")
