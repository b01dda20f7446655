"""`contrails prepare`: pack raw data of one of three layouts into a dataset file."""

import logging
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from contrails.cli.complete import complete_sites
from contrails.cli.options import FilePath, read_numbers, read_shard
from contrails.cluster.schedulers.sites import num_cores
from contrails.errors import DataError

if TYPE_CHECKING:
    from contrails.dataset.layout import Header
    from contrails.dataset.pack import Plan
    from contrails.sources.groups import Grouping
    from contrails.sources.masks import Meanings
    from contrails.sources.radiometry import Span

_OF_IMAGES = ("group_by", "groups", "target_name")
_LAYOUTS = {
    "goes": ("bands", "frames"),
    "images-rle": ("rle_starts", "rle_order", "rle_empty", "rle_columns", "rle_class", "range", *_OF_IMAGES),
    "scenes": ("bands", "tile", "overlap", "scenes", "masks", "mask_values", "range", *_OF_IMAGES),
}
"""Options of each layout."""


@click.command()
@click.argument("raw", type=FilePath())
@click.argument("out", type=FilePath(dir_okay=False))
@click.option("--layout", type=click.Choice(list(_LAYOUTS)), default="goes", show_default=True, help="Layout of RAW.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="train",
    show_default=True,
    help="Which records of RAW to pack.",
)
@click.option(
    "--bands",
    help="goes: numbers of the bands to pack, or 'all' (default: 11,14,15). scenes: names of the bands, in the order "
    "of the files.",
)
@click.option("--frames", default="4", show_default=True, help="goes: frames to pack, such as 4 or 0,4 or 0-7.")
@click.option(
    "--rle-starts",
    type=click.Choice(["absolute", "relative"]),
    default="absolute",
    show_default=True,
    help="images-rle: a run starts at a pixel number, from 1, or at a distance from the end of the previous run.",
)
@click.option(
    "--rle-order",
    type=click.Choice(["columns", "rows"]),
    default="columns",
    show_default=True,
    help="images-rle: pixels are numbered down the columns or along the rows.",
)
@click.option("--rle-empty", default="-", show_default=True, help="images-rle: text that stands for an empty mask.")
@click.option(
    "--rle-columns",
    default="record_id,encoded_pixels",
    show_default=True,
    help="images-rle: names of the columns with the ids and the masks.",
)
@click.option(
    "--rle-class",
    metavar="[COLUMN=]CLASS",
    help="images-rle: pack only masks of this class; ids end with it (x.jpg_Fish), or a column holds it (ClassId=3).",
)
@click.option(
    "--tile", type=click.IntRange(32), default=512, show_default=True, help="scenes: side of a tile, in pixels."
)
@click.option(
    "--overlap",
    type=click.IntRange(0),
    help="scenes: overlap of neighbouring tiles, in pixels (default: 64; for tiles of up to 64 pixels, a quarter).",
)
@click.option(
    "--scenes",
    default="scenes/{scene}",
    show_default=True,
    help="scenes: path of a scene file in RAW, with {band} if each band has a file.",
)
@click.option("--masks", default="masks/{scene}", show_default=True, help="scenes: path of a mask in RAW.")
@click.option(
    "--mask-values",
    help="scenes: meaning of each value or range of values of a mask: 0, 1 or ignore, such as 0-127=0,128-255=1 for "
    "masks with soft edges (default: 0=0,1=1,255=1).",
)
@click.option(
    "--range",
    metavar="LOW,HIGH",
    help="images-rle, scenes: lowest and highest value to pack, for all bands (default: integers of 8 and 16 bits are "
    "packed unchanged; for other types, the range of the training scenes).",
)
@click.option(
    "--group-by",
    metavar="REGEX",
    help="images-rle, scenes: regular expression for the group in the name of a scene, or of an image below RAW/SPLIT, "
    "such as '^patient[0-9]+'. A group is never split between folds.",
)
@click.option(
    "--groups", metavar="FILE.csv", help="images-rle, scenes: table of the groups, with the columns name,group."
)
@click.option(
    "--target-name",
    metavar="NAME",
    help="images-rle, scenes: what the masks show, for reports, such as 'cell membrane' (default: --rle-class).",
)
@click.option("--workers", type=click.IntRange(1), default=num_cores, help="Number of processes; default: cores.")
@click.option("--shard", metavar="I/N", help="Pack only shard I of N; `contrails data join OUT` joins the shards.")
@click.option(
    "--jobs",
    "num_jobs",
    type=click.IntRange(1),
    help="Number of jobs of --site that pack one shard each; the shards are then joined.",
)
@click.option(
    "--site", "site_name", shell_complete=complete_sites, help="Site that runs the --jobs; see `contrails sites`."
)
@click.pass_context
def prepare(
    context: click.Context,
    /,
    raw: Path,
    out: Path,
    layout: str,
    split: str,
    workers: int,
    shard: str | None,
    num_jobs: int | None,
    site_name: str | None,
    **options: Any,
) -> None:
    """Pack raw data into the dataset file OUT.

    \b
    goes        RAW/SPLIT has the layout of the OpenContrails competition;
                temperatures are packed as 16-bit integers with an error of at
                most 0.005 K, masks as votes of the annotators
    images-rle  RAW/SPLIT holds PNG, JPEG or DICOM files; RAW/SPLIT.csv holds
                their ids and run-length encodings
    scenes      RAW/scenes and RAW/masks hold GeoTIFF, JPEG 2000, PNG or .npy
                files of any size, which are cut into tiles;
                RAW/filelists/{train,val,test}.csv can list the scenes

    images-rle and scenes pack integers of 8 and 16 bits unchanged, with the scale given in their files, and other
    values as 16-bit integers over --range. Both need `pip install -e '.[scenes]'` in the clone. All masks are read
    before packing begins, and the meaning of each of their values is printed.

    An interrupted call continues when it is started again. With --shard, several nodes share the work: each writes its
    own file beside OUT, such as train-2of5.h5 for data/train.h5.

    \b
    Example:
      contrails prepare data/demo/raw data/demo/train.h5
      contrails prepare data/demo/raw data/demo/test.h5 --split test
      contrails prepare data/demo/raw data/demo/validation.h5 --split validation
      contrails prepare data/demo/raw data/demo/all.h5 --bands all --frames 0-7
      contrails prepare data/demo/raw data/demo/train.h5 --shard 2/5
      contrails prepare data/demo/raw data/demo/train.h5 --site mycluster --jobs 10
      contrails prepare chest data/chest.h5 --layout images-rle --rle-starts relative --rle-empty=-1
      contrails prepare sky data/fish.h5 --layout images-rle --rle-columns Image_Label,EncodedPixels --rle-class Fish
      contrails prepare 38-Cloud data/clouds.h5 --layout scenes --bands red,green,blue,nir
        --scenes 'train_{band}/{band}_{scene}.TIF' --masks 'train_gt/gt_{scene}.TIF' --tile 384 --overlap 0
    """
    from contrails.sources.tiles import usual_overlap

    given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if strange := [f"--{name.replace('_', '-')}" for name in given if name not in _LAYOUTS[layout]]:
        known = ", ".join(f"--{name.replace('_', '-')}" for name in _LAYOUTS[layout])
        raise click.UsageError(f"expected options of --layout {layout} ({known}), found {', '.join(strange)}")
    share = None if shard is None else read_shard(shard)
    if num_jobs is not None and share:
        raise click.UsageError("give --jobs N for all shards, or --shard I/N for one, not both")
    if num_jobs is None and site_name is not None:
        raise click.UsageError("--site needs --jobs N; without --jobs the records are packed on this machine")
    if options["overlap"] is None:
        options["overlap"] = usual_overlap(options["tile"])
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        plan = {"goes": _plan_goes, "images-rle": _plan_images, "scenes": _plan_scenes}[layout](raw, split, options)
    except DataError as error:
        raise DataError(f"{error}{_other_layout(raw, out, layout, split)}") from error
    if num_jobs is not None:
        words = ["--layout", layout, "--split", split]
        of_files = {name: Path(options[name]).absolute() for name in given if name == "groups"}
        words += [f"--{name.replace('_', '-')}={of_files.get(name, options[name])}" for name in given]
        _submit(raw, out, words, num_jobs, site_name)
        return
    from contrails.dataset.layout import shard_path
    from contrails.dataset.pack import pack

    whole, path = plan.header, out
    if share:
        plan, path = plan.shard(*share), shard_path(out, *share)
    for note in plan.notes:
        click.echo(note)
    made = pack(plan, path, workers)
    what = f"{path}: {len(plan.records)} records, {path.stat().st_size / 1e6:.1f} MB"
    click.echo(what if made else f"{what}, complete already: nothing to do")
    if whole.placements:
        click.echo(_covered(whole, options["overlap"] if layout == "scenes" else 0))
    if share and all(shard_path(out, index, share[1]).exists() for index in range(1, share[1] + 1)):
        click.echo(f"all {share[1]} shards are complete; next: `contrails data join {shlex.quote(str(out))}`")


def _other_layout(raw: Path, out: Path, layout: str, split: str) -> str:
    """Return a hint for an error if the folder looks like another layout than the given one, else ""."""
    from contrails.sources.guess import looks_like

    found = looks_like(raw, split)
    if not found or found[0] == f"--layout={layout}":
        return ""
    words = shlex.join(["contrails", "prepare", str(raw), str(out), *found, f"--split={split}"])
    return f"\n{raw} looks like another layout than {layout}; try `{words}`"


def _plan_goes(raw: Path, split: str, options: dict[str, Any]) -> "Plan[Any]":
    from contrails.sources.goes import make_plan
    from contrails.sources.records import LABEL_FRAME

    bands, frames = options["bands"] or "11,14,15", options["frames"]
    kept = read_numbers(frames, "--frames")
    plan = make_plan(raw, split, None if bands == "all" else read_numbers(bands, "--bands"), kept)
    if LABEL_FRAME not in kept:
        click.echo(
            f"warning: --frames {frames} leaves out frame {LABEL_FRAME}, which the annotators labelled: recipes must "
            "set data.frames, and labels of moving contrails are displaced",
            err=True,
        )
    return plan


def _plan_images(raw: Path, split: str, options: dict[str, Any]) -> "Plan[Any]":
    from contrails.dataset.rle import Convention
    from contrails.sources.images import make_plan

    columns = tuple(name.strip() for name in options["rle_columns"].split(","))
    if len(columns) != 2 or not all(columns):
        raise click.BadParameter(
            f"'{','.join(columns)}': expected two names, such as id,mask", param_hint="--rle-columns"
        )
    starts, order, empty = (options[f"rle_{name}"] for name in ("starts", "order", "empty"))
    column, _, label = (options["rle_class"] or "").rpartition("=")
    convention = Convention(starts, order, empty, (columns[0], columns[1]), label=label, label_column=column)
    name = options["target_name"] or ""
    return make_plan(raw, split, convention, _range(options["range"]), _grouping(options), target_name=name)


def _plan_scenes(raw: Path, split: str, options: dict[str, Any]) -> "Plan[Any]":
    from contrails.sources.scenes import SceneOptions, make_plan

    return make_plan(
        raw,
        split,
        SceneOptions(
            tile=options["tile"],
            overlap=options["overlap"],
            scenes=options["scenes"],
            masks=options["masks"],
            bands=tuple(options["bands"].split(",")) if options["bands"] else (),
            mask_values=_mask_values(options["mask_values"]),
            span=_range(options["range"]),
            grouping=_grouping(options),
            target_name=options["target_name"] or "",
        ),
    )


def _grouping(options: dict[str, Any]) -> "Grouping":
    from contrails.sources.groups import Grouping

    pattern, table = options["group_by"] or "", options["groups"]
    if pattern and table:
        raise click.UsageError("give --group-by or --groups, not both")
    try:
        re.compile(pattern)
    except re.error as error:
        raise click.BadParameter(
            f"'{pattern}': expected a regular expression: {error}", param_hint="--group-by"
        ) from error
    return Grouping(pattern, Path(table) if table else None)


def _covered(header: "Header", overlap: int) -> str:
    """Return a sentence about the fraction of a file that is padding, and the fraction that repeats in overlaps."""
    from contrails.sources.tiles import covered, starts

    padding, repeated = covered(header)
    tile = header.size[0]
    fewest = sum(len(starts(each.height, tile, 0)) * len(starts(each.width, tile, 0)) for each in header.scenes)
    said = f"padding: {padding:.1%} of the pixels"
    if not overlap or fewest == len(header.placements):
        return said
    found = f"{repeated:.1%} of the other pixels are repeated in overlaps"
    return f"{said}; {found} (--overlap 0 makes {fewest} tiles, not {len(header.placements)})"


def _submit(raw: Path, out: Path, options: list[str], num_jobs: int, site_name: str | None) -> None:
    from contrails.cluster.queue.shards import submit_packing
    from contrails.cluster.schedulers.sites import find_site

    site = find_site(site_name)
    words = [*options, "--workers", str(site.num_cpus)]
    for name, what in submit_packing(raw, out, words, num_jobs, site).items():
        click.echo(f"{name}: {what}")


def _mask_values(text: str | None) -> "Meanings":
    from contrails.sources.masks import parse

    try:
        return parse(text) if text else ()
    except DataError as error:
        raise click.BadParameter(str(error), param_hint="--mask-values") from error


def _range(text: str | None) -> "Span | None":
    from contrails.sources.spans import read_span

    try:
        return read_span(text) if text is not None else None
    except DataError as error:
        raise click.BadParameter(str(error), param_hint="--range") from error
