"""`contrails prepare`: raw records to a dataset file."""

import logging
import os
import shlex
from pathlib import Path

import click

from contrails.cli.options import read_share


@click.command()
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="train", show_default=True)
@click.option("--bands", default="11,14,15", show_default=True, help="Band numbers, or 'all' that the records have.")
@click.option("--frames", default="4", show_default=True, help="Frames to keep, such as 4 or 0,4 or 0-7.")
@click.option(
    "--workers", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), help="Processes; default: cores."
)
@click.option("--shard", metavar="I/N", help="Pack the I-th of N slices alone, for `contrails data join`.")
@click.option("--jobs", "num_jobs", type=click.IntRange(1), help="Pack by this many jobs of a site, and join.")
@click.option("--site", "site_name", help="Where the jobs run; see `contrails sites`.")
def prepare(
    raw: Path,
    out: Path,
    split: str,
    bands: str,
    frames: str,
    workers: int,
    shard: str | None,
    num_jobs: int | None,
    site_name: str | None,
) -> None:
    """Pack the records of RAW/SPLIT into the dataset file OUT.

    RAW has the layout of the OpenContrails competition. Kelvin are kept to 0.005 K as 16-bit integers, masks as
    votes of the annotators. Killed and started again, it goes on where it was. Several nodes share the work with
    --shard: each writes a file of its own beside OUT, such as train-2of5.h5 for data/train.h5.

    \b
    Example:
      contrails prepare data/demo/raw data/demo/train.h5
      contrails prepare data/demo/raw data/demo/all.h5 --bands all --frames 0-7
      contrails prepare data/demo/raw data/demo/train.h5 --shard 2/5
      contrails prepare data/demo/raw data/demo/train.h5 --site mycluster --jobs 10
    """
    if num_jobs is not None:
        if shard is not None:
            raise click.UsageError("give --jobs N for all shards, or --shard I/N for one, not both")
        _submit(raw, out, ["--split", split, "--bands", bands, "--frames", frames], num_jobs, site_name)
        return
    if site_name is not None:
        raise click.UsageError("--site is for --jobs; without them the records are packed here")
    from contrails.data.layout import shard_path
    from contrails.data.pack import make_plan, pack
    from contrails.data.records import LABEL_FRAME

    logging.basicConfig(format="%(levelname)s: %(message)s")
    chosen = None if bands == "all" else _numbers(bands, "--bands")
    share = None if shard is None else read_share(shard)
    kept = _numbers(frames, "--frames")
    plan = make_plan(raw, split, chosen, kept)
    if LABEL_FRAME not in kept:
        click.echo(
            f"warning: --frames {frames} leaves out frame {LABEL_FRAME}, which the labels are of: recipes must name "
            "data.frames, and what moves is labelled where it is not",
            err=True,
        )
    path = out
    if share:
        plan, path = plan.shard(*share), shard_path(out, *share)
    made = pack(plan, path, workers)
    what = f"{path}: {len(plan.records)} records, {path.stat().st_size / 1e6:.1f} MB"
    click.echo(what if made else f"{what}, complete already: nothing to do")
    if share and all(shard_path(out, index, share[1]).exists() for index in range(1, share[1] + 1)):
        click.echo(f"all {share[1]} shards are there; next: contrails data join {shlex.quote(str(out))}")


def _submit(raw: Path, out: Path, options: list[str], num_jobs: int, site_name: str | None) -> None:
    from contrails.cluster.shards import submit_shards
    from contrails.cluster.sites import find_site

    site = find_site(site_name)
    words = [*options, "--workers", str(site.num_cpus)]
    for name, what in submit_shards(raw, out, words, num_jobs, site).items():
        click.echo(f"{name}: {what}")


def _numbers(text: str, option: str) -> list[int]:
    """Read `4`, `0,4` or `0-7`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise click.BadParameter(f"'{text}': expected numbers such as 4 or 0,4 or 0-7", param_hint=option)
        numbers += range(int(first), int(last or first) + 1)
    if len(set(numbers)) != len(numbers) or not numbers:
        raise click.BadParameter(f"'{text}': expected each number once", param_hint=option)
    return numbers
