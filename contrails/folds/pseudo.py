"""Pseudo-labels: dataset files, one per fold, with the probabilities of a member as votes, and their use in training.

The file of fold k is predicted by the member of fold k alone: every other member was trained on the records that fold k
validates on. The file holds none of these records. `contrails predict --format pseudo` writes the files; their HDF5
attribute `pseudo` records how they were made.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError
from contrails.recipe.data import PseudoSection
from contrails.recipe.recipe import Recipe
from contrails.runs.config import RunConfig
from contrails.runs.folder import ALL

ANNOTATORS = 254
"""Votes for probability 1: probabilities are stored in steps of 1/254, as 255 is the ignore value."""

ATTRIBUTE = "pseudo"
_SAME = ("band_names", "scale_factor", "add_offset", "label_offset_px", "label_frame")


def pseudo_path(folder: Path, fold: str) -> Path:
    """Return the file of a fold's pseudo-labels."""
    return folder / f"fold{fold}.h5"


def read_origin(path: Path) -> dict[str, Any] | None:
    """Return how pseudo-labels were made (run, fold, weights, filelist, source, frames); None for other files."""
    with h5py.File(path, "r", locking=False) as file:
        found = file.attrs.get(ATTRIBUTE)
    origin: dict[str, Any] | None = None if found is None else json.loads(found)
    return origin


def open_pseudo(section: PseudoSection, fold: str, dataset: Dataset, filelist: str) -> Dataset:
    """Open the pseudo-labels of a fold.

    Args:
        section: the pseudo-labels in the recipe.
        fold: the fold that trains.
        dataset: the labelled data.
        filelist: SHA-256 of the run's file list.

    Raises:
        DataError: no such file, or it was made by another member or with another file list, or does not fit the
            dataset.
    """
    path = pseudo_path(section.folder, fold)
    if not path.is_file():
        raise _missing(section, fold)
    found, origin = open_dataset(path), read_origin(path)
    expected = {"run": section.run, "fold": fold, "filelist": filelist}
    if origin is None or {key: origin[key] for key in expected} != expected:
        made = "another kind of file" if origin is None else ", ".join(f"{key} {origin[key]}" for key in expected)
        raise DataError(
            f"{path}: expected pseudo-labels made by run {section.run}, fold {fold}, with the file list {filelist}, "
            f"found {made}; other members were trained on records that fold {fold} validates on: make them again with "
            f"`contrails predict {shlex.quote(section.run)} DATA.h5 FOLDER --format pseudo`"
        )
    differing = [name for name in _SAME if getattr(found, name) != getattr(dataset, name)]
    if found.votes.shape[1:] != dataset.votes.shape[1:]:
        differing.append("size")
    if differing:
        raise DataError(
            f"{path}: expected pseudo-labels that fit {dataset.path}, found another {', '.join(differing)}; prepare "
            "the unlabelled records with the same options, and predict them again"
        )
    return found


def _missing(section: PseudoSection, fold: str) -> DataError:
    return DataError(
        f"expected the pseudo-labels of fold {fold} at {pseudo_path(section.folder, fold)}, found none; make them with "
        f"`contrails predict {shlex.quote(section.run)} DATA.h5 {shlex.quote(str(section.folder))} --format pseudo`"
    )


def all_pseudo(recipe: Recipe, num_folds: int, dataset: Dataset, filelist: str) -> dict[str, str]:
    """Return the fingerprint of each existing file of pseudo-labels, by path; raises as `open_pseudo`."""
    found = {}
    for section in recipe.data.pseudo:
        for fold in (*map(str, range(num_folds)), ALL):
            if pseudo_path(section.folder, fold).is_file():
                pseudo = open_pseudo(section, fold, dataset, filelist)
                found[str(pseudo.path)] = pseudo.fingerprint
    return found


def require_pseudo(config: RunConfig, folds: Sequence[str]) -> None:
    """Check that the pseudo-labels of each fold existed when the run was created.

    Raises:
        DataError: some did not.
    """
    for section in config.recipe.data.pseudo:
        for fold in folds:
            if str(pseudo_path(section.folder, fold)) not in config.data.pseudo:
                raise _missing(section, fold)


def with_pseudo(dataset: Dataset, others: Sequence[Dataset], frames: tuple[int, ...]) -> Dataset:
    """Return a dataset with the rows of `others` after its own, without copying.

    Its bands and votes can be indexed by single rows only, and it has only the frames `frames`.

    Raises:
        RecipeError: one of the datasets lacks a frame.
    """
    all_of = (dataset, *others)
    wanted = frames or (dataset.label_frame,)
    positions = [each.frame_positions(wanted) for each in all_of]
    return replace(
        dataset,
        # samplers and buffers use only single rows, the dtype and the shape of an array
        bands=cast(np.ndarray, Rows([each.bands for each in all_of], positions)),
        votes=cast(np.ndarray, Rows([each.votes for each in all_of])),
        marks=None,
        annotators=np.concatenate([each.annotators for each in all_of]),
        record_ids=tuple(chain.from_iterable(each.record_ids for each in all_of)),
        groups=tuple(chain.from_iterable(each.groups for each in all_of)),
        timestamps=np.concatenate([each.timestamps for each in all_of]),
        digests={},
        frames=wanted,
    )


class Rows:
    """Arrays of several files, indexed by row as one array; a row is a view into its file."""

    def __init__(self, arrays: Sequence[np.ndarray], positions: Sequence[tuple[int, ...]] = ()) -> None:
        # plain arrays: indexing a numpy.memmap costs microseconds more
        self._arrays, self._positions = [np.asarray(array) for array in arrays], positions
        self._ends = np.cumsum([len(array) for array in arrays])
        self._length = sum(len(array) for array in arrays)
        length = (len(positions[0]),) if positions else self._arrays[0].shape[1:2]
        self.shape = (self._length, *length, *self._arrays[0].shape[2:])
        self.dtype, self.ndim = self._arrays[0].dtype, self._arrays[0].ndim

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> np.ndarray | list[np.ndarray]:
        """Return a row; for bands, a list with a view of each frame."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        found: np.ndarray = self._arrays[number][row - (self._ends[number - 1] if number else 0)]
        return [found[position] for position in self._positions[number]] if self._positions else found


def weights_of(dataset: Dataset, sections: Sequence[PseudoSection], others: Sequence[Dataset]) -> np.ndarray:
    """Return the weight of each record in the loss, float32 (N,): 1 for labelled records, then that of each file."""
    parts = [np.ones(dataset.num_records)]
    parts += [np.full(other.num_records, section.weight) for section, other in zip(sections, others, strict=True)]
    return np.concatenate(parts).astype(np.float32)
