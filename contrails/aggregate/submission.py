"""Submission files: `record_id,encoded_pixels`, written and checked."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrails.aggregate.rle import decode, encode
from contrails.errors import DataError
from contrails.files import storage, write_atomic

_HEADER = ["record_id", "encoded_pixels"]
_SHOWN = 5


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
        DataError: a record comes twice, or the records are not exactly those of the sample.
    """
    encoded: dict[str, str] = {}
    for record_id, mask in masks:
        if record_id in encoded:
            raise DataError(f"record {record_id} is predicted twice; a submission holds it once")
        encoded[record_id] = encode(mask)
    ids = list(encoded) if sample is None else sample_ids(sample, set(encoded))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows((record_id, encoded[record_id]) for record_id in ids)
    write_atomic(path, buffer.getvalue())


def sample_ids(sample: Path, predicted: set[str]) -> list[str]:
    """Return the ids of a sample submission in its order.

    Raises:
        DataError: they are not exactly those that are predicted.
    """
    ids = list(_read(sample))
    _require_ids(predicted, set(ids), f"the predicted dataset, compared with {sample},")
    return ids


def check_submission(path: Path, shape: tuple[int, int], sample: Path | None = None) -> Summary:
    """Decode every row of a submission.

    Raises:
        DataError: another header, no record, a record twice, other ids than the sample's, or rows that do not decode;
            the first of these are named.
    """
    rows = _read(path)
    if sample is not None:
        _require_ids(set(rows), set(_read(sample)), str(path))
    pixels: dict[str, int] = {}
    problems = []
    for record_id, text in rows.items():
        try:
            pixels[record_id] = int(decode(text, shape).sum())
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


def _read(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    with storage(path, "read"):
        try:
            rows = _split(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise DataError(f"expected a submission at {path}, found no such file") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text file in UTF-8 ({error}); expected CSV {','.join(_HEADER)}") from error
    _, header = rows[0] if rows else (1, [])
    if header != _HEADER:
        raise DataError(f"{path}: expected the header {','.join(_HEADER)}, found {','.join(header)[:80] or 'nothing'}")
    for line, row in rows[1:]:
        if len(row) != len(_HEADER):
            raise DataError(f"{path}, line {line}: expected {','.join(_HEADER)}, found {len(row)} fields")
        if row[0] in found:
            raise DataError(f"{path}, line {line}: record {row[0]} stands there twice; remove one of the lines")
        found[row[0]] = row[1]
    if not found:
        raise DataError(f"{path} holds no record below its header")
    return found


def _split(text: str) -> list[tuple[int, list[str]]]:
    """Return the line number and the fields of each row that is not blank."""
    # one noisy mask of 256x256 is longer than csv's limit, which belongs to the process
    limit = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.reader(io.StringIO(text))
        return [(reader.line_num, row) for row in reader if row]
    finally:
        csv.field_size_limit(limit)


def _require_ids(found: set[str], expected: set[str], what: str) -> None:
    problems = [
        f"{what} {problem} {len(ids)} records, such as {', '.join(sorted(ids)[:3])} (expected {len(expected)} in all)"
        for problem, ids in (("lacks", expected - found), ("has too many:", found - expected))
        if ids
    ]
    if problems:
        raise DataError("\n".join(problems))
