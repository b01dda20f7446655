"""Groups given by the user, such as patients, stacks or flights, which must not be split between folds.

They are given by a regular expression for the names of images or scenes, or by a table. Otherwise images of one DICOM
patient are a group, and any other image or scene is a group of its own.
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
    """The rule for groups: the regular expression `pattern` or the CSV `table`; with neither the usual groups apply."""

    pattern: str = ""
    table: Path | None = None

    def options(self) -> list[str]:
        """Return the options of `contrails prepare` for this rule."""
        words = [f"--group-by={self.pattern}"] if self.pattern else []
        return [*words, *([f"--groups={self.table}"] if self.table else [])]

    def groups(self, names: Mapping[str, str], usual: Mapping[str, str]) -> tuple[dict[str, str], str]:
        """Return the group of each id, and a sentence about the groups.

        Args:
            names: for each id, the name in which the pattern is searched.
            usual: for each id, its group without a rule.

        Raises:
            DataError: a name does not match the pattern, or the table lacks it.
        """
        found = dict(usual)
        if self.pattern:
            found = _by_pattern(re.compile(self.pattern), names)
        elif self.table is not None:
            found = _by_table(self.table, names)
        elif all(name == group for name, group in usual.items()):
            return found, (
                f"groups: each of {len(names)} is a group of its own; if some belong together (one patient, stack or "
                "flight), give --group-by or --groups, so that they are not split between folds"
            )
        return found, f"groups: {len(set(found.values()))} of {len(names)}"


USUAL = Grouping()
"""No rule: the usual groups apply."""


def _by_pattern(pattern: re.Pattern[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the match of the pattern in each name: its capturing groups if it has any, else the whole match."""
    matches = {key: pattern.search(name) for key, name in names.items()}
    parts = {key: match.groups() or (match[0],) for key, match in matches.items() if match}
    found = {key: "-".join(filter(None, of_name)) for key, of_name in parts.items()}
    if lost := [name for key, name in names.items() if not found.get(key)]:
        raise DataError(
            f"--group-by '{pattern.pattern}': expected a group in all {len(names)} names, found none in {len(lost)}, "
            f"such as {', '.join(lost[:_SHOWN])}; give an expression that matches all names, or a table with --groups"
        )
    return found


def _by_table(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Return the group of each name from a table; names of the table that are unknown (of other splits) are ignored."""
    rows = [(line, list(map(str.strip, row))) for line, row in read_rows(path, "a table of groups")]
    header = rows[0][1] if rows else []
    if _COLUMN not in header or len(header) < 2:
        raise DataError(
            f"{path}: expected a header such as name,{_COLUMN}, found {','.join(header)[:80] or 'nothing'}; name the "
            f"column with the groups {_COLUMN}"
        )
    column = header.index(_COLUMN)
    found: dict[str, str] = {}
    for line, row in rows[1:]:
        if len(row) != len(header) or not row[column]:
            raise DataError(f"{path}, line {line}: expected {','.join(header)}, found '{','.join(row)[:80]}'")
        match = match_id(row[0 if column else 1], names)
        if match is not None and found.setdefault(match.record_id, row[column]) != row[column]:
            raise DataError(
                f"{path}, line {line}: expected one group for {match.record_id}, found {found[match.record_id]} and "
                f"{row[column]}; keep one of the lines"
            )
    if lost := [name for name in names if name not in found]:
        raise DataError(
            f"{path}: expected a group for every name, found none for {len(lost)} of {len(names)}, such as "
            f"{', '.join(lost[:_SHOWN])}; add them"
        )
    return found
