"""Tables of run-length encodings, for labels and submissions.

An id in a table is the id of a record, optionally with an ending and a class: x, x.jpg or x.jpg_Fish. Ids are matched
to the known records, so that names need not follow a rule, and submissions use the ids of the table.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from contrails.dataset.rle import Convention
from contrails.errors import DataError, choices
from contrails.tables import read_rows

_ENDING = re.compile(r"(\.[A-Za-z0-9]{1,5})?")
_ENDING_AND_CLASS = re.compile(r"(\.[A-Za-z0-9]{1,5})?_(.+)")
_CLASS_COLUMN = re.compile("class|label|categ", re.IGNORECASE)
_MOST_CLASSES = 100
_SHOWN = 5


@dataclass(frozen=True)
class Match:
    """The record, the ending and the class of an id in a table; `known` is False if there is no such record."""

    record_id: str
    ending: str = ""
    label: str = ""
    known: bool = True


@dataclass(frozen=True)
class Labels:
    """The masks of a table: the encodings of each record, one per row of the table, none for an empty mask.

    `ending` follows the ids in the table; `warnings` are about other content of the table.
    """

    masks: dict[str, tuple[str, ...]]
    ending: str = ""
    warnings: tuple[str, ...] = ()


def read_labels(path: Path, convention: Convention, known: Collection[str]) -> Labels:
    """Return the masks of a table of labels; a record that has only other classes gets an empty mask.

    Other columns and spaces around names and fields are ignored. Besides the text of the convention, `-`, `-1` and an
    empty field stand for an empty mask.

    Args:
        path: the table.
        convention: how masks are written in it.
        known: ids of the records.

    Raises:
        DataError: a column is missing, a row has another number of fields, a record is unknown or has both an empty and
            another mask, or the class of the convention does not occur.
    """
    rows = read_rows(path, "a table of masks")
    header = [name.strip() for name in rows[0][1]] if rows else []
    if missing := [name for name in convention.header if name not in header]:
        option = "--rle-class" if missing[0] == convention.label_column else "--rle-columns"
        raise DataError(
            f"{path}: expected the columns {','.join(convention.header)}, found {','.join(header)[:80] or 'nothing'} "
            f"(no {missing[0]}); name them with {option}"
        )
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: expected {','.join(header)}, found {len(row)} fields")
    columns = {}
    for name in header:
        number = header.index(name)
        columns[name] = [row[number].strip() for _, row in rows[1:]]
    ids, texts = (columns[name] for name in convention.columns)
    matches = match_ids(path, ids, known, convention)
    labels = columns[convention.label_column] if convention.label_column else [match.label for match in matches]
    if convention.label and convention.label not in labels:
        raise _no_such_class(path, convention, labels, header)
    if lost := sorted({match.record_id for match in matches if not match.known}):
        raise DataError(
            f"{path}: expected ids of existing images, found {len(lost)} others: {_some(lost)}; add these images, or "
            "remove their rows"
        )
    chosen = [not convention.label or label == convention.label for label in labels]
    found: dict[str, list[str]] = {match.record_id: [] for match in matches}
    empty: set[str] = set()
    for match, text, is_chosen in zip(matches, texts, chosen, strict=True):
        if is_chosen and text in {convention.empty, "-", "-1", ""}:
            empty.add(match.record_id)
        elif is_chosen:
            found[match.record_id].append(text)
    if contradicted := sorted(name for name in empty if found[name]):
        raise DataError(
            f"{path}: expected an empty mask or masks with pixels for {contradicted[0]}, found both "
            f"({len(contradicted)} such ids); remove one of the rows"
        )
    others = {name: values for name, values in columns.items() if name not in convention.header}
    warnings = () if convention.label else tuple(_joined(path, others))
    return Labels({name: tuple(each) for name, each in found.items()}, _ending(matches), warnings)


def ending_of(sample: Path, convention: Convention, known: Collection[str]) -> str:
    """Return the text after the records' ids in a sample submission; raises as `match_ids`."""
    rows = read_rows(sample, "a sample submission")
    ids = [row[0].strip() for _, row in rows[1:] if row]
    return _ending(match_ids(sample, ids, known, convention))


def match_ids(path: Path, ids: Sequence[str], known: Collection[str], convention: Convention) -> list[Match]:
    """Return the match of each id of a table; an id that fits no record is marked as not known.

    Raises:
        DataError: ids have different endings, or end with a class and none was chosen.
    """
    with_class = bool(convention.suffix)
    matches = [match_id(written, known, with_class=with_class) or Match(written, known=False) for written in ids]
    endings = Counter(match.ending for match in matches if match.known)
    if len(endings) > 1:
        first = {match.ending: written for written, match in zip(ids, matches, strict=True) if match.known}
        raise DataError(
            f"{path}: expected ids with one ending, found {' and '.join(sorted(first.values())[:_SHOWN])}; write all "
            "of them with the same ending, or without"
        )
    if not with_class and any(not match.known for match in matches):
        strangers = [written for written, match in zip(ids, matches, strict=True) if not match.known]
        classes = [(written, match_id(written, known, with_class=True)) for written in strangers]
        if labels := sorted({match.label for _, match in classes if match is not None}):
            example = next(written for written, match in classes if match is not None)
            raise DataError(
                f"{path}: expected ids of records, found ids that end with a class, such as {example} "
                f"({_some(labels)}); choose a class for `contrails prepare RAW OUT`, such as --rle-class {labels[0]}"
            )
    return matches


def match_id(written: str, known: Collection[str], *, with_class: bool = False) -> Match | None:
    """Return the longest record id that an id begins with, if only an ending and a class follow; else None."""
    if not with_class and written in known:
        return Match(written)
    pattern = _ENDING_AND_CLASS if with_class else _ENDING
    for end in range(len(written), 0, -1):
        if written[:end] in known and (rest := pattern.fullmatch(written, end)):
            return Match(written[:end], rest[1] or "", rest[2] if with_class else "")
    return None


def _ending(matches: Iterable[Match]) -> str:
    return next((match.ending for match in matches if match.known), "")


def _no_such_class(path: Path, convention: Convention, labels: Sequence[str], header: Sequence[str]) -> DataError:
    found = sorted(set(labels) - {""})
    where = f"in the column {convention.label_column}" if convention.label_column else "behind the ids"
    if not found:
        return DataError(
            f"{path}: expected the class {convention.label} {where}, found no class; if one of the columns "
            f"{', '.join(header)} holds it, give --rle-class COLUMN={convention.label}"
        )
    return DataError(
        f"{path}: expected the class {convention.label} {where}, found {_some(found)}; "
        f"{choices(convention.label, found[:_MOST_CLASSES])}"
    )


def _joined(path: Path, columns: dict[str, list[str]]) -> Iterable[str]:
    """Yield a warning about each column that seems to hold classes if no class was chosen."""
    for name, values in columns.items():
        classes = sorted(set(values) - {""})
        if _CLASS_COLUMN.search(name) and 1 < len(classes) <= _MOST_CLASSES:
            yield (
                f"{path} has a column {name} ({_some(classes)}): the masks of all classes are merged; to choose one "
                f"class, give --rle-class {name}={classes[0]}"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
