"""Batches: integers copied from the mapped file into reused buffers by a thread, made into inputs on the device.

A batch is a function of its `Selection` (see `contrails.inputs.sampling`), wherever the process was started and
however many are prepared ahead. There are no worker processes: copying rows into a reused buffer runs at the memory's
speed, and nothing is pickled. Channels, moves and targets are made on the device.
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
from contrails.recipe.recipe import Recipe

_AHEAD = 3
"""Batches gathered before they are asked for; each has a buffer of its own."""


@dataclass(frozen=True)
class Batch:
    """Inputs and targets on the device.

    Shape:
        rows int64 (B,); inputs float32 (B, C, H, W), or (B, T, C, H, W) with frames as a time axis; target float32
        (B, H, W): the share of annotators, or 0 and 1 where the recipe says hard; valid bool (B, H, W): what counts;
        share: how much of its step this batch is; weights float32 (B,): how much each record counts in the loss, None
        where all count alike.
    """

    rows: np.ndarray
    inputs: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor
    fraction: float = 1.0
    weights: torch.Tensor | None = None

    @property
    def hard(self) -> torch.Tensor:
        """Where more than half of the annotators marked a pixel that counts, bool (B, H, W)."""
        return self.target > 0.5


@dataclass(frozen=True)
class Source:
    """A dataset as a model sees it, on one device.

    `frames` are positions along axis T of the file; `hard_target` makes targets 0 and 1; `time_axis` keeps the frames
    apart instead of stacking their channels; `weights` float32 (N,) say how much each record counts in the loss;
    `chain` makes the random changes that a selection has draws for; `by_record` gives every pixel of a record the
    largest target in it.
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
        """Axis of `Batch.inputs` along which its channels lie."""
        return 2 if self.time_axis else 1

    @property
    def num_channels(self) -> int:
        """Channels that the model takes: of one frame where frames are a time axis, else of all of them."""
        return len(self.composite.channels) * (1 if self.time_axis else len(self.frames))

    @property
    def label_position(self) -> int:
        """Position of the labelled frame among the frames; of the nearest where it is none of them."""
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
        # 0 and 1 by arithmetic on bytes: torch compares images to bool at a tenth of that speed
        valid = (IGNORE - votes.clamp(min=IGNORE - 1)) * annotators.clamp(max=1).view(-1, 1, 1)
        target = (votes * valid).float().div_(annotators.clamp(min=1).view(-1, 1, 1).float())
        if self.hard_target:
            target = (target > 0.5).float()  # strictly more than half
        weights = None if self.weights is None else torch.from_numpy(self.weights[selection.rows]).to(self.device)
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
    """The integers of one batch, reused; pinned where there is CUDA, so that the copy to the device does not block."""

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
                self._copied.synchronize()  # the device has taken what the buffer held
            self._copy(selection)
        return selection

    def to_device(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return bands (B, T, C, H, W), votes (B, H, W) and annotators (B,); on the CPU these are the buffer itself."""
        bands, votes, annotators = (t[:count].to(self._source.device, non_blocking=True) for t in self._tensors)
        if self._copied is not None:
            # of the device that copies, whichever is the current one
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
        """Return tensors that hold `count` samples: those that are there, or larger ones."""
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
    """Return an array without what costs microseconds a row in numpy.memmap; rows of several files are that already."""
    return np.asarray(array) if isinstance(array, np.ndarray) else array


def source_of(dataset: Dataset, recipe: Recipe, composite: Composite, device: torch.device) -> Source:
    """Return a dataset as a recipe's model sees it.

    Raises:
        RecipeError: the file does not hold a frame that the recipe names, or frames cannot be reversed.
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
    """Yield the batches of rows in their order, whole and unchanged by augmentation."""
    return source.batches(Selection(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size))
