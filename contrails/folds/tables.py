"""Small tables as CSV: comments above, a header, then rows; read with the number of each line, for errors."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from contrails.errors import DataError
from contrails.files import storage


def read_rows(path: Path, columns: Sequence[str], missing: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each row below the header; comments may stand above it.

    Raises:
        DataError: no such file, which `missing` says, no text, or another header than `columns`.
    """
    expected = ",".join(columns)
    with storage(path, "read"):
        try:
            lines = list(io.StringIO(path.read_text(encoding="utf-8-sig")))
        except FileNotFoundError as error:
            raise DataError(missing) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text file in UTF-8 ({error}); expected CSV {expected}") from error
    above = next((number for number, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    reader = csv.reader(lines[above:])
    try:
        header = next(reader, [])
        if header != list(columns):
            raise DataError(
                f"{path}, line {above + 1}: expected the columns {expected}, found {','.join(header)[:80] or 'nothing'}"
            )
        for row in reader:
            if row:
                yield above + reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {above + reader.line_num}: {error}; expected {expected}") from error
