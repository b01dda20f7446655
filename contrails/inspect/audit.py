"""The audit of labels: suspicious records of a dataset file, each with the reason.

It reads the votes of each record once, and the first band at the labelled frame, of which a small version is kept in
memory. Out-of-fold predictions are compared with the labels if they are given. No file is changed: findings name the
records that an exclusion list would leave out of training.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, sparse

from contrails.dataset.store import IGNORE, Dataset
from contrails.inspect.colours import labelled_frame
from contrails.progress import bar

_SQUARE = np.ones((3, 3), bool)
_SMALL = 32
"""Side of the small versions of images in the search for near-duplicates, in pixels."""

_BLOCK = 1024


@dataclass(frozen=True)
class Limits:
    """The limits beyond which a record is suspicious.

    Attributes:
        tiny_px: labels with fewer positive pixels are tiny (OpenContrails asked annotators for 10 or more).
        box_px: a component at least this high and wide that fills its bounding box is a rectangle.
        near: records are near-duplicates if the first band of both, at 32 x 32 pixels, has at least this correlation.
        dice: a label and its out-of-fold prediction disagree if their Dice is below this.
        large_px: smallest number of pixels, of label and prediction together, for a disagreement, and of a contrail for
            a neighbour in time without one.
        hours: records of one location are neighbours up to this distance in time, in hours.
    """

    tiny_px: int = 10
    box_px: int = 5
    near: float = 0.95
    dice: float = 0.1
    large_px: int = 100
    hours: float = 1.0


@dataclass(frozen=True)
class Finding:
    """A finding: the rows of the dataset to compare, and those of them to exclude from training."""

    kind: str
    reason: str
    rows: tuple[int, ...]
    excluded: tuple[int, ...]

    def to_dict(self, dataset: Dataset) -> dict[str, Any]:
        """Return plain values for JSON, with ids of records."""
        records = [dataset.record_ids[row] for row in self.rows]
        excluded = [dataset.record_ids[row] for row in self.excluded]
        return {"kind": self.kind, "reason": self.reason, "records": records, "excluded": excluded}


def audit(
    dataset: Dataset,
    limits: Limits,
    fold_of: Mapping[str, int] | None = None,
    predicted: Mapping[str, np.ndarray] | None = None,
    cut: int = 0,
) -> list[Finding]:
    """Return all findings, sorted by kind.

    Args:
        dataset: the dataset; unlabelled records are only searched for duplicates.
        limits: the limits beyond which a record is suspicious.
        fold_of: fold of each record; with it, only near-duplicates in different folds are reported.
        predicted: out-of-fold probabilities, uint16 (H, W), by record id.
        cut: the smallest of these probabilities that counts as positive.
    """
    side = min(_SMALL, *dataset.bands.shape[3:])
    small, pixels = np.zeros((dataset.num_records, side**2), np.float32), np.zeros(dataset.num_records, np.int64)
    findings: list[Finding] = []
    frame = labelled_frame(dataset)
    with bar("audit", dataset.num_records) as advance:
        for row, record_id in enumerate(dataset.record_ids):
            small[row] = _small(dataset.bands[row, frame, 0], side)
            if dataset.annotators[row]:
                mask = dataset.hard(row)
                pixels[row] = np.count_nonzero(mask)
                findings += _about_mask(mask, row, limits)
                if predicted and record_id in predicted:
                    guess = predicted[record_id] >= cut
                    findings += _about_guess(mask, guess, dataset.votes[row] != IGNORE, row, limits)
            advance(1)
    findings += _same(dataset, pixels)
    findings += _near(dataset, small, fold_of, limits.near)
    findings += _neighbours(dataset, pixels, limits)
    return sorted(findings, key=lambda finding: (KINDS.index(finding.kind), finding.rows))


KINDS = ("disagreement", "tiny", "rectangle", "duplicate", "same mask", "near-duplicate", "neighbours")
"""Kinds of findings, in their order; `neighbours` exclude no record, as either label can be right."""


def reasons(findings: Iterable[Finding], dataset: Dataset) -> dict[str, str]:
    """Return the records to exclude, each with all its reasons, in the order of the file."""
    found: dict[int, list[str]] = defaultdict(list)
    for finding in findings:
        for row in finding.excluded:
            found[row].append(f"{finding.kind}: {finding.reason}")
    return {dataset.record_ids[row]: "; ".join(found[row]) for row in sorted(found)}


def _about_mask(mask: np.ndarray, row: int, limits: Limits) -> Iterator[Finding]:
    count = int(mask.sum())
    if 0 < count < limits.tiny_px:
        yield Finding("tiny", f"{count} positive pixels", (row,), (row,))
    components, _ = ndimage.label(mask, _SQUARE)
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        part = components[box] == number
        if min(part.shape) >= limits.box_px and part.all():
            where = f"{part.shape[0]} x {part.shape[1]} pixels at row {box[0].start}, column {box[1].start}"
            yield Finding("rectangle", f"a full rectangle of {where}", (row,), (row,))
            return


def _about_guess(mask: np.ndarray, guess: np.ndarray, valid: np.ndarray, row: int, limits: Limits) -> Iterator[Finding]:
    hits, marked, guessed = (int((part & valid).sum()) for part in (mask & guess, mask, guess))
    dice = 2 * hits / max(marked + guessed, 1)
    if marked + guessed >= limits.large_px and dice < limits.dice:
        reason = f"Dice {dice:.2f} out of fold: {marked} pixels marked, {guessed} predicted, {hits} in common"
        yield Finding("disagreement", reason, (row,), (row,))


def _same(dataset: Dataset, pixels: np.ndarray) -> Iterator[Finding]:
    """Yield records with byte-identical bands, and different images with identical labels, by their digests."""
    bands = dataset.digests["bands"]
    for rows in _grouped(range(dataset.num_records), bands):
        yield Finding("duplicate", "byte-identical bands", rows, rows[1:])
    for rows in _grouped(np.flatnonzero(pixels).tolist(), dataset.digests["votes"]):
        if len({bands[row].tobytes() for row in rows}) > 1:
            yield Finding(
                "same mask",
                "different images have the same label, which can be right for at most one of them",
                rows,
                rows[1:],
            )


def _near(dataset: Dataset, small: np.ndarray, fold_of: Mapping[str, int] | None, least: float) -> Iterator[Finding]:
    """Yield near-duplicates, between folds if folds are known; connected pairs become one finding."""
    folds = np.array([(fold_of or {}).get(name, -row - 9) for row, name in enumerate(dataset.record_ids)])
    digests = [digest.tobytes() for digest in dataset.digests["bands"]]
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(small), _BLOCK):
        found = np.argwhere(small[start : start + _BLOCK] @ small[start:].T >= least) + start
        pairs += [(int(i), int(j)) for i, j in found if i < j and folds[i] != folds[j] and digests[i] != digests[j]]
    if not pairs:
        return
    first, second = np.array(pairs).T
    graph = sparse.coo_array((np.ones(len(pairs)), (first, second)), shape=(len(small),) * 2)
    _, label = sparse.csgraph.connected_components(graph, directed=False)
    for number in np.unique(label[first]):
        rows = tuple(map(int, np.flatnonzero(label == number)))
        nearest = max(float(small[i] @ small[j]) for i, j in pairs if label[i] == number)
        where = "" if fold_of is None else f" in the folds {', '.join(_folds_of(rows, dataset, fold_of))}"
        yield Finding("near-duplicate", f"correlation {nearest:.3f}{where}", rows, rows[1:])


def _folds_of(rows: Iterable[int], dataset: Dataset, fold_of: Mapping[str, int]) -> list[str]:
    return [str(fold_of.get(dataset.record_ids[row], "none")) for row in rows]


def _neighbours(dataset: Dataset, pixels: np.ndarray, limits: Limits) -> Iterator[Finding]:
    """Yield consecutive records of one location, close in time, of which only one has a contrail."""
    locations: dict[str, list[int]] = defaultdict(list)
    times = dataset.timestamps
    for row in np.flatnonzero((dataset.annotators > 0) & ~np.isnan(times)).tolist():
        locations[dataset.groups[row]].append(row)
    for rows in locations.values():
        ordered = sorted(rows, key=lambda row: float(times[row]))
        for before, after in itertools.pairwise(ordered):
            apart_s, (none, many) = times[after] - times[before], sorted((pixels[before], pixels[after]))
            if apart_s <= 3600 * limits.hours and none == 0 and many >= limits.large_px:
                reason = f"one location, {apart_s / 60:.0f} minutes apart: {pixels[before]} and {pixels[after]} pixels"
                yield Finding("neighbours", reason, (before, after), ())


def _small(band: np.ndarray, side: int) -> np.ndarray:
    """Return the means of a band over side x side cells, with mean 0 and norm 1, or zeros if all are equal."""
    height, width = (size // side for size in band.shape)
    cells = band[: side * height, : side * width].reshape(side, height, side, width).mean((1, 3), np.float32)
    flat = (cells - cells.mean()).ravel()
    length = float(np.linalg.norm(flat))
    return flat / length if length > 1.0 else np.zeros_like(flat)


def _grouped(rows: Iterable[int], digests: np.ndarray) -> list[tuple[int, ...]]:
    """Return the groups of two or more rows with the same digest."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for row in rows:
        found[digests[row].tobytes()].append(row)
    return [tuple(group) for group in found.values() if len(group) > 1]
