"""`contrails predict`: masks, probabilities or a submission of any records or scenes, from an ensemble."""

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
    help="A CSV file (default where OUT ends on .csv); a folder with a mask a record or scene (default where it has no "
    "ending); an HDF5 file of uint16 probabilities; or a folder with a dataset file of pseudo-labels a fold. Of one "
    "scene: a GeoTIFF or PNG file, by OUT's ending, or a GeoTIFF of probabilities.",
)
@click.option("--frames", help="With --format pseudo: frames to label, such as 2,3,5; default: the labelled one.")
@click.option("--sample", type=FilePath(), help="Sample submission: fixes the ids and their order.")
@click.option("--tile", type=click.IntRange(32), help="Scenes: side of their tiles; default: as in training.")
@click.option("--overlap", type=click.IntRange(0), help="Scenes: of their tiles, in pixels; default: as in training.")
@click.option(
    "--blend", type=click.Choice(["hann", "gaussian"]), default="hann", show_default=True, help="How tiles are blended."
)
@click.option("--bands", default="", help="Scenes: names of their bands in their order; default: as in training.")
@click.option("--scenes", default="", help="A folder of scenes: where they lie, as in contrails prepare.")
@click.option("--force", is_flag=True, help="Replace OUT, or the masks in it, where they are of something else.")
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
    """Predict INPUT with ENSEMBLE into OUT.

    ENSEMBLE is its folder, or a run's name. INPUT is a dataset file; a folder of raw data as the run was trained on: a
    folder a GOES record, such as data/demo/raw/test, scenes or images; or one scene, a GeoTIFF, JPEG 2000, PNG or .npy
    file of any size, which is read, predicted and written strip by strip. Raw data are cut, named and scaled as for
    training, where nothing else is given. Tiles are put together to scenes. As many records go through at once as the
    GPU holds. Killed and started again, it goes on where it was, and does nothing where all of it is there. What is of
    another ensemble or input is never replaced without --force.

    Masks hold 0 and 1, and 255 where there are no data, as GeoTIFF; 0 and 255 as PNG. Probabilities are uint16, of
    which 65535 is 1, and 0 where there are no data.

    Pseudo-labels are made of records without a label, and of other frames of labelled ones; a fold's file by that
    fold's member alone, without what the fold validates on or nobody may see. Recipes mix them in as [[data.pseudo]].

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
    if out.is_file() and not force and (is_scene or kind != "probabilities"):  # a file of these may be half done
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
            raise click.UsageError("--force: a dataset file is never replaced; give another folder for --format pseudo")
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
        raise click.UsageError(f"--tile, --overlap, --bands and --scenes are for scenes, and {source} holds none")
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
        shutil.rmtree(begun, ignore_errors=True)  # another process, which made the same of it, may be at it
    click.echo(_said(out, f"{len(dataset.whole_shapes)} masks", made=made))


def _said(out: Path, what: str, *, made: bool) -> str:
    """Return what a command says at its end of what it wrote, or had written before."""
    return f"{out}: {what}" if made else f"{out}: {what}, complete already: nothing to do"


def _require_paths(source: Path, out: Path) -> None:
    """Check that there is something to predict, before minutes of loading."""
    if not source.exists():
        raise DataError(f"{source}: expected a dataset file, a scene or a folder of raw data as INPUT, found nothing")
    if source.is_dir() and next(source.iterdir(), None) is None:
        raise DataError(f"{source}: expected a folder of raw data as INPUT, found an empty folder")
    if out.exists() and out.samefile(source):
        raise click.BadParameter(f"{out} is INPUT itself, which would be lost; give another name", param_hint="OUT")


def _require_out(source: Path, out: Path, kind: str | None) -> None:
    """Check that the name of what is made of many records is one of what it will be."""
    if kind is None and out.suffix.lower() not in ("", ".csv"):
        raise click.BadParameter(
            f"'{out}': expected an ending .csv for a submission, or none for a folder of masks, found '{out.suffix}' "
            f"for {source}, which is not one scene; give another name, or --format",
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
        raise click.UsageError(f"--scenes is for a folder of scenes, and {source} is one scene")
    from contrails.aggregate.output.folders import bands_of, tiling_of
    from contrails.aggregate.output.scene import predict_scene
    from contrails.sources.rasters import describe

    chosen = kind or out.suffix.lower().removeprefix(".").replace("tiff", "tif")
    if chosen not in _SCENE_FORMATS:
        raise click.BadParameter(
            f"'{chosen}': expected one of {', '.join(_SCENE_FORMATS)} for one scene; give it, or let {out} end so",
            param_hint="--format",
        )
    endings = (".png",) if chosen == "png" else (".tif", ".tiff")
    if out.is_dir():
        raise click.BadParameter(f"{out}: expected the name of a file for {source}, found a folder", param_hint="OUT")
    if out.suffix.lower() not in endings:
        raise click.BadParameter(f"{out}: expected an ending {' or '.join(endings)} for {chosen}", param_hint="OUT")
    cut, bands = tiling_of(ensemble, describe(source), given, blend), bands_of(ensemble, given)
    scene, made = predict_scene(ensemble, source, out, chosen, cut, bands, device, force=force)  # type: ignore[arg-type]
    click.echo(_said(out, f"{scene.height} x {scene.width} pixels", made=made))


def _write_pseudo(ensemble: "Ensemble", source: Path, out: Path, frames: str | None, device: "torch.device") -> None:
    from contrails.aggregate.output.pseudo import write_pseudo_labels
    from contrails.dataset.store import open_dataset

    numbers = tuple(read_numbers(frames, "--frames")) if frames is not None else ()
    for path, count in write_pseudo_labels(ensemble, open_dataset(source), out, numbers, device):
        click.echo(f"{path}: {count} records")
    folder, run = json.dumps(str(out)), json.dumps(ensemble.members[0].run)
    click.echo(f"in a recipe:\n[[data.pseudo]]\nfolder = {folder}\nrun = {run}\nweight = 0.5")
