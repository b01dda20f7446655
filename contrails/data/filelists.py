"""File lists: which fold every record belongs to.

A CSV `record_id,group,fold` whose first line says in a comment which command made it. Fold 0..K-1 validates on the
record, -1 is held out from all, -2 is trained on by every fold and never validated. A group (one place within a time
window) never crosses folds: neighbours in time show the same ground and the same contrails.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrails.draws import generator
from contrails.errors import DataError
from contrails.files import storage, write_atomic
from contrails.runs import ALL

HELD_OUT, ALWAYS_TRAINED = -1, -2
_HEADER = ["record_id", "group", "fold"]


@dataclass(frozen=True)
class FileList:
    """One row a record, in the order of the file."""

    record_ids: tuple[str, ...]
    groups: tuple[str, ...]
    folds: tuple[int, ...]

    @property
    def num_folds(self) -> int:
        return max(self.folds) + 1

    def training(self, fold: str) -> tuple[str, ...]:
        """Return the records that a fold ("0", "1", ... or "all") trains on."""
        return self._where([of != HELD_OUT and (fold == ALL or of != int(fold)) for of in self.folds])

    def validation(self, fold: str) -> tuple[str, ...]:
        """Return the records that a fold validates on; none for "all"."""
        return self._where([fold != ALL and of == int(fold) for of in self.folds])

    def held_out(self) -> tuple[str, ...]:
        """Return the records that no fold trains or validates on."""
        return self._where([of == HELD_OUT for of in self.folds])

    def _where(self, chosen: Sequence[bool]) -> tuple[str, ...]:
        return tuple(record_id for record_id, yes in zip(self.record_ids, chosen, strict=True) if yes)


def read_filelist(path: Path) -> FileList:
    """Read a file list.

    Raises:
        DataError: no such file, other columns, a record twice, a fold that is no number or is missing in between.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"expected a file list at {path}, found none; make it with `contrails split DATA.h5 --folds 5 -o {path}`"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text file in UTF-8 ({error}); expected CSV {','.join(_HEADER)}") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and line[0] != "#"]
    rows = list(csv.reader(line for _, line in lines))
    if not rows or rows[0] != _HEADER:
        found = ",".join(rows[0]) if rows else "nothing"
        raise DataError(f"{path}: expected the columns {','.join(_HEADER)}, found {found}")
    entries: dict[str, tuple[str, int]] = {}
    for (number, line), row in zip(lines[1:], rows[1:], strict=True):
        if len(row) != len(_HEADER) or not row[2].strip().removeprefix("-").isdecimal() or int(row[2]) < ALWAYS_TRAINED:
            raise DataError(
                f"{path}, line {number}: expected record_id,group,fold with fold -2 or more, found '{line}'"
            )
        if row[0] in entries:
            raise DataError(f"{path}, line {number}: record {row[0]} stands there twice; remove one of the lines")
        entries[row[0]] = (row[1], int(row[2]))
    folds = tuple(fold for _, fold in entries.values())
    absent = set(range(max(folds, default=-1) + 1)) - set(folds)
    if absent or max(folds, default=-1) < 0:
        raise DataError(f"{path}: no record belongs to fold {min(absent, default=0)}; number the folds from 0")
    return FileList(tuple(entries), tuple(group for group, _ in entries.values()), folds)


def write_filelist(path: Path, filelist: FileList, command: str) -> bool:
    """Write a file list with the command that made it; return False if the same one is there already.

    Raises:
        DataError: another file list has this name; runs may depend on it.
    """
    buffer = io.StringIO()
    buffer.write(f"# {command}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(zip(filelist.record_ids, filelist.groups, filelist.folds, strict=True))
    content = buffer.getvalue().encode()
    with storage(path, "read"):
        if path.exists():
            if path.read_bytes() == content:
                return False
            raise DataError(f"{path} exists and is another file list; choose another name, or remove it")
    write_atomic(path, content)
    return True


def time_groups(tiles: Sequence[str], timestamps: np.ndarray, window_hours: float) -> list[str]:
    """Return the group of each record: one tile, times that follow each other within the window.

    Two records of a tile in different groups are more than the window apart. A record without a time shares the
    group of all such records of its tile.
    """
    by_tile: dict[str, list[int]] = defaultdict(list)
    for row, tile in enumerate(tiles):
        by_tile[tile].append(row)
    groups = [""] * len(tiles)
    for tile, rows in by_tile.items():
        number, last = 0, float("nan")
        for row in sorted(rows, key=lambda row: (np.isnan(timestamps[row]), timestamps[row])):
            number += bool(timestamps[row] - last > 3600 * window_hours)
            groups[row] = f"{tile}-{number}"
            last = timestamps[row]
    return groups


def make_folds(
    record_ids: Sequence[str],
    groups: Sequence[str],
    positive: np.ndarray,
    num_folds: int,
    *,
    held_out: float = 0.0,
    seed: int = 0,
) -> FileList:
    """Deal whole groups out to folds, so that positives first and records second are balanced.

    Args:
        record_ids: one a record.
        groups: of each record; never split.
        positive: bool (N,), whether a record has any positive pixel.
        num_folds: at least 2.
        held_out: share of the records that no fold sees.
        seed: decides between equally good choices.

    Raises:
        DataError: fewer groups than folds, or no positive record.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    bins = num_folds + (held_out > 0)
    if len(members) < bins:
        raise DataError(
            f"expected at least {bins} groups for {num_folds} folds{' and a held-out share' if held_out else ''}, "
            f"found {len(members)} (records of one place and time stay together); ask for fewer folds, "
            "or a smaller --window-hours"
        )
    if not positive.any():
        raise DataError(
            f"none of {len(record_ids)} records has a positive pixel: there is nothing to learn; check the masks"
        )
    share = np.array([(1 - held_out) / num_folds] * num_folds + [held_out] * (held_out > 0))
    wanted = share[:, None] * np.array([max(positive.sum(), 1), len(record_ids)])
    load = np.zeros((bins, 2))
    order = generator(seed, "split").permutation(sorted(members))
    # large groups first, while there is room for them everywhere; the permutation decides among equals
    size = {group: (int(positive[rows].sum()), len(rows)) for group, rows in members.items()}
    fold_of = {}
    for group in sorted(order, key=lambda group: size[group], reverse=True):
        after = (load + size[group]) / wanted
        # a group without positives goes where records are missing, another one where positives are
        chosen = int(np.lexsort((after[:, 0], after[:, 1]) if size[group][0] == 0 else (after[:, 1], after[:, 0]))[0])
        load[chosen] += size[group]
        fold_of[group] = HELD_OUT if chosen == num_folds else chosen
    return FileList(tuple(record_ids), tuple(groups), tuple(fold_of[group] for group in groups))


def require_match(filelist: FileList, record_ids: Sequence[str], where: str) -> None:
    """Check that a file list names the records of a dataset, all of them and no others.

    Raises:
        DataError: naming the first that are unknown or missing.
    """
    listed, held = set(filelist.record_ids), set(record_ids)
    for what, records in (("names records that the dataset lacks", listed - held), ("lacks records", held - listed)):
        if records:
            shown = ", ".join(sorted(records)[:3])
            raise DataError(f"{where} {what}: {len(records)}, such as {shown}; make it again with `contrails split`")


def leaks(filelist: FileList, groups: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each group (by `time_groups`) whose records a file list spreads over folds."""
    folds_of: dict[str, dict[int, str]] = defaultdict(dict)
    for record_id, group, fold in zip(filelist.record_ids, groups, filelist.folds, strict=True):
        folds_of[group].setdefault(fold, record_id)
    for group, folds in folds_of.items():
        if len(folds) > 1:
            spread = ", ".join(f"{record} in fold {fold}" for fold, record in sorted(folds.items()))
            yield f"group {group} is spread over folds: {spread}"
