"""Batches: which records a step sees, and their integers as one gather from the mapped file, made ahead by a thread.

The order of an epoch is a function of (seed, fold, epoch), so a batch is a function of (seed, fold, step) alone,
wherever the process was started. Integers travel to the device; channels and targets are made there. There are no
worker processes: one gather into a reused buffer is as fast as a copy, and nothing is pickled.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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

_AHEAD = 3
"""Batches gathered before they are asked for; each has a buffer of its own."""


@dataclass(frozen=True)
class Part:
    """What one batch is made of: rows of the file (int64) and, for each, the dihedral element that moves it."""

    rows: np.ndarray
    elements: list[int]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets on the device.

    Shape:
        rows int64 (B,); inputs float32 (B, C, H, W); target float32 (B, H, W): the share of annotators, or 0 and 1
        where the recipe says hard; hard bool (B, H, W): strictly more than half; valid bool (B, H, W): what counts.
    """

    rows: np.ndarray
    inputs: torch.Tensor
    target: torch.Tensor
    hard: torch.Tensor
    valid: torch.Tensor


class Source:
    """A dataset seen with the eyes of a recipe: chosen frames and channels, on one device.

    Raises:
        RecipeError: the dataset lacks a frame or a band that the recipe needs.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, device: torch.device) -> None:
        self.dataset, self.recipe, self.device = dataset, recipe, device
        self.channels: tuple[Channel, ...] = channels(recipe.data.composite, dataset.band_names)
        frames = frame_positions(recipe, dataset)
        self.num_channels = len(frames) * len(self.channels)
        bands = torch.from_numpy(dataset.bands)
        # a slice is a view that index_select reads in place; any other choice of frames is taken after the gather
        run = range(frames[0], frames[0] + len(frames))
        self._bands = bands[:, frames[0] : run.stop] if frames == list(run) else bands
        self._frames = None if frames == list(run) else torch.tensor(frames, device=device)
        self._votes = torch.from_numpy(dataset.votes)
        self._annotators = torch.from_numpy(dataset.annotators)

    def batches(self, parts: Iterable[Part]) -> Iterator[Batch]:
        """Yield the batch of each part; a thread gathers the integers of the next ones meanwhile."""
        parts = iter(parts)
        slots = itertools.cycle([_Slot(self) for _ in range(_AHEAD)])
        with ThreadPoolExecutor(1, thread_name_prefix="gather") as pool:
            waiting = deque(
                (part, slot, pool.submit(slot.gather, part.rows))
                for part, slot in zip(itertools.islice(parts, _AHEAD), slots, strict=False)
            )
            while waiting:
                part, slot, gathered = waiting.popleft()
                gathered.result()
                batch = self._finish(part, slot)
                for following in itertools.islice(parts, 1):
                    waiting.append((following, slot, pool.submit(slot.gather, following.rows)))
                yield batch

    def _finish(self, part: Part, slot: "_Slot") -> Batch:
        dataset = self.dataset
        packed, votes, annotators = slot.to_device(len(part.rows))
        if self._frames is not None:
            packed = packed.index_select(1, self._frames)
        inputs = compose(packed, self.channels, dataset.band_names, dataset.scale_factor, dataset.add_offset)
        if any(part.elements):
            inputs, votes = apply_dihedral(inputs, votes, part.elements, dataset.label_offset_px, IGNORE)
        annotators = annotators.view(-1, 1, 1)
        valid = (votes != IGNORE) & (annotators > 0)
        hard = (votes > annotators // 2) & valid  # strictly more than half
        if self.recipe.loss.target == "hard":
            target = hard.float()
        else:
            target = votes.float().div_(annotators.clamp(min=1).float()).mul_(valid)
        return Batch(part.rows, inputs, target, hard, valid)


class _Slot:
    """One reused buffer of a batch; pinned where there is CUDA, so that the copy does not block."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._cuda = source.device.type == "cuda"
        self._copied = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]
        self._buffers: list[torch.Tensor] = []

    def gather(self, rows: np.ndarray) -> None:
        """Copy rows of the file into the buffer, once the device has taken what it held."""
        if self._copied is not None:
            self._copied.synchronize()
        source, index = self._source, torch.from_numpy(rows)
        arrays = (source._bands, source._votes, source._annotators)
        if not self._buffers or len(self._buffers[0]) < len(rows):
            self._buffers = [a.new_empty((len(rows), *a.shape[1:]), pin_memory=self._cuda) for a in arrays]
        for array, buffer in zip(arrays, self._buffers, strict=True):
            torch.index_select(array, 0, index, out=buffer[: len(rows)])

    def to_device(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return packed bands, votes and annotators on the device; on the CPU these are the buffers themselves."""
        bands, votes, annotators = (
            buffer[:count].to(self._source.device, non_blocking=True) for buffer in self._buffers
        )
        if self._copied is not None:
            self._copied.record()
        return bands, votes, annotators


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
        self.batch_size = min(source.recipe.train.batch_size, len(rows))
        # The last incomplete batch is left out: batch norm of a single record would be noise.
        self.steps_per_epoch = len(rows) // self.batch_size

    def part(self, step: int) -> Part:
        """Return what step number `step` (from 0) sees."""
        epoch, position = divmod(step, self.steps_per_epoch)
        recipe = self._source.recipe
        order = generator(recipe.seed, "order", self._fold, epoch).permutation(self._rows)
        rows = order[position * self.batch_size : (position + 1) * self.batch_size]
        return Part(rows, draw_dihedral(recipe.seed, self._fold, step, len(rows), recipe.augment.dihedral))

    def stream(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches from one step on, without end."""
        return self._source.batches(self.part(step) for step in itertools.count(first_step))


def in_order(source: Source, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of rows in their order, unchanged by augmentation."""
    parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return source.batches(Part(part, [0] * len(part)) for part in parts)
