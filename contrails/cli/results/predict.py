"""`contrails predict`: predict masks, probabilities or a submission from any records or scenes."""

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contrails.aggregate.output.noted import is_made, note, require_noted
from contrails.cli.complete import complete_runs
from contrails.cli.options import FilePath, choose_device, device_option, find_ensemble, read_numbers
from contrails.errors import DataError
from contrails.files import sha256

if TYPE_CHECKING:
    import torch

    from contrails.aggregate.ensemble import Ensemble
    from contrails.aggregate.output.folders import Given
    from contrails.dataset.store import Dataset
    from contrails.sources.tiles import Blend

_FORMATS = ("submission", "npy", "png", "tif", "probabilities", "pseudo")
_SCENE_FORMATS = ("tif", "png", "probabilities")


@click.command()
@click.argument("name", metavar="ENSEMBLE", shell_complete=complete_runs)
@click.argument("source", metavar="INPUT", type=FilePath())
@click.argument("out", type=FilePath())
@click.option(
    "--format",
    "kind",
    type=click.Choice(_FORMATS),
    help="What to write. submission: a CSV file, default if OUT ends on .csv. npy, png or tif: a folder with one mask "
    "per record or scene, default if OUT has no ending. probabilities: an HDF5 file of uint16. pseudo: a folder with "
    "one dataset file of pseudo-labels per fold. For one scene: tif, png or probabilities (as GeoTIFF), default by the "
    "ending of OUT.",
)
@click.option("--frames", help="Frames to label with --format pseudo, such as 2,3,5; default: the labelled frame.")
@click.option("--sample", type=FilePath(), help="Sample submission; fixes the ids and their order.")
@click.option("--tile", type=click.IntRange(32), help="Side of a scene's tiles in pixels; default: as in training.")
@click.option(
    "--overlap", type=click.IntRange(0), help="Overlap of the tiles of a scene in pixels; default: as in training."
)
@click.option(
    "--blend",
    type=click.Choice(["hann", "gaussian"]),
    default="hann",
    show_default=True,
    help="Window that weights the pixels of overlapping tiles.",
)
@click.option("--bands", default="", help="Names of a scene's bands, in the file's order; default: as in training.")
@click.option("--scenes", default="", help="Pattern of the scenes' paths in a folder, as in contrails prepare.")
@click.option("--force", is_flag=True, help="Replace OUT, or masks in it, of another ensemble or input.")
@device_option
def predict(
    name: str,
    source: Path,
    out: Path,
    kind: str | None,
    frames: str | None,
    sample: Path | None,
    tile: int | None,
    overlap: int | None,
    blend: "Blend",
    bands: str,
    scenes: str,
    force: bool,
    device: str,
) -> None:
    """Predict the masks of INPUT with ENSEMBLE into OUT.

    ENSEMBLE is the folder of an ensemble, or the name of a run. INPUT is one of three: a dataset file; a folder of raw
    data in the layout that the run was trained on (a folder per GOES record, such as data/demo/raw/test, scenes or
    images); or one scene, a GeoTIFF, JPEG 2000, PNG or .npy file of any size, which is processed strip by strip. Raw
    data are tiled, named and scaled as for training unless options say otherwise. Tiles are merged into scenes. The
    batch size is chosen to fit the GPU. Running the command again continues an interrupted prediction, and does
    nothing if all of it exists. Files of another ensemble or input are replaced only with --force.

    Masks are 0 and 1 in GeoTIFF, with 255 for no data; 0 and 255 in PNG. Probabilities are uint16, where 65535 is 1;
    no data is 0.

    Pseudo-labels are made for records without a label, and for other frames of labelled records. The file of a fold is
    predicted by that fold's member alone, and has none of the fold's validation records or the held-out records. A
    recipe uses them as [[data.pseudo]].

    \b
    Example:
      contrails predict default data/demo/raw/test masks --format png
      contrails predict ensembles/both data/demo/test.h5 submission.csv
      contrails predict clouds LC08_scene.tif clouds.tif --bands red,green,blue,nir
      contrails predict clouds landsat/2024 masks
      contrails predict default data/demo/all.h5 data/demo/pseudo --format pseudo --frames 3,5
    """
    from contrails.sources.rasters import ENDINGS

    is_scene = source.suffix.lower() in ENDINGS and not source.is_dir()
    _require_paths(source, out)
    if not is_scene:
        _require_out(source, out, kind)
    if out.is_file() and not force and (is_scene or kind != "probabilities"):  # probabilities can be resumed
        require_noted(out)
    from contrails.aggregate.ensemble import read_ensemble
    from contrails.aggregate.output.folders import Given, layout_of, opened
    from contrails.aggregate.output.submission import sample_ids
    from contrails.cli.results.figures import warn_of_classifiers

    logging.basicConfig(format="%(levelname)s: %(message)s")
    ensemble, chosen = read_ensemble(find_ensemble(name)), choose_device(device)
    if not ensemble.complete:
        click.echo(f"partial: an ensemble of {ensemble.folds}", err=True)
    if kind == "pseudo":
        if force:
            raise click.UsageError("--force: a dataset file is never replaced; give another OUT for --format pseudo")
        _write_pseudo(ensemble, source, out, frames, chosen)
        return
    if frames is not None:
        raise click.UsageError("--frames is for --format pseudo")
    warn_of_classifiers(ensemble)
    given = Given(tile, overlap, tuple(bands.split(",")) if bands else (), scenes)
    if is_scene:
        _predict_scene(ensemble, source, out, kind, given, blend, chosen, force=force)
        return
    if given != Given() and not (source.is_dir() and layout_of(ensemble) == "scenes"):
        raise click.UsageError(
            f"--tile, --overlap, --bands and --scenes need scenes as INPUT, and {source} holds none; leave them out"
        )
    if kind is None and not out.suffix:
        kind = "tif" if layout_of(ensemble) == "scenes" else "png"
    with opened(ensemble, source, out, given) as dataset:
        if sample is not None:
            sample_ids(sample, set(dataset.whole_shapes), dataset.convention)
        if kind == "probabilities":
            _write_probabilities(ensemble, dataset, out, chosen, force=force)
        elif kind is not None and kind != "submission":
            _write_masks(ensemble, dataset, out, kind, blend, chosen, force=force)
        else:
            _write_submission(ensemble, dataset, out, sample, blend, chosen, force=force)


def _write_probabilities(
    ensemble: "Ensemble", dataset: "Dataset", out: Path, device: "torch.device", *, force: bool
) -> None:
    import numpy as np

    from contrails.aggregate.apply import predict_into, wanted_of
    from contrails.aggregate.members.prediction_files import is_complete

    rows = np.arange(dataset.num_records)
    made = not is_complete(out, wanted_of(ensemble, dataset, rows, device))
    if made:
        predict_into(ensemble, dataset, rows, out, device, replace_others=force)
    click.echo(_said(out, f"probabilities of {dataset.num_records} records", made=made))


def _write_masks(
    ensemble: "Ensemble",
    dataset: "Dataset",
    out: Path,
    kind: str,
    blend: "Blend",
    device: "torch.device",
    *,
    force: bool,
) -> None:
    from contrails.aggregate.output.masks import write_masks

    made, total = write_masks(ensemble, dataset, out, kind, device, blend, force=force), len(dataset.whole_shapes)
    kept = f", {total - made} of them were there" if 0 < made < total else ""
    click.echo(_said(out, f"{total} masks{kept}", made=made > 0))


def _write_submission(
    ensemble: "Ensemble",
    dataset: "Dataset",
    out: Path,
    sample: Path | None,
    blend: "Blend",
    device: "torch.device",
    *,
    force: bool,
) -> None:
    import numpy as np

    from contrails.aggregate.apply import masks_of, predict_into
    from contrails.aggregate.members.untile import in_batches
    from contrails.aggregate.output.masks import made_of
    from contrails.aggregate.output.submission import write_submission

    about = made_of(ensemble, dataset, device, blend) | {"sample": sha256(sample) if sample is not None else None}
    made = not is_made(out, about, force=force)
    if made:
        begun = out.with_name(f".{out.name}")
        rows = np.arange(dataset.num_records)
        probabilities = predict_into(ensemble, dataset, rows, begun / f"{out.stem}.h5", device)
        masks = masks_of(ensemble, dataset, in_batches(probabilities), blend)
        write_submission(out, ((whole.scene.name, mask) for whole, mask in masks), sample, dataset.convention)
        note(out, about)
        shutil.rmtree(begun, ignore_errors=True)  # another process may be making the same submission
    click.echo(_said(out, f"{len(dataset.whole_shapes)} masks", made=made))


def _said(out: Path, what: str, *, made: bool) -> str:
    """Return the last message of a command: what OUT holds, and whether it was complete before."""
    return f"{out}: {what}" if made else f"{out}: {what}, complete already: nothing to do"


def _require_paths(source: Path, out: Path) -> None:
    """Check that INPUT exists and differs from OUT, before minutes of loading."""
    if not source.exists():
        raise DataError(f"{source}: expected a dataset file, a scene or a folder of raw data as INPUT, found nothing")
    if source.is_dir() and next(source.iterdir(), None) is None:
        raise DataError(f"{source}: expected a folder of raw data as INPUT, found an empty folder")
    if out.exists() and out.samefile(source):
        raise click.BadParameter(f"{out} is also INPUT, which would be lost; give another name", param_hint="OUT")


def _require_out(source: Path, out: Path, kind: str | None) -> None:
    """Check that the name OUT fits what will be written for many records."""
    if kind is None and out.suffix.lower() not in ("", ".csv"):
        raise click.BadParameter(
            f"'{out}': expected the ending .csv for a submission, or no ending for a folder of masks, found "
            f"'{out.suffix}' for {source}, which is not one scene; give another name, or --format",
            param_hint="OUT",
        )
    is_file = kind in ("submission", "probabilities") or (kind is None and bool(out.suffix))
    if is_file and out.is_dir():
        raise click.BadParameter(f"{out} is a folder; give the name of a file in it", param_hint="OUT")
    if not is_file and out.exists() and not out.is_dir():
        raise click.BadParameter(f"{out} is a file; give the name of a folder", param_hint="OUT")


def _predict_scene(
    ensemble: "Ensemble",
    source: Path,
    out: Path,
    kind: str | None,
    given: "Given",
    blend: "Blend",
    device: "torch.device",
    *,
    force: bool,
) -> None:
    if given.scenes:
        raise click.UsageError(f"--scenes is for a folder of scenes, and {source} is one scene; leave it out")
    from contrails.aggregate.output.folders import bands_of, tiling_of
    from contrails.aggregate.output.scene import predict_scene
    from contrails.sources.rasters import describe

    chosen = kind or out.suffix.lower().removeprefix(".").replace("tiff", "tif")
    if chosen not in _SCENE_FORMATS:
        raise click.BadParameter(
            f"'{chosen}': expected one of {', '.join(_SCENE_FORMATS)} for one scene; give --format, or an OUT with "
            f"such an ending instead of {out}",
            param_hint="--format",
        )
    endings = (".png",) if chosen == "png" else (".tif", ".tiff")
    if out.is_dir():
        raise click.BadParameter(f"{out}: expected the name of a file for {source}, found a folder", param_hint="OUT")
    if out.suffix.lower() not in endings:
        raise click.BadParameter(
            f"{out}: expected a name that ends on {' or '.join(endings)} for the format {chosen}", param_hint="OUT"
        )
    tiling, bands = tiling_of(ensemble, describe(source), given, blend), bands_of(ensemble, given)
    scene, made = predict_scene(ensemble, source, out, chosen, tiling, bands, device, force=force)  # type: ignore[arg-type]
    click.echo(_said(out, f"{scene.height} x {scene.width} pixels", made=made))


def _write_pseudo(ensemble: "Ensemble", source: Path, out: Path, frames: str | None, device: "torch.device") -> None:
    from contrails.aggregate.output.pseudo import write_pseudo_labels
    from contrails.dataset.store import open_dataset

    numbers = tuple(read_numbers(frames, "--frames")) if frames is not None else ()
    for path, count in write_pseudo_labels(ensemble, open_dataset(source), out, numbers, device):
        click.echo(f"{path}: {count} records")
    folder, run = json.dumps(str(out)), json.dumps(ensemble.members[0].run)
    click.echo(f"to use them, add to a recipe:\n[[data.pseudo]]\nfolder = {folder}\nrun = {run}\nweight = 0.5")
