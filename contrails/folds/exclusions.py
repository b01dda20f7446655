"""Exclusion lists: records that no fold is to train on, each with the reason.

A CSV `record_id,reason` that `contrails data audit` writes and anybody may edit; a recipe names it as `data.exclude`.
Validation keeps these records, so that scores with and without a list are of the same records.
"""

import csv
import io
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.files import write_atomic
from contrails.tables import read_columns

_HEADER = ["record_id", "reason"]


def read_exclusions(path: Path) -> dict[str, str]:
    """Return the reason for each record of an exclusion list.

    Raises:
        DataError: no such file, other columns, or a record twice.
    """
    reasons: dict[str, str] = {}
    missing = (
        f"expected an exclusion list at {path}, found none; make it with "
        f"`contrails data audit DATA.h5 -o {shlex.quote(str(path.parent))}`"
    )
    for line, row in read_columns(path, _HEADER, missing):
        if len(row) != len(_HEADER) or not row[0]:
            raise DataError(
                f"{path}, line {line}: expected record_id,reason, found '{','.join(row)[:80]}'; a reason with commas "
                "stands in quotes"
            )
        if row[0] in reasons:
            raise DataError(f"{path}, line {line}: record {row[0]} stands there twice; remove one of the lines")
        reasons[row[0]] = row[1]
    return reasons


def write_exclusions(path: Path, reasons: Mapping[str, str], command: str) -> None:
    """Write an exclusion list with the command that made it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(reasons.items())
    write_atomic(path, f"# {command}\n{buffer.getvalue()}")


def excluded_rows(path: Path | None, dataset: Dataset) -> np.ndarray:
    """Return the rows that an exclusion list names, int64; none without a list.

    Raises:
        DataError: it names a record that the dataset does not hold.
    """
    named = () if path is None else tuple(read_exclusions(path))
    unknown = sorted(set(named) - set(dataset.record_ids))
    if path is not None and unknown:
        raise DataError(
            f"{path}: expected records of {dataset.path}, found {len(unknown)} others of {len(named)}, such as "
            f"{unknown[0]}; remove these lines, or make it again with "
            f"`contrails data audit {shlex.quote(str(dataset.path))} -o {shlex.quote(str(path.parent))}`"
        )
    return dataset.rows(named)
