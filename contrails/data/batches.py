"""Batches: which records a step sees, and their integers as one gather from the mapped file.

The order of an epoch is a function of (seed, fold, epoch), so a batch is a function of (seed, fold, step) alone,
wherever the process was started. Integers travel to the device; kelvin, channels and targets are made there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from contrails.config import Recipe
from contrails.data.augment import apply_dihedral, draw_dihedral
from contrails.data.composites import Channel, channels, compose
from contrails.data.store import Dataset
from contrails.draws import generator
from contrails.errors import RecipeError

IGNORE = 255
"""Value of a vote that says: this pixel does not count."""


@dataclass(frozen=True)
class Batch:
    """Inputs and targets on the device.

    Shape:
        inputs float32 (B, C, H, W); target float32 (B, H, W): the share of annotators, or 0 and 1 where the recipe
        says hard; hard bool (B, H, W): strictly more than half; valid bool (B, H, W): pixels that count.
    """

    inputs: torch.Tensor
    target: torch.Tensor
    hard: torch.Tensor
    valid: torch.Tensor


class Source:
    """A dataset seen with the eyes of a recipe: chosen frames and channels, on one device."""

    def __init__(self, dataset: Dataset, recipe: Recipe, device: torch.device) -> None:
        self.dataset, self.recipe, self.device = dataset, recipe, device
        self.channels: tuple[Channel, ...] = channels(recipe.data.composite, dataset.band_names)
        frames = frame_positions(recipe, dataset)
        self.num_channels = len(frames) * len(self.channels)
        self._bands = torch.from_numpy(dataset.bands)
        self._votes = torch.from_numpy(dataset.votes)
        self._annotators = torch.from_numpy(dataset.annotators)
        # None where all frames are used: a plain gather of whole records
        self._frames = None if frames == list(range(len(dataset.frames))) else torch.tensor(frames)

    def batch(self, rows: np.ndarray, elements: list[int] | None = None) -> Batch:
        """Return the batch of these rows of the file; `elements` are the dihedral moves of its samples."""
        index = torch.from_numpy(rows)
        packed = self._bands.index_select(0, index)
        if self._frames is not None:
            packed = packed.index_select(1, self._frames)
        votes = self._votes.index_select(0, index).to(self.device, non_blocking=True)
        annotators = self._annotators.index_select(0, index).to(self.device)
        dataset = self.dataset
        inputs = compose(
            packed.to(self.device, non_blocking=True),
            self.channels,
            dataset.band_names,
            dataset.scale_factor,
            dataset.add_offset,
        )
        if elements is not None and any(elements):
            inputs, votes = apply_dihedral(inputs, votes, elements, dataset.label_offset_px, IGNORE)
        return _targets(inputs, votes, annotators, hard_target=self.recipe.loss.target == "hard")


def frame_positions(recipe: Recipe, dataset: Dataset) -> list[int]:
    """Return where the recipe's frames lie along axis T of the file; the labelled frame where it names none.

    Raises:
        RecipeError: the file does not hold one of them.
    """
    wanted = recipe.data.frames or (dataset.label_frame,)
    missing = [frame for frame in wanted if frame not in dataset.frames]
    if missing:
        raise RecipeError(
            f"data.frames = {list(wanted)}: {dataset.path} holds the frames {list(dataset.frames)}, not {missing}; "
            "choose among them, or prepare the dataset again with --frames"
        )
    return [dataset.frames.index(frame) for frame in wanted]


class TrainingBatches:
    """The batches of a fold, by step."""

    def __init__(self, source: Source, rows: np.ndarray, fold: str) -> None:
        self._source, self._rows, self._fold = source, rows, fold
        self._batch_size = min(source.recipe.train.batch_size, len(rows))
        # The last incomplete batch is left out: batch norm of a single record would be noise.
        self.steps_per_epoch = len(rows) // self._batch_size

    def rows(self, step: int) -> np.ndarray:
        """Return the rows of the file that step number `step` (from 0) sees, int64."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = generator(self._source.recipe.seed, "order", self._fold, epoch).permutation(self._rows)
        return order[position * self._batch_size : (position + 1) * self._batch_size]

    def batch(self, step: int) -> Batch:
        rows = self.rows(step)
        recipe = self._source.recipe
        elements = draw_dihedral(recipe.seed, self._fold, step, len(rows), recipe.augment.dihedral)
        return self._source.batch(rows, elements)


def in_order(source: Source, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield the rows in their order with their batches, unchanged by augmentation."""
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield part, source.batch(part)


def _targets(inputs: torch.Tensor, votes: torch.Tensor, annotators: torch.Tensor, *, hard_target: bool) -> Batch:
    annotators = annotators.view(-1, 1, 1)
    valid = (votes != IGNORE) & (annotators > 0)
    hard = valid & (votes.to(torch.int16) * 2 > annotators)
    soft = torch.where(valid, votes / annotators.clamp(min=1), 0.0)
    return Batch(inputs, hard.float() if hard_target else soft, hard, valid)
