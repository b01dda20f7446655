"""Exclusion lists: records that no fold trains on, each with a reason.

An exclusion list is a CSV `record_id,reason`, written by `contrails data audit` and edited by hand; the recipe key is
`data.exclude`. Excluded records are still validated on, so that scores with and without a list stay comparable.
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
        DataError: no such file, wrong columns, or a record on two lines.
    """
    reasons: dict[str, str] = {}
    missing = (
        f"expected an exclusion list at {path}, found none; make it with "
        f"`contrails data audit DATA.h5 -o {shlex.quote(str(path.parent))}`"
    )
    for line, row in read_columns(path, _HEADER, missing):
        if len(row) != len(_HEADER) or not row[0]:
            raise DataError(
                f"{path}, line {line}: expected record_id,reason, found '{','.join(row)[:80]}'; put a reason with "
                "commas in quotes"
            )
        if row[0] in reasons:
            raise DataError(
                f"{path}, line {line}: expected each record once, found {row[0]} twice; remove one of the lines"
            )
        reasons[row[0]] = row[1]
    return reasons


def write_exclusions(path: Path, reasons: Mapping[str, str], command: str) -> None:
    """Write an exclusion list whose first line is a comment with the command that made it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(reasons.items())
    write_atomic(path, f"# {command}\n{buffer.getvalue()}")


def excluded_rows(path: Path | None, dataset: Dataset) -> np.ndarray:
    """Return the rows of the records on an exclusion list, int64; empty if there is no list.

    Raises:
        DataError: the list names a record that the dataset does not hold.
    """
    named = () if path is None else tuple(read_exclusions(path))
    unknown = sorted(set(named) - set(dataset.record_ids))
    if path is not None and unknown:
        raise DataError(
            f"{path}: expected records of {dataset.path}, found {len(unknown)} of {len(named)} that it does not hold, "
            f"such as {unknown[0]}; remove these lines, or make the list again with "
            f"`contrails data audit {shlex.quote(str(dataset.path))} -o {shlex.quote(str(path.parent))}`"
        )
    return dataset.rows(named)
