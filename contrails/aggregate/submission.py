"""Submission files: `record_id,encoded_pixels` (or what the dataset's convention says), written and checked."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrails.data.rle import DEFAULT, Convention, decode, encode, read_rows
from contrails.errors import DataError
from contrails.files import write_atomic

_SHOWN = 5


@dataclass(frozen=True)
class Summary:
    """What a submission holds."""

    records: int
    empty: int
    positive_pixels: int
    largest_record: str
    largest_pixels: int


def write_submission(
    path: Path,
    masks: Iterable[tuple[str, np.ndarray]],
    sample: Path | None = None,
    convention: Convention = DEFAULT,
) -> None:
    """Encode masks, bool (H, W) by record id, into a submission; a sample submission fixes ids and order.

    Raises:
        DataError: a record comes twice, or the records are not exactly those of the sample.
    """
    encoded: dict[str, str] = {}
    for record_id, mask in masks:
        if record_id in encoded:
            raise DataError(f"record {record_id} is predicted twice; a submission holds it once")
        encoded[record_id] = encode(mask, convention)
    ids = list(encoded) if sample is None else sample_ids(sample, set(encoded), convention)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(convention.columns)
    writer.writerows((record_id, encoded[record_id]) for record_id in ids)
    write_atomic(path, buffer.getvalue())


def sample_ids(sample: Path, predicted: set[str], convention: Convention = DEFAULT) -> list[str]:
    """Return the ids of a sample submission in its order.

    Raises:
        DataError: they are not exactly those that are predicted.
    """
    ids = list(_read(sample, convention))
    _require_ids(predicted, set(ids), f"the predicted dataset, compared with {sample},")
    return ids


def check_submission(
    path: Path,
    shape: tuple[int, int] | Mapping[str, tuple[int, int]],
    sample: Path | None = None,
    convention: Convention = DEFAULT,
) -> Summary:
    """Decode every row of a submission; `shape` is that of all masks, or of each record, which fixes the ids as well.

    Raises:
        DataError: another header, no record, a record twice, other ids than the sample's, or rows that do not decode;
            the first of these are named.
    """
    rows = _read(path, convention)
    if sample is not None:
        _require_ids(set(rows), set(_read(sample, convention)), str(path))
    if isinstance(shape, Mapping):
        _require_ids(set(rows), set(shape), str(path))
    pixels: dict[str, int] = {}
    problems = []
    for record_id, text in rows.items():
        try:
            of_record = shape[record_id] if isinstance(shape, Mapping) else shape
            pixels[record_id] = int(decode(text, of_record, convention).sum())
        except DataError as error:
            problems.append(f"{path}, record {record_id}: {error}")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more of {len(rows)} records"] if len(problems) > _SHOWN else []
        raise DataError("\n".join([*problems[:_SHOWN], *more]))
    largest = max(pixels, key=lambda record_id: pixels[record_id])
    return Summary(
        records=len(rows),
        empty=sum(count == 0 for count in pixels.values()),
        positive_pixels=sum(pixels.values()),
        largest_record=largest,
        largest_pixels=pixels[largest],
    )


def _read(path: Path, convention: Convention) -> dict[str, str]:
    found: dict[str, str] = {}
    columns = ",".join(convention.columns)
    rows = read_rows(path, "a submission")
    _, header = rows[0] if rows else (1, [])
    if header != list(convention.columns):
        raise DataError(f"{path}: expected the header {columns}, found {','.join(header)[:80] or 'nothing'}")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: expected {columns}, found {len(row)} fields")
        if row[0] in found:
            raise DataError(f"{path}, line {line}: record {row[0]} stands there twice; remove one of the lines")
        found[row[0]] = row[1]
    if not found:
        raise DataError(f"{path} holds no record below its header")
    return found


def _require_ids(found: set[str], expected: set[str], what: str) -> None:
    problems = [
        f"{what} {problem} {len(ids)} records, such as {', '.join(sorted(ids)[:3])} (expected {len(expected)} in all)"
        for problem, ids in (("lacks", expected - found), ("has too many:", found - expected))
        if ids
    ]
    if problems:
        raise DataError("\n".join(problems))
