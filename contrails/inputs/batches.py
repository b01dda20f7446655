"""Batches: a thread copies integers from the mapped file into reused buffers; the device computes inputs from them.

A batch is a function of its `Selection` (see `contrails.inputs.sampling`) and does not depend on where the process was
started or how many batches are prepared ahead. There are no worker processes: copying rows into a reused buffer is as
fast as the memory, and nothing is pickled. Channels, moves and targets are computed on the device.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from contrails.dataset.store import IGNORE, Dataset
from contrails.inputs.augment.chain import Chain, require_reversible
from contrails.inputs.augment.dihedral import apply_dihedral
from contrails.inputs.augment.samples import Samples
from contrails.inputs.composites import Composite, compose
from contrails.inputs.sampling import Selection
from contrails.inputs.transfer import to_device
from contrails.recipe.recipe import Recipe

_AHEAD = 3
"""Number of batches gathered in advance, each in its own buffer."""


@dataclass(frozen=True)
class Batch:
    """Inputs and targets on the device.

    Shape:
        rows int64 (B,); inputs float32 (B, C, H, W), or (B, T, C, H, W) with frames as a time axis; target float32
        (B, H, W): the fraction of the annotators, or 0 and 1 with hard targets; valid bool (B, H, W): False where
        ignored; fraction: fraction of the step's records in this batch; weights float32 (B,): weight of each record in
        the loss, or None if all are 1.
    """

    rows: np.ndarray
    inputs: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor
    fraction: float = 1.0
    weights: torch.Tensor | None = None

    @property
    def hard(self) -> torch.Tensor:
        """The valid pixels that more than half of the annotators marked, bool (B, H, W)."""
        return self.target > 0.5


@dataclass(frozen=True)
class Source:
    """A dataset with everything that turns its records into batches on one device.

    `frames` are positions along axis T of the file; `hard_target` makes targets 0 and 1; `time_axis` keeps the frames
    as an axis instead of stacking their channels; `weights` float32 (N,) are the weights of the records in the loss;
    `chain` is the augmentation, applied to selections with draws; `by_record` sets every pixel of a record to its
    largest target, for classifiers.
    """

    dataset: Dataset
    frames: tuple[int, ...]
    composite: Composite
    device: torch.device
    hard_target: bool = False
    time_axis: bool = False
    weights: np.ndarray | None = None
    chain: Chain | None = None
    by_record: bool = False

    @property
    def channel_axis(self) -> int:
        """Channel axis of `Batch.inputs`."""
        return 2 if self.time_axis else 1

    @property
    def num_channels(self) -> int:
        """Number of input channels of the model: of one frame with a time axis, else of all frames."""
        return len(self.composite.channels) * (1 if self.time_axis else len(self.frames))

    @property
    def label_position(self) -> int:
        """Position of the labelled frame among `frames`, or of the nearest one."""
        frames = [self.dataset.frames[position] for position in self.frames]
        return min(range(len(frames)), key=lambda index: (abs(frames[index] - self.dataset.label_frame), index))

    def batches(self, selections: Iterable[Selection]) -> Iterator[Batch]:
        """Yield the batch of each selection; a thread gathers the integers of the next ones meanwhile."""
        selections = iter(selections)
        with ThreadPoolExecutor(1, thread_name_prefix="gather") as pool:
            waiting = deque((buffer, pool.submit(buffer.gather, selections)) for buffer in self.buffers(_AHEAD))
            while (selection := waiting[0][1].result()) is not None:
                buffer, _ = waiting.popleft()
                batch = self._finish(selection, buffer)
                waiting.append((buffer, pool.submit(buffer.gather, selections)))
                yield batch

    def buffers(self, count: int) -> list["Buffer"]:
        """Return buffers for `count` batches of this source."""
        return [Buffer(self) for _ in range(count)]

    def _finish(self, selection: Selection, buffer: "Buffer") -> Batch:
        dataset = self.dataset
        packed, votes, annotators = buffer.to_device(len(selection.rows))
        if any(selection.elements):
            packed, votes = apply_dihedral(packed, votes, selection.elements, dataset.label_offset_px, IGNORE)
        factors = None
        if selection.draws and self.chain is not None:
            frames, _, height, width = packed.shape[1:]
            factors = self.chain.band_factors(selection.draws, (frames, height, width), self.device)
        physical = dataset.band_names, dataset.scale_factor, dataset.add_offset
        inputs = compose(packed, self.composite, *physical, factors)
        # 0 and 1 by arithmetic on bytes, which is ten times as fast as comparisons in torch
        valid = (IGNORE - votes.clamp(min=IGNORE - 1)) * annotators.clamp(max=1).view(-1, 1, 1)
        target = (votes * valid).float().div_(annotators.clamp(min=1).view(-1, 1, 1).float())
        if self.hard_target:
            target = (target > 0.5).float()  # strictly more than half
        weights = None if self.weights is None else to_device(self.weights[selection.rows], self.device)
        samples = Samples(inputs, target, valid.view(torch.bool), weights)
        if selection.draws and self.chain is not None:
            samples = self.chain.apply(samples, selection.draws)
        images, target, counts = samples.images, samples.target, samples.valid
        if self.by_record:
            target = (target * counts).amax((1, 2), keepdim=True).expand_as(target)
            counts = counts.flatten(1).any(1).view(-1, 1, 1).expand_as(counts)
        stacked = images if self.time_axis else images.flatten(1, 2)
        return Batch(selection.rows, stacked, target, counts, selection.fraction, samples.weights)


class Buffer:
    """A reused buffer with the integers of one batch; pinned memory with CUDA, so that copies do not block."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._cuda = source.device.type == "cuda"
        self._copied = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]
        self._tensors: tuple[torch.Tensor, ...] = ()
        self._bands, self._votes = _plain(source.dataset.bands), _plain(source.dataset.votes)
        self._annotators, self._frames = source.dataset.annotators, source.frames

    def gather(self, selections: Iterator[Selection]) -> Selection | None:
        """Copy the next selection's rows of the file into the buffer; return the selection, None after the last one."""
        selection = next(selections, None)
        if selection is not None:
            if self._copied is not None:
                self._copied.synchronize()  # the asynchronous copy of the previous content must be complete
            self._copy(selection)
        return selection

    def to_device(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return bands (B, T, C, H, W), votes (B, H, W) and annotators (B,); on the CPU these are the buffer itself."""
        bands, votes, annotators = (t[:count].to(self._source.device, non_blocking=True) for t in self._tensors)
        if self._copied is not None:
            # the stream of the device that is copied to, which may differ from the current device
            self._copied.record(torch.cuda.current_stream(self._source.device))
        return bands, votes, annotators

    def _copy(self, selection: Selection) -> None:
        height, width = (selection.side, selection.side) if selection.corners else self._votes.shape[1:]
        bands, votes, annotators = (tensor.numpy() for tensor in self._fitted(len(selection.rows), height, width))
        annotators[: len(selection.rows)] = self._annotators[selection.rows]
        window: Any = ...
        for index, row in enumerate(selection.rows):
            if selection.corners:
                top, left = selection.corners[index]
                window = (..., slice(top, top + height), slice(left, left + width))
            votes[index] = self._votes[row][window]
            seen = self._bands[row]
            for position, frame in enumerate(self._frames):
                bands[index, position] = seen[frame][window]

    def _fitted(self, count: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
        """Return tensors for `count` samples: the existing ones, or new ones if those are too small."""
        if not self._tensors or len(self._tensors[0]) < count:
            channels = self._bands.shape[2]
            shapes = (count, len(self._frames), channels, height, width), (count, height, width), (count,)
            arrays = (self._bands, self._votes, self._annotators)
            dtypes = (torch.from_numpy(np.empty(0, array.dtype)).dtype for array in arrays)
            self._tensors = tuple(
                torch.empty(shape, dtype=dtype, pin_memory=self._cuda)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            )
        return self._tensors


def _plain(array: np.ndarray) -> np.ndarray:
    """Return a view as a plain array, as indexing a numpy.memmap costs microseconds more; `Rows` stay as they are."""
    return np.asarray(array) if isinstance(array, np.ndarray) else array


def source_of(dataset: Dataset, recipe: Recipe, composite: Composite, device: torch.device) -> Source:
    """Return the source of batches for a recipe.

    Raises:
        RecipeError: the file lacks a frame of the recipe, or its frames cannot be reversed.
    """
    frames = dataset.frame_positions(recipe.data.frames)
    offsets = [dataset.frames[frame] - dataset.label_frame for frame in frames]
    if "time_reversal" in recipe.augment.kinds:
        require_reversible(offsets)
    hard = recipe.loss.target == "hard"
    source = Source(
        dataset,
        frames,
        composite,
        device,
        hard_target=hard,
        time_axis=recipe.model.temporal.merge != "channels",
        by_record=recipe.model.task == "classify",
    )
    if not recipe.augment.kinds:
        return source
    return replace(source, chain=Chain(recipe.augment, dataset.label_offset_px, source.label_position, hard))


def in_order(source: Source, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of rows in order, as whole records without augmentation."""
    return source.batches(Selection(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size))
