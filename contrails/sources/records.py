"""Raw records in the layout of the OpenContrails competition.

`ROOT/<split>/<record id>/band_<08..16>.npy` holds (H, W, frames) float32 in kelvin, `human_individual_masks.npy`
(H, W, 1, annotators) and `human_pixel_masks.npy` (H, W, 1) hold 0 and 1, and `ROOT/<split>_metadata.json` holds
location and time. All values are checked here, so that later code gets no NaN and no wrong shape.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from contrails.errors import DataError
from contrails.files import storage, to_json
from contrails.sources.arrays import load_npy
from contrails.sources.walk import folders_in

LABEL_FRAME = 4
LABEL_OFFSET_PX = (0.5, 0.5)
"""Offset (down, right) of labels from the image, measured by correlation with the split-window difference."""

_INDIVIDUAL, _PIXEL = "human_individual_masks.npy", "human_pixel_masks.npy"
_MAX_ANNOTATORS = 16
_NUMBER = int | float
_AGAIN = "get the metadata again, or remove the file to prepare the records without locations and times"


@dataclass(frozen=True)
class RawRecord:
    """A raw record: its folder, its location as `group`, and its time in seconds since 1970 (NaN if unknown)."""

    record_id: str
    path: Path
    group: str
    timestamp: float

    @property
    def has_individual_masks(self) -> bool:
        return (self.path / _INDIVIDUAL).is_file()

    @property
    def has_masks(self) -> bool:
        return self.has_individual_masks or (self.path / _PIXEL).is_file()


@dataclass(frozen=True)
class Label:
    """Annotations of one record.

    Shape:
        votes uint8 (H, W): annotators that marked the pixel; marks uint16 (H, W): bit r is annotator r.
    """

    votes: np.ndarray
    annotators: int
    marks: np.ndarray


def find_records(root: Path, split: str) -> list[RawRecord]:
    """Return the records of a split, sorted by id.

    Raises:
        DataError: there is no such folder, it is empty, or the metadata is wrong.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"expected the records of '{split}' in {folder}, found no such folder; check RAW and --split")
    paths = folders_in(folder).paths
    if not paths:
        raise DataError(f"expected a folder for each record in {folder}, found none; check the path")
    metadata = _read_metadata(root / f"{split}_metadata.json")
    return [RawRecord(path.name, path, *metadata.get(path.name, (path.name, math.nan))) for path in paths]


def without_location(record_ids: Sequence[str], groups: Sequence[str], timestamps: Sequence[float]) -> list[str]:
    """Return the records with unknown location and time, which had no metadata."""
    rows = zip(record_ids, groups, timestamps, strict=True)
    return [record_id for record_id, group, time in rows if group == record_id and math.isnan(time)]


def read_bands(record: RawRecord, bands: Sequence[int], frames: Sequence[int]) -> np.ndarray:
    """Return float32 (T, C, H, W) in kelvin, finite.

    Raises:
        DataError: a file is missing, truncated, of another shape or dtype, or holds NaN; or `bands` is empty.
    """
    if not bands:
        raise DataError(
            f"expected files band_08.npy to band_16.npy in {record.path}, found none; get record {record.record_id} "
            "again, or leave it out"
        )
    arrays = [_read_band(record, band, frames) for band in bands]
    for band, array in zip(bands, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"record {record.record_id} ({record.path}): expected bands of one size, found band {bands[0]} of "
                f"{arrays[0].shape[1:]} and band {band} of {array.shape[1:]} pixels; get it again, or leave it out"
            )
    return np.stack(arrays, axis=1)


def read_label(record: RawRecord, size: tuple[int, int]) -> Label | None:
    """Return the label of a record, or None without masks; a pixel mask alone counts as one annotator."""
    individual, pixel = record.path / _INDIVIDUAL, record.path / _PIXEL
    if individual.is_file():
        masks = _read_mask(individual, record)
        if masks.ndim != 4 or masks.shape[:3] != (*size, 1) or not 1 <= masks.shape[3] <= _MAX_ANNOTATORS:
            raise DataError(
                f"{individual}: expected the shape {(*size, 1)} + (1 to {_MAX_ANNOTATORS} annotators), "
                f"found {masks.shape}; get record {record.record_id} again"
            )
        masks = masks[:, :, 0]
    elif pixel.is_file():
        masks = _read_mask(pixel, record)
        if masks.shape != (*size, 1):
            raise DataError(
                f"{pixel}: expected the shape {(*size, 1)}, found {masks.shape}; get record {record.record_id} again"
            )
    else:
        return None
    marks = np.zeros(size, np.uint16)
    for annotator in range(masks.shape[2]):  # a loop, as numpy is ten times slower to reduce a short last axis
        marks |= masks[:, :, annotator].astype(np.uint16) << np.uint16(annotator)
    return Label(np.bitwise_count(marks), masks.shape[2], marks)


def bands_of(record: RawRecord) -> tuple[int, ...]:
    """Return the numbers of the bands that a record has on disk."""
    return tuple(sorted(int(path.stem[5:]) for path in record.path.glob("band_[0-9][0-9].npy")))


def _read_band(record: RawRecord, band: int, frames: Sequence[int]) -> np.ndarray:
    path = record.path / f"band_{band:02d}.npy"
    if not path.is_file():
        have = ", ".join(str(number) for number in bands_of(record))
        if not have:
            raise DataError(
                f"{record.path}: expected the folder of a record, with files such as {path.name}, found none of them; "
                f"give a folder of GOES records, or move {record.record_id} out of {record.path.parent}"
            )
        raise DataError(
            f"expected {path}, found only the bands {have} of record {record.record_id}; get the file, or give --bands"
        )
    array = _load(path, record)
    if array.dtype != np.float32 or array.ndim != 3 or array.size == 0:
        raise DataError(
            f"{path}: expected float32 (height, width, frames), found {array.dtype} {array.shape}; "
            f"get record {record.record_id} again"
        )
    if max(frames) >= array.shape[2]:
        raise DataError(
            f"{path}: expected frame {max(frames)}, found {array.shape[2]} frames (0 to {array.shape[2] - 1}); give "
            "other --frames"
        )
    chosen = np.stack([array[:, :, frame] for frame in frames])
    if not np.isfinite(chosen).all():
        count = int((~np.isfinite(chosen)).sum())
        raise DataError(
            f"{path}: expected finite kelvin, found {count} NaN or infinite values; "
            f"leave record {record.record_id} out, or get it again"
        )
    return chosen


def _read_mask(path: Path, record: RawRecord) -> np.ndarray:
    array = _load(path, record)
    if not np.issubdtype(array.dtype, np.integer) or (array.size and (array.min() < 0 or array.max() > 1)):
        raise DataError(
            f"{path}: expected integers 0 and 1, found {array.dtype} with {np.unique(array)[:5].tolist()}; get record "
            f"{record.record_id} again"
        )
    return array


def _load(path: Path, record: RawRecord) -> np.ndarray:
    return load_npy(path, f"get record {record.record_id} again")


def _read_metadata(path: Path) -> dict[str, tuple[str, float]]:
    """Return (location, timestamp) by record id; empty if there is no such file."""
    found: dict[str, tuple[str, float]] = {}
    for entry in _entries(path):
        record_id = entry.get("record_id")
        if not isinstance(record_id, str | int):
            raise DataError(f"{path}: expected a record_id in each entry, found {to_json(entry)[:80]}; {_AGAIN}")
        if str(record_id) in found:
            raise DataError(f"{path}: expected each record once, found {record_id} twice; remove one of the entries")
        found[str(record_id)] = (_tile(path, entry), _timestamp(path, entry))
    return found


def _entries(path: Path) -> list[dict[str, Any]]:
    with storage(path, "read"):
        try:
            entries = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise DataError(f"{path}: expected JSON, found another content ({error}); {_AGAIN}") from error
    odd = [entry for entry in entries if not isinstance(entry, dict)] if isinstance(entries, list) else [entries]
    if odd:
        raise DataError(
            f"{path}: expected a list with an object for each record, found {to_json(odd[0])[:80]}; {_AGAIN}"
        )
    return list(entries)


def _tile(path: Path, entry: dict[str, Any]) -> str:
    """Return a short name of a record's location: equal for equal projection and corner."""
    for key, kind, what in (
        ("projection_wkt", str, "a text"),
        ("row_min", _NUMBER, "a number"),
        ("col_min", _NUMBER, "a number"),
    ):
        if not isinstance(entry.get(key), kind):
            found = repr(entry[key])[:80] if key in entry else "nothing"
            raise DataError(f"{path}: record {entry['record_id']}: expected {what} as {key}, found {found}; {_AGAIN}")
    place = f"{entry['projection_wkt']}/{entry['row_min']}/{entry['col_min']}"
    return hashlib.sha256(place.encode(errors="backslashreplace")).hexdigest()[:12]


def _timestamp(path: Path, entry: dict[str, Any]) -> float:
    """Return seconds since 1970, NaN if unknown; a time without a time zone is in UTC."""
    value = entry.get("timestamp")
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            value = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
        seconds = float(value)  # type: ignore[arg-type]
        if math.isinf(seconds):
            raise OverflowError
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: record {entry['record_id']}: expected seconds since 1970, or a time such as "
            f"2019-04-30T12:10:00+00:00, as timestamp, found {str(value)[:40]!r}; {_AGAIN}"
        ) from error
    return seconds
