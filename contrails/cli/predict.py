"""`contrails predict`: masks, probabilities or a submission of any records, from an ensemble."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contrails.cli.options import choose_device, device_option, find_ensemble, read_numbers

if TYPE_CHECKING:
    import torch

    from contrails.aggregate.ensemble import Ensemble
    from contrails.data.store import Dataset


@click.command()
@click.argument("name", metavar="ENSEMBLE")
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["submission", "npy", "png", "probabilities", "pseudo"]),
    default="submission",
    show_default=True,
    help="A CSV file; a folder with a mask a record; an HDF5 file of uint16 probabilities; or a folder with a dataset "
    "file of pseudo-labels a fold.",
)
@click.option("--frames", help="With --format pseudo: frames to label, such as 2,3,5; default: the labelled one.")
@click.option("--sample", type=click.Path(path_type=Path), help="Sample submission: fixes the ids and their order.")
@device_option
def predict(
    name: str, source: Path, out: Path, kind: str, frames: str | None, sample: Path | None, device: str
) -> None:
    """Predict INPUT with ENSEMBLE (its folder, or a run's name) into OUT.

    INPUT is a dataset file, or a folder with a folder of raw records each, such as data/demo/raw/test. As many records
    go through at once as the GPU holds. Killed and started again, it goes on where it was.

    Pseudo-labels are made of records without a label, and of other frames of labelled ones; a fold's file by that
    fold's member alone, without what the fold validates on or nobody may see. Recipes mix them in as [[data.pseudo]].

    \b
    Example:
      contrails predict default data/demo/raw/test masks --format png
      contrails predict ensembles/both data/demo/test.h5 submission.csv
      contrails predict default data/all.h5 data/pseudo --format pseudo --frames 3,5
    """
    import numpy as np

    from contrails.aggregate.ensemble import masks_of, predict_into, read_ensemble
    from contrails.aggregate.masks import write_masks
    from contrails.aggregate.submission import sample_ids, write_submission

    ensemble, chosen = read_ensemble(find_ensemble(name)), choose_device(device)
    if not ensemble.complete:
        click.echo(f"partial: an ensemble of {ensemble.folds}", err=True)
    if kind == "pseudo":
        _write_pseudo(ensemble, source, out, frames, chosen)
        return
    if frames is not None:
        raise click.UsageError("--frames is for --format pseudo")
    with _opened(source, *ensemble.needs()) as dataset:
        if sample is not None:
            sample_ids(sample, set(dataset.record_ids))
        rows = np.arange(dataset.num_records)
        if kind == "probabilities":
            predict_into(ensemble, dataset, rows, out, chosen)
            return
        if kind != "submission":
            made = write_masks(ensemble, dataset, out, "png" if kind == "png" else "npy", chosen)
            click.echo(f"{out}: {dataset.num_records} masks, {dataset.num_records - made} of them were there")
            return
        begun = out.with_name(f".{out.name}")
        probabilities = predict_into(ensemble, dataset, rows, begun / f"{out.stem}.h5", chosen)
        write_submission(out, masks_of(ensemble, dataset.record_ids, probabilities), sample)
        shutil.rmtree(begun)


def _write_pseudo(ensemble: "Ensemble", source: Path, out: Path, frames: str | None, device: "torch.device") -> None:
    from contrails.aggregate.pseudo import write_pseudo_labels
    from contrails.data.store import open_dataset

    numbers = tuple(read_numbers(frames, "--frames")) if frames is not None else ()
    for path, count in write_pseudo_labels(ensemble, open_dataset(source), out, numbers, device):
        click.echo(f"{path}: {count} records")
    folder, run = json.dumps(str(out)), json.dumps(ensemble.members[0].run)
    click.echo(f"in a recipe:\n[[data.pseudo]]\nfolder = {folder}\nrun = {run}\nweight = 0.5")


@contextmanager
def _opened(source: Path, bands: tuple[int, ...], frames: tuple[int, ...]) -> "Iterator[Dataset]":
    """Open a dataset file, or pack a folder of raw records into one that lasts as long as this call."""
    from contrails.data.goes import make_plan
    from contrails.data.pack import pack
    from contrails.data.store import open_dataset

    if not source.is_dir():
        yield open_dataset(source)
        return
    plan = make_plan(source.absolute().parent, source.absolute().name, bands, frames)
    with tempfile.TemporaryDirectory() as folder:
        pack(plan, Path(folder) / "input.h5", 1)
        yield open_dataset(Path(folder) / "input.h5")
