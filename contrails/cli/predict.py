"""`contrails predict`: masks, probabilities or a submission of any records, from an ensemble."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contrails.cli.options import choose_device, device_option, find_ensemble
from contrails.files import atomic_path
from contrails.progress import bar

if TYPE_CHECKING:
    import numpy as np

    from contrails.data.store import Dataset


@click.command()
@click.argument("name", metavar="ENSEMBLE")
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["submission", "npy", "png", "probabilities"]),
    default="submission",
    show_default=True,
    help="A CSV file; a folder with a mask a record; or an HDF5 file of uint16 probabilities, which resumes.",
)
@click.option("--sample", type=click.Path(path_type=Path), help="Sample submission: fixes the ids and their order.")
@device_option
def predict(name: str, source: Path, out: Path, kind: str, sample: Path | None, device: str) -> None:
    """Predict INPUT with ENSEMBLE (its folder, or a run's name) into OUT.

    INPUT is a dataset file, or a folder with a folder of raw records each, such as data/demo/raw/test. As many records
    go through at once as the GPU holds.

    \b
    Example:
      contrails predict default data/demo/raw/test masks --format png
      contrails predict ensembles/both data/demo/test.h5 submission.csv
    """
    import numpy as np

    from contrails.aggregate.ensemble import masks_of, predict_into, read_ensemble
    from contrails.aggregate.submission import sample_ids, write_submission

    ensemble, chosen = read_ensemble(find_ensemble(name)), choose_device(device)
    if not ensemble.complete:
        click.echo(f"partial: an ensemble of {ensemble.folds}", err=True)
    with _opened(source, *ensemble.needs()) as dataset:
        if sample is not None:
            sample_ids(sample, set(dataset.record_ids))
        rows = np.arange(dataset.num_records)
        if kind == "probabilities":
            predict_into(ensemble, dataset, rows, out, chosen)
            return
        batches = ensemble.predictor(dataset, chosen)(rows)
        masks = _counted(
            (mask for part, images in batches for mask in masks_of(ensemble, _ids(dataset, part), images)), len(rows)
        )
        if kind == "submission":
            write_submission(out, masks, sample)
        else:
            _write_masks(out, masks, kind)


def _ids(dataset: "Dataset", rows: "np.ndarray") -> tuple[str, ...]:
    return tuple(dataset.record_ids[row] for row in rows)


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


def _counted(masks: "Iterable[tuple[str, np.ndarray]]", total: int) -> "Iterator[tuple[str, np.ndarray]]":
    with bar("predictions", total) as advance:
        for mask in masks:
            yield mask
            advance(1)


def _write_masks(folder: Path, masks: "Iterable[tuple[str, np.ndarray]]", kind: str) -> None:
    """Write `<record id>.npy`, bool (H, W), or `.png`, 8 bits with 255 for contrail."""
    import numpy as np
    from PIL import Image

    for record_id, mask in masks:
        with atomic_path(folder / f"{record_id}.{kind}") as temporary, temporary.open("wb") as file:
            if kind == "npy":
                np.save(file, mask)
            else:
                Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(file, "png")
