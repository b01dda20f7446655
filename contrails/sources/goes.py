"""The layout `goes`: records of the OpenContrails competition, packed as 16-bit integers in steps of 0.01 K."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contrails.dataset.layout import Header, Values
from contrails.dataset.pack import Arrays, Plan, labelled_tests
from contrails.errors import DataError
from contrails.sources.records import (
    LABEL_FRAME,
    LABEL_OFFSET_PX,
    RawRecord,
    bands_of,
    find_records,
    read_bands,
    read_label,
    without_location,
)
from contrails.sources.walk import folders_in

SOURCE = "GOES-16 ABI, OpenContrails layout"
KELVIN = Values("int16", 0.01, 273.15, "K")
"""Steps of 0.01 K: the rounding error is at most 0.005 K."""

_ON_EARTH_K = (150, 350)
"""Range that every band and frame of a scene overlaps, in kelvin; single pixels can be outside (fires, lost pixels)."""


def make_plan(root: Path, split: str, bands: Sequence[int] | None, frames: Sequence[int]) -> Plan[RawRecord]:
    """Return the plan for the records of a split; `bands` None means all bands of the first record.

    Raises:
        DataError: the folder or its first record is not as expected.
    """
    records = find_records(root, split)
    chosen = tuple(bands) if bands is not None else bands_of(records[0])
    first = read_bands(records[0], chosen, frames)
    header = Header(
        split=split,
        band_names=tuple(f"b{band:02d}" for band in chosen),
        frames=tuple(frames),
        size=(first.shape[2], first.shape[3]),
        with_marks=all(record.has_individual_masks for record in records),
        record_ids=tuple(record.record_id for record in records),
        groups=tuple(record.group for record in records),
        timestamps=tuple(record.timestamp for record in records),
        values=KELVIN,
        source=SOURCE,
        label_frame=LABEL_FRAME,
        label_offset_px=LABEL_OFFSET_PX,
    )
    num_labelled = sum(record.has_masks for record in records) if split == "test" else 0
    warnings = folders_in(root / split).warnings() + _unknown_locations(header)
    warnings += labelled_tests(split, num_labelled, len(records))
    return Plan(str(root.resolve()), header, tuple(records), read_record, warnings)


def read_record(header: Header, record: RawRecord) -> tuple[Arrays, int]:
    """Return a record's row of each array, and the number of its annotators.

    Raises:
        DataError: the record is not as expected, or its values are no temperatures or do not fit into 16 bits.
    """
    kelvin = read_bands(record, tuple(int(name[1:]) for name in header.band_names), header.frames)
    if kelvin.shape[2:] != header.size:
        raise DataError(
            f"record {record.record_id} ({record.path}): expected {header.size} pixels as in the first record, found "
            f"{kelvin.shape[2:]}; leave it out, or prepare it into another file"
        )
    lows, highs = kelvin.min((2, 3)), kelvin.max((2, 3))
    _require_kelvin(header, record, lows, highs)
    low, high = lows.min(), highs.max()
    if max(abs(low - KELVIN.add_offset), abs(high - KELVIN.add_offset)) > np.iinfo(np.int16).max * KELVIN.scale_factor:
        raise DataError(
            f"record {record.record_id} ({record.path}): expected kelvin, found values from {low:.1f} to {high:.1f}; "
            "get it again"
        )
    # in place: allocating arrays of this size takes longer than the arithmetic
    kelvin -= np.float32(KELVIN.add_offset)
    kelvin /= np.float32(KELVIN.scale_factor)
    counts = np.rint(kelvin, out=kelvin)
    label = read_label(record, header.size)
    if label is None and header.split != "test":
        raise DataError(
            f"record {record.record_id}: expected human_individual_masks.npy or human_pixel_masks.npy in {record.path} "
            f"(split '{header.split}'), found neither; add one, or prepare unlabelled records with "
            "--split test"
        )
    arrays = {"bands": counts.astype("<i2"), "votes": label.votes if label else np.zeros(header.size, np.uint8)}
    if header.with_marks and label is not None:
        arrays["marks"] = label.marks.astype("<u2")
    return arrays, label.annotators if label else 0


def _require_kelvin(header: Header, record: RawRecord, lows: np.ndarray, highs: np.ndarray) -> None:
    """Check that every frame of every band overlaps the range of temperatures on Earth; lows and highs are (T, C)."""
    coldest, hottest = _ON_EARTH_K
    odd = np.argwhere((highs < coldest) | (lows > hottest))
    if len(odd):
        frame, band = odd[0]
        low, high = lows[frame, band], highs[frame, band]
        guess = "; they look like degrees Celsius: add 273.15" if -150 < low <= high < 100 and low != high else ""
        raise DataError(
            f"record {record.record_id} ({record.path / f'band_{header.band_names[band][1:]}.npy'}): expected kelvin, "
            f"{coldest} to {hottest} at least in places, found values from {low:.1f} to {high:.1f} in frame "
            f"{header.frames[frame]}{guess}; get it again, or leave it out"
        )


def _unknown_locations(header: Header) -> tuple[str, ...]:
    missing = without_location(header.record_ids, header.groups, header.timestamps)
    if not missing or header.split == "test":
        return ()
    warning = (
        f"{len(missing)} of {len(header.record_ids)} records have no entry in {header.split}_metadata.json (first: "
        f"{missing[0]}): each forms a group of its own, so records of one location can be in different folds"
    )
    return (warning,)
