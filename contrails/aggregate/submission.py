"""Submission files: `record_id,encoded_pixels`, written and checked."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrails.aggregate.rle import decode, encode
from contrails.errors import DataError
from contrails.files import write_atomic

_HEADER = ["record_id", "encoded_pixels"]


@dataclass(frozen=True)
class Summary:
    """What a submission holds."""

    records: int
    empty: int
    positive_pixels: int
    largest_record: str
    largest_pixels: int


def write_submission(path: Path, masks: Iterable[tuple[str, np.ndarray]], sample: Path | None = None) -> None:
    """Encode masks, bool (H, W) by record id, into a submission; a sample submission fixes ids and order.

    Raises:
        DataError: the masks' records are not exactly those of the sample.
    """
    encoded = {record_id: encode(mask) for record_id, mask in masks}
    ids = list(_read(sample)) if sample is not None else list(encoded)
    if sample is not None:
        _require_ids(set(encoded), set(ids), f"the predicted dataset, compared with {sample},")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows((record_id, encoded[record_id]) for record_id in ids)
    write_atomic(path, buffer.getvalue())


def check_submission(path: Path, shape: tuple[int, int], sample: Path | None = None) -> Summary:
    """Decode every row of a submission.

    Raises:
        DataError: another header, a record twice, a row that does not decode, or other ids than the sample's.
    """
    rows = _read(path)
    if sample is not None:
        _require_ids(set(rows), set(_read(sample)), str(path))
    pixels = {}
    for record_id, text in rows.items():
        try:
            pixels[record_id] = int(decode(text, shape).sum())
        except DataError as error:
            raise DataError(f"{path}, record {record_id}: {error}") from error
    largest = max(pixels, key=lambda record_id: pixels[record_id], default="")
    return Summary(
        records=len(rows),
        empty=sum(count == 0 for count in pixels.values()),
        positive_pixels=sum(pixels.values()),
        largest_record=largest,
        largest_pixels=pixels.get(largest, 0),
    )


def _read(path: Path) -> dict[str, str]:
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except FileNotFoundError as error:
        raise DataError(f"expected a submission at {path}, found no such file") from error
    if not rows or rows[0] != _HEADER:
        raise DataError(
            f"{path}: expected the header {','.join(_HEADER)}, found {','.join(rows[0]) if rows else 'nothing'}"
        )
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(_HEADER):
            raise DataError(f"{path}, line {number}: expected {','.join(_HEADER)}, found {len(row)} fields")
        if row[0] in found:
            raise DataError(f"{path}, line {number}: record {row[0]} stands there twice")
        found[row[0]] = row[1]
    return found


def _require_ids(found: set[str], expected: set[str], what: str) -> None:
    for problem, ids in (("lacks", expected - found), ("has too many", found - expected)):
        if ids:
            shown = ", ".join(sorted(ids)[:3])
            raise DataError(f"{what} {problem} {len(ids)} of {len(expected)} records, such as {shown}")
