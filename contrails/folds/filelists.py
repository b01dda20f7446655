"""File lists: the fold of every record.

A file list is a CSV `record_id,group,fold` whose first line is a comment with the command that made it. Fold 0 to K-1
validates on the record; -1 is held out from all folds; -2 is trained on by every fold and never validated. A group (one
location within a time window) is never split between folds: records close in time show the same ground and the same
contrails.
"""

import csv
import io
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contrails.draws import generator
from contrails.errors import DataError
from contrails.files import create_exclusive, storage
from contrails.runs.folder import ALL
from contrails.tables import read_columns

HELD_OUT, ALWAYS_TRAINED = -1, -2
_HEADER = ["record_id", "group", "fold"]
_FOLD = re.compile(r"\s*(-[12]|0|[1-9]\d{0,3})\s*", re.ASCII)


@dataclass(frozen=True)
class FileList:
    """Ids, groups and folds of all records, in the order of the file."""

    record_ids: tuple[str, ...]
    groups: tuple[str, ...]
    folds: tuple[int, ...]

    @property
    def num_folds(self) -> int:
        return max(self.folds) + 1

    def training(self, fold: str) -> tuple[str, ...]:
        """Return the records that a fold ("0", "1", ... or "all") trains on.

        Raises:
            DataError: the file list has no such fold.
        """
        validated = self._number(fold)
        return self._where([of not in (HELD_OUT, validated) for of in self.folds])

    def validation(self, fold: str) -> tuple[str, ...]:
        """Return the records that a fold validates on; none for "all".

        Raises:
            DataError: the file list has no such fold.
        """
        validated = self._number(fold)
        return self._where([of == validated for of in self.folds])

    def held_out(self) -> tuple[str, ...]:
        """Return the records that no fold trains or validates on."""
        return self._where([of == HELD_OUT for of in self.folds])

    def _number(self, fold: str) -> int | None:
        if fold == ALL:
            return None
        if fold not in map(str, range(self.num_folds)):
            raise DataError(f"fold {fold}: expected a fold from 0 to {self.num_folds - 1}, or '{ALL}'")
        return int(fold)

    def _where(self, chosen: Sequence[bool]) -> tuple[str, ...]:
        return tuple(record_id for record_id, yes in zip(self.record_ids, chosen, strict=True) if yes)


def read_filelist(path: Path) -> FileList:
    """Read a file list.

    Raises:
        DataError: no such file, wrong columns, a record on two lines, a fold that is no number, or a gap in the folds.
    """
    entries: dict[str, tuple[str, int]] = {}
    remedy = f"make it with `contrails split DATA.h5 -o {shlex.quote(str(path))}`"
    missing = f"expected a file list at {path}, found none; {remedy}"
    for line, row in read_columns(path, _HEADER, missing):
        fold = _FOLD.fullmatch(row[2]) if len(row) == len(_HEADER) and row[0] else None
        if fold is None:
            raise DataError(
                f"{path}, line {line}: expected record_id,group,fold, with a fold from 0 on, {HELD_OUT} (held out) or "
                f"{ALWAYS_TRAINED} (always trained), found '{','.join(row)[:80]}'; correct the line, or {remedy}"
            )
        if row[0] in entries:
            raise DataError(
                f"{path}, line {line}: expected each record once, found {row[0]} twice; remove one of the lines"
            )
        entries[row[0]] = (row[1], int(fold[1]))
    folds = tuple(fold for _, fold in entries.values())
    absent = set(range(max((0, *folds)) + 1)) - set(folds)
    if absent:
        found = ", ".join(map(str, sorted(set(folds)))) or "none"
        raise DataError(f"{path}: no record belongs to fold {min(absent)} (found {found}); number the folds from 0")
    return FileList(tuple(entries), tuple(group for group, _ in entries.values()), folds)


def write_filelist(path: Path, filelist: FileList, command: str) -> bool:
    """Write a file list with the command that made it; return False if an equal one exists already.

    Raises:
        DataError: `path` is another file list, which runs may depend on.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(zip(filelist.record_ids, filelist.groups, filelist.folds, strict=True))
    body = buffer.getvalue().encode()
    if create_exclusive(path, f"# {command}\n".encode() + body):
        return True
    with storage(path, "read"):
        # only the assignment must be equal: the same command can be written in several ways
        if path.read_bytes().partition(b"\n")[2] == body:
            return False
    raise DataError(f"{path} exists and is another file list; runs may depend on it: choose another name, or remove it")


def time_groups(tiles: Sequence[str], timestamps: np.ndarray, window_hours: float) -> list[str]:
    """Return the group of each record, `<tile>-<n>`; `tiles` are the locations of the records.

    Records of one location are in one group if their times follow each other with gaps of at most the window. A
    location with a record of unknown time is a single group, as that record may be close to any other.

    Shape:
        timestamps float64 (N,) in seconds, NaN where unknown.
    """
    by_tile: dict[str, list[int]] = defaultdict(list)
    for row, tile in enumerate(tiles):
        by_tile[tile].append(row)
    groups = [""] * len(tiles)
    for tile, rows in by_tile.items():
        times = timestamps[rows]
        order = np.argsort(times)
        gaps = np.diff(times[order]) > 3600 * window_hours
        numbers = np.cumsum([False, *gaps]) if not np.isnan(times).any() else np.zeros(len(rows), int)
        for position, number in zip(order, numbers, strict=True):
            groups[rows[position]] = f"{tile}-{number}"
    return groups


def make_folds(
    record_ids: Sequence[str],
    groups: Sequence[str],
    positive: np.ndarray,
    labelled: np.ndarray,
    num_folds: int,
    *,
    held_out: float = 0.0,
    seed: int = 0,
    timed: bool = True,
) -> FileList:
    """Assign whole groups to folds, balanced by positive records first and by all records second.

    Records without a label are held out: no fold can train or validate on them.

    Args:
        record_ids: ids of the N records.
        groups: group of each record; labelled records of one group get one fold.
        positive: bool (N,), whether a record has any positive pixel.
        labelled: bool (N,), whether a record has a label.
        num_folds: at least 2.
        held_out: fraction of the labelled records withheld from every fold, below 1.
        seed: seed of the choice between equally balanced assignments.
        timed: whether groups depend on the times of records, for the advice in errors.

    Raises:
        DataError: fewer groups than folds, groups too large for balanced folds, no label, or no positive record.
    """
    if num_folds < 2:
        raise DataError(
            f"expected at least 2 folds, found {num_folds}: a fold trains on the records that the others validate on; "
            "give --folds 2 or more"
        )
    if not (positive & labelled).any():
        raise DataError(
            f"expected records with a positive pixel, found none among {len(record_ids)} records "
            f"({int(labelled.sum())} of them labelled); check the masks that were prepared"
        )
    members: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(labelled).tolist():
        members[groups[row]].append(row)
    size = {group: (int(positive[rows].sum()), len(rows)) for group, rows in members.items()}
    if num_folds > len(groups):
        raise DataError(f"expected at most {len(groups)} folds, one per record, found {num_folds}; give fewer --folds")
    share = np.array([(1 - held_out) / num_folds] * num_folds + [held_out] * (held_out > 0))
    chosen = _deal(size, share, seed)
    _require_filled(chosen, size, num_folds, held_out, timed=timed)
    fold_of = {group: HELD_OUT if part == num_folds else part for group, part in chosen.items()}
    folds = [fold_of[group] if yes else HELD_OUT for group, yes in zip(groups, labelled, strict=True)]
    return FileList(tuple(record_ids), tuple(groups), tuple(folds))


def given_folds(
    record_ids: Sequence[str], groups: Sequence[str], subsets: Sequence[str], labelled: np.ndarray
) -> FileList:
    """Make a file list from the lists of scenes: `val` is fold 0, `train` is always trained on, the rest is held out.

    Raises:
        DataError: no labelled record is on a list of val or of train.
    """
    fold_of = {"val": 0, "train": ALWAYS_TRAINED}
    folds = [fold_of.get(name, HELD_OUT) if yes else HELD_OUT for name, yes in zip(subsets, labelled, strict=True)]
    if missing := [name for name, fold in fold_of.items() if fold not in folds]:
        raise DataError(
            f"--given: expected labelled records on the lists train and val, found none on {missing[0]} (lists: "
            f"{', '.join(sorted(set(subsets) - {''})) or 'none'}); prepare scenes with filelists/train.csv and "
            "filelists/val.csv, or make new folds without --given"
        )
    return FileList(tuple(record_ids), tuple(groups), tuple(folds))


def require_match(filelist: FileList, record_ids: Sequence[str], where: str) -> None:
    """Check that a file list names exactly the records of a dataset.

    Raises:
        DataError: records are unknown or missing; the first ones are named.
    """
    listed, held = set(filelist.record_ids), set(record_ids)
    problems = []
    for what, records in (("names records that the dataset lacks", listed - held), ("lacks records", held - listed)):
        if records:
            problems.append(f"{where} {what}: {len(records)}, such as {', '.join(sorted(records)[:3])}")
    if problems:
        remedy = f"give the dataset of this list, or make it again: `contrails split DATA.h5 -o {shlex.quote(where)}`"
        raise DataError("\n".join([*problems, remedy]))


def leaks(filelist: FileList, groups: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each group that a file list splits between folds.

    Args:
        filelist: the list to check, also for the groups that it names.
        groups: group of each labelled record by `time_groups`; records without a label cannot leak.
    """
    folds_of: dict[tuple[bool, str], dict[int, str]] = defaultdict(dict)
    for record_id, own, fold in zip(filelist.record_ids, filelist.groups, filelist.folds, strict=True):
        if record_id in groups:
            folds_of[False, groups[record_id]].setdefault(fold, record_id)
            if own:
                folds_of[True, own].setdefault(fold, record_id)
    sentences = []
    for (_, group), folds in folds_of.items():
        if len(folds) > 1:
            where = ", ".join(f"{record} in fold {fold}" for fold, record in folds.items())
            sentences.append(f"group {group} is spread over folds: {where}")
    yield from dict.fromkeys(sentences)  # a group of the list and one by time can be the same


def _deal(size: Mapping[str, tuple[int, int]], share: np.ndarray, seed: int) -> dict[str, int]:
    """Assign groups to folds and return the fold of each; held-out records form one more fold, the last.

    Args:
        size: (positive records, records) of each group.
        share: fraction of all records that each fold is to have.
        seed: seed of the choice between equally balanced assignments.
    """
    wanted = share[:, None] * np.array(list(size.values())).sum(0)
    load = np.zeros_like(wanted)
    names = sorted(size)
    order = [names[index] for index in generator(seed, "split").permutation(len(names))]
    chosen = {}
    # large groups first, while every fold still has room for them; the permutation breaks ties
    for group in sorted(order, key=lambda group: size[group], reverse=True):
        after = (load + size[group]) / wanted
        # a group with positives balances the positives, then the records; any other group in the opposite order
        first, second = (0, 1) if size[group][0] else (1, 0)
        part = int(np.lexsort((after[:, second], after[:, first]))[0])
        load[part] += size[group]
        chosen[group] = part
    return chosen


def _require_filled(
    chosen: Mapping[str, int], size: Mapping[str, tuple[int, int]], num_folds: int, held_out: float, *, timed: bool
) -> None:
    parts = num_folds + (held_out > 0)
    empty = sorted(set(range(parts)) - set(chosen.values()))
    if not empty:
        return
    what = f"fold {empty[0]}" if empty[0] < num_folds else f"the held-out fraction of {held_out:g}"
    records = [count for _, count in size.values()]
    remedies = ["fewer folds"] + [f"a {'smaller' if empty[0] < num_folds else 'larger'} --hold-out"] * (held_out > 0)
    remedies += ["a smaller --window-hours"] * timed
    raise DataError(
        f"no group is left for {what}: records of one location and time stay together; expected enough groups for "
        f"{parts} parts, found {len(records)}, the largest with {max(records)} of {sum(records)} records; ask for "
        f"{' or '.join(remedies)}"
    )
