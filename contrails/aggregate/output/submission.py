"""Submission files, written and checked: `record_id,encoded_pixels`, or the format of the dataset's convention."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrails.dataset.rle import DEFAULT, Convention, decode, encode
from contrails.dataset.rle_tables import match_ids
from contrails.errors import DataError
from contrails.files import write_atomic
from contrails.tables import read_rows

_SHOWN = 5


@dataclass(frozen=True)
class Summary:
    """Summary of a submission: `empty` masks have no positive pixel, `whole` masks have all pixels of their record."""

    records: int
    empty: int
    whole: int
    positive_pixels: int
    largest_record: str
    largest_pixels: int


def write_submission(
    path: Path,
    masks: Iterable[tuple[str, np.ndarray]],
    sample: Path | None = None,
    convention: Convention = DEFAULT,
) -> None:
    """Encode masks, bool (H, W) by record id, into a submission; a sample submission fixes ids, order and columns.

    If the sample has several classes, only the rows of the convention's class are written.

    Raises:
        DataError: a record comes twice, or the records are not exactly those of the sample.
    """
    encoded: dict[str, str] = {}
    for record_id, mask in masks:
        if record_id in encoded:
            raise DataError(f"record {record_id} is predicted twice; expected one mask per record")
        encoded[record_id] = encode(mask, convention)
    columns, ids = convention.header, {record_id: convention.written(record_id) for record_id in encoded}
    if sample is not None:
        ids = sample_ids(sample, set(encoded), convention)
        columns, _ = _read(sample, convention)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for record_id, written in ids.items():
        fields = dict(zip(convention.header, (written, encoded[record_id], convention.label), strict=False))
        writer.writerow(fields[column] for column in columns)
    write_atomic(path, buffer.getvalue())


def sample_ids(sample: Path, predicted: set[str], convention: Convention = DEFAULT) -> dict[str, str]:
    """Return each record's id as the sample submission writes it, in the order of the sample.

    Raises:
        DataError: its records are not exactly the predicted ones.
    """
    entries = _entries(sample, convention, predicted)
    _require_ids(predicted, set(entries), f"the predicted dataset, compared with {sample},")
    return {record_id: written for record_id, (written, _) in entries.items()}


def check_submission(
    path: Path,
    shape: tuple[int, int] | Mapping[str, tuple[int, int]],
    sample: Path | None = None,
    convention: Convention = DEFAULT,
) -> Summary:
    """Decode every row of a submission; `shape` is that of all masks, or maps each record id to one.

    Raises:
        DataError: the header is wrong, there is no record, a record comes twice, the ids are not the sample's, or rows
            do not decode; the first problems are listed.
    """
    entries = _entries(path, convention, shape if isinstance(shape, Mapping) else ())
    if sample is not None:
        of_sample = _entries(sample, convention, set(entries))
        _require_ids(set(entries), set(of_sample), str(path))
    if isinstance(shape, Mapping):
        _require_ids(set(entries), set(shape), str(path))
    pixels: dict[str, int] = {}
    whole, problems = 0, []
    for record_id, (_, text) in entries.items():
        try:
            of_record = shape[record_id] if isinstance(shape, Mapping) else shape
            pixels[record_id] = int(decode(text, of_record, convention).sum())
            whole += pixels[record_id] == of_record[0] * of_record[1]
        except DataError as error:
            problems.append(f"{path}, record {record_id}: {error}")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more of {len(entries)} records"] if len(problems) > _SHOWN else []
        raise DataError("\n".join([*problems[:_SHOWN], *more]))
    largest = max(pixels, key=lambda record_id: pixels[record_id])
    return Summary(
        records=len(entries),
        empty=sum(count == 0 for count in pixels.values()),
        whole=whole,
        positive_pixels=sum(pixels.values()),
        largest_record=largest,
        largest_pixels=pixels[largest],
    )


def _entries(path: Path, convention: Convention, known: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the written id and the mask of each record in a submission, for the convention's class only.

    An id that matches none of the `known` records is a record of its own.
    """
    _, rows = _read(path, convention)
    lines = [line for line, *_ in rows]
    matches = match_ids(path, [written for _, written, _ in rows], known, convention)
    found: dict[str, tuple[str, str]] = {}
    for line, match, (_, written, text) in zip(lines, matches, rows, strict=True):
        if match.known and match.label not in ("", convention.label):
            continue
        if match.record_id in found:
            twice = f"record {match.record_id} appears twice"
            raise DataError(f"{path}, line {line}: {twice}; remove one of the lines")
        found[match.record_id] = (written, text)
    return found


def _read(path: Path, convention: Convention) -> tuple[list[str], list[tuple[int, str, str]]]:
    """Return the columns of a submission, and (line, id, mask) of its rows of the convention's class."""
    columns = ",".join(convention.header)
    rows = read_rows(path, "a submission")
    _, header = rows[0] if rows else (1, [])
    if sorted(header) != sorted(convention.header):
        raise DataError(f"{path}: expected the header {columns}, found {','.join(header)[:80] or 'nothing'}")
    found = []
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: expected {columns}, found {len(row)} fields")
        fields = dict(zip(header, row, strict=True))
        if not convention.label_column or fields[convention.label_column] == convention.label:
            written, text = (fields[column] for column in convention.columns)
            found.append((line, written, text))
    if not found:
        raise DataError(f"{path}: expected records below its header, found none; write it again")
    return header, found


def _require_ids(found: set[str], expected: set[str], what: str) -> None:
    problems = [
        f"{what} {problem} {len(ids)} records, such as {', '.join(sorted(ids)[:3])} (expected {len(expected)} in all)"
        for problem, ids in (("lacks", expected - found), ("has too many:", found - expected))
        if ids
    ]
    if problems:
        raise DataError("\n".join(problems))
