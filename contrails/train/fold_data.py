"""The data of a fold: opened, checked against the run's frozen configuration, and prepared for the model."""

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrails.dataset.residency import open_resident
from contrails.dataset.store import Dataset
from contrails.dataset.verify import RowCheck
from contrails.errors import DataError
from contrails.files import create_exclusive, read_json, sha256, to_json
from contrails.folds.exclusions import excluded_rows
from contrails.folds.filelists import FileList, read_filelist
from contrails.folds.pseudo import open_pseudo, weights_of, with_pseudo
from contrails.inputs.batches import Source, source_of
from contrails.inputs.composites import Composite
from contrails.inputs.normalise import fit_composite
from contrails.recipe.data import DataSection
from contrails.recipe.recipe import Recipe
from contrails.runs.config import RunConfig
from contrails.runs.folder import ALL, Fold
from contrails.train.context import JobContext


@dataclass(frozen=True)
class FoldData:
    """The data of one fold.

    Shape:
        training, validation: rows of `dataset`, int64. drawn: rows of `source.dataset` from which steps draw, int64;
        with pseudo-labels these are more than `training`. read: each file with the rows that are read from it, int64.
    """

    dataset: Dataset
    training: np.ndarray
    validation: np.ndarray
    source: Source
    drawn: np.ndarray
    read: tuple[tuple[Dataset, np.ndarray], ...]
    staging_s: float
    """Seconds in which the dataset file was opened, or copied to the node or to RAM."""

    def start_check(self, fold: Fold, num_folds: int, shared: int | None) -> RowCheck:
        """Start to verify the rows that are read; `shared` is the descriptor that `RowCheck` takes.

        The folds of a job begin at different rows, so that together they read each row once.
        """
        check = RowCheck(self.read, 0.0 if fold.key == ALL else int(fold.key) / num_folds, shared)
        check.start()
        return check


def open_data(
    fold: Fold, config: RunConfig, job: JobContext, device: torch.device, poll: Callable[[], None]
) -> FoldData:
    """Open the data of a fold.

    Args:
        fold: the fold that trains.
        config: the frozen configuration of its run.
        job: the job that this process runs in.
        device: the device on which batches are made.
        poll: called while bytes are copied; may raise to stop.

    Raises:
        DataError: a file is missing, damaged, or has changed since the run was created.
    """
    recipe, began = config.recipe, time.monotonic()
    dataset = open_resident(
        recipe.data.dataset,
        recipe.data.residency,
        stage_dir=None if job.stage_dir is None else Path(job.stage_dir),
        ram_fd=job.ram_fd,
        poll=poll,
        job_memory_gb=job.memory_gb,
    )
    staging_s = time.monotonic() - began
    filelist = read_filelist(recipe.data.filelist)
    _require_same_data(config, dataset)
    training, validation = training_rows(dataset, filelist, fold.key, recipe)
    composite = _composite(fold, dataset, recipe, training)
    others = _open_pseudo(config, fold.key, dataset)
    mixed, weights, drawn = add_pseudo(recipe.data, dataset, training, others)
    read = [training, validation]
    if recipe.data.positives_only:  # the votes of all records are read to decide which of them are positive
        read.append(dataset.rows(filelist.training(fold.key)))
    return FoldData(
        dataset,
        training,
        validation,
        replace(source_of(mixed, recipe, composite, device), weights=weights),
        drawn,
        ((dataset, np.concatenate(read)), *((other, _limited(other, recipe.data)) for other in others)),
        staging_s,
    )


def training_rows(dataset: Dataset, filelist: FileList, fold: str, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the dataset file that fold `fold` trains on and validates on, int64 each."""
    training, validation = dataset.rows(filelist.training(fold)), dataset.rows(filelist.validation(fold))
    training = training[~np.isin(training, excluded_rows(recipe.data.exclude, dataset))]
    if recipe.data.positives_only:
        training = training[dataset.positive_pixels(training) > 0]
    if recipe.data.overfit:
        positive_first = training[np.argsort(-dataset.positive_pixels(training), kind="stable")]
        training = validation = positive_first[: recipe.data.overfit]
    if recipe.data.limit:
        training, validation = training[: recipe.data.limit], validation[: recipe.data.limit]
    if not len(training):
        exclusions = f" and {recipe.data.exclude}" if recipe.data.exclude else ""
        raise DataError(
            f"fold {fold}: expected records to train on, found none; check {recipe.data.filelist}{exclusions}"
        )
    return training, validation


def add_pseudo(
    data: DataSection, dataset: Dataset, training: np.ndarray, others: Sequence[Dataset]
) -> tuple[Dataset, np.ndarray | None, np.ndarray]:
    """Return the dataset with pseudo-labels after its rows, the weight of each row, and the rows to train on."""
    if not others:
        return dataset, None, training
    mixed = with_pseudo(dataset, others, data.frames)
    ends = itertools.accumulate((other.num_records for other in others), initial=dataset.num_records)
    rows = np.concatenate([end + _limited(other, data) for end, other in zip(ends, others, strict=False)])
    if data.positives_only:
        rows = rows[mixed.positive_pixels(rows) > 0]
    return mixed, weights_of(dataset, data.pseudo, others), np.concatenate([training, rows])


def _limited(other: Dataset, data: DataSection) -> np.ndarray:
    """Return the rows of a file of pseudo-labels to train on, int64."""
    return np.arange(other.num_records)[: data.limit or None]


def _open_pseudo(config: RunConfig, fold: str, dataset: Dataset) -> list[Dataset]:
    others = [open_pseudo(section, fold, dataset, config.data.filelist) for section in config.recipe.data.pseudo]
    for other in others:
        _require_same("pseudo-labels", other.path, config.data.pseudo.get(str(other.path)), other.fingerprint)
    return others


def _composite(fold: Fold, dataset: Dataset, recipe: Recipe, training: np.ndarray) -> Composite:
    """Return the fold's input channels, with the normalisation of an earlier attempt if there is one."""
    if not fold.composite.exists():
        fitted = fit_composite(dataset, recipe, training).to_dict()
        create_exclusive(fold.composite, to_json(fitted | {"sha256": _digest(fitted)}))
    found = read_json(fold.composite)
    if found.pop("sha256", None) not in (None, _digest(found)):  # files of the first versions have no digest
        raise DataError(
            f"{fold.composite} is not what was written: the channels of this fold were edited or damaged; remove it, "
            f"then run `contrails resume {fold.run.typed}`, which fits the same channels again"
        )
    return Composite.from_dict(found)


def _digest(composite: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(composite).encode()).hexdigest()


def _require_same_data(config: RunConfig, dataset: Dataset) -> None:
    exclude = config.recipe.data.exclude
    for what, path, expected, found in (
        ("dataset", dataset.path, config.data.dataset, dataset.fingerprint),
        ("file list", config.recipe.data.filelist, config.data.filelist, sha256(config.recipe.data.filelist)),
        ("exclusion list", exclude, config.data.exclude, sha256(exclude) if exclude else ""),
    ):
        _require_same(what, path, expected, found)


def _require_same(what: str, path: Path | None, expected: str | None, found: str) -> None:
    if expected != found:
        raise DataError(
            f"the {what} {path} is not the one this run was made for (expected digest {str(expected)[:16]}, "
            f"found {found[:16]}); put the old file back, or submit under a new --name"
        )
