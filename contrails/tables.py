"""Reading CSV tables, with the line number of each row for error messages."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from contrails.errors import DataError
from contrails.files import storage


def read_rows(path: Path, what: str) -> list[tuple[int, list[str]]]:
    """Return the line number and the fields of each non-blank row of a CSV file; `what` names the file in errors.

    Raises:
        DataError: the file is missing, not UTF-8 text, or not CSV.
    """
    return _rows(path, _lines(path, f"expected {what} at {path}, found no such file", f"{what} as CSV"), 0, what)


def read_columns(path: Path, columns: Sequence[str], missing: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each row below the header; lines with # may precede the header.

    Raises:
        DataError: the file is missing (the message is `missing`), not UTF-8 text, or has another header than `columns`.
    """
    expected = ",".join(columns)
    lines = _lines(path, missing, f"CSV {expected}")
    above = next((number for number, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    rows = _rows(path, lines[above:], above, expected)
    header = rows[0][1] if rows else []
    if header != list(columns):
        raise DataError(
            f"{path}, line {above + 1}: expected the columns {expected}, found {','.join(header)[:80] or 'nothing'}"
        )
    yield from rows[1:]


def _lines(path: Path, missing: str, expected: str) -> list[str]:
    with storage(path, "read"):
        try:
            # spreadsheet programs write a byte-order mark first
            return list(io.StringIO(path.read_text(encoding="utf-8-sig")))
        except FileNotFoundError as error:
            raise DataError(missing) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not a text file in UTF-8 ({error}); expected {expected}") from error


def _rows(path: Path, lines: list[str], above: int, expected: str) -> list[tuple[int, list[str]]]:
    """Return the rows of `lines` with their line numbers in a file where `above` lines come before them."""
    # csv's default limit is shorter than one noisy 256x256 mask; the limit is a global of the process, so restore it
    limit = csv.field_size_limit(sum(map(len, lines)) + 1)
    try:
        reader = csv.reader(lines)
        return [(above + reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {above + reader.line_num}: {error}; expected {expected}") from error
    finally:
        csv.field_size_limit(limit)
