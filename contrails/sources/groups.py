"""Groups that a user says: patients, stacks, flights, whatever must not be dealt to several folds.

By an expression over the names of images or scenes, or by a table of them. Without either an image is of its patient,
where its file names one, and anything else is a group of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contrails.dataset.rle_tables import match_id
from contrails.errors import DataError
from contrails.tables import read_rows

_COLUMN = "group"
_SHOWN = 3


@dataclass(frozen=True)
class Grouping:
    """How names become groups: `pattern` finds the group in a name, or `table` says it; with neither nobody does."""

    pattern: str = ""
    table: Path | None = None

    def options(self) -> list[str]:
        """Return the options of `contrails prepare` that say this."""
        words = [f"--group-by={self.pattern}"] if self.pattern else []
        return [*words, *([f"--groups={self.table}"] if self.table else [])]

    def groups(self, names: Mapping[str, str], usual: Mapping[str, str]) -> tuple[dict[str, str], str]:
        """Return the group of each id, and a sentence about them.

        Args:
            names: for each id, the name that the pattern is looked for in.
            usual: for each id, its group where nobody says another one.

        Raises:
            DataError: a name does not match, or the table lacks it.
        """
        found = dict(usual)
        if self.pattern:
            found = _by_pattern(re.compile(self.pattern), names)
        elif self.table is not None:
            found = _by_table(self.table, names)
        elif all(name == group for name, group in usual.items()):
            return found, (
                f"groups: each of {len(names)} is one of its own; if some belong together (one patient, stack or "
                "flight), say so with --group-by or --groups, so that they do not meet in different folds"
            )
        return found, f"groups: {len(set(found.values()))} of {len(names)}"


USUAL = Grouping()
"""Nobody says another group."""


def _by_pattern(pattern: re.Pattern[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return what the pattern's own groups, or else all of it, match in each name."""
    matches = {key: pattern.search(name) for key, name in names.items()}
    parts = {key: match.groups() or (match[0],) for key, match in matches.items() if match}
    found = {key: "-".join(part for part in of_name if part) for key, of_name in parts.items()}
    if lost := [name for key, name in names.items() if not found.get(key)]:
        raise DataError(
            f"--group-by '{pattern.pattern}' finds no group in {len(lost)} of {len(names)} names, such as "
            f"{', '.join(lost[:_SHOWN])}; give an expression that matches all of them, or a table with --groups"
        )
    return found


def _by_table(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Return the group of each name in a table; other names, such as those of other splits, are left alone."""
    rows = [(line, [field.strip() for field in row]) for line, row in read_rows(path, "a table of groups")]
    header = rows[0][1] if rows else []
    if _COLUMN not in header or len(header) < 2:
        raise DataError(
            f"{path}: expected a header such as name,{_COLUMN}, found {','.join(header)[:80] or 'nothing'}; call the "
            f"column of groups {_COLUMN}"
        )
    column = header.index(_COLUMN)
    found: dict[str, str] = {}
    for line, row in rows[1:]:
        if len(row) != len(header) or not row[column]:
            raise DataError(f"{path}, line {line}: expected {','.join(header)}, found '{','.join(row)[:80]}'")
        match = match_id(row[0 if column else 1], names)
        if match is not None and found.setdefault(match.record_id, row[column]) != row[column]:
            raise DataError(
                f"{path}, line {line}: {match.record_id} is in the groups {found[match.record_id]} and {row[column]}; "
                "keep one"
            )
    if lost := [name for name in names if name not in found]:
        raise DataError(
            f"{path} names no group of {len(lost)} of {len(names)} names, such as {', '.join(lost[:_SHOWN])}; add them"
        )
    return found
