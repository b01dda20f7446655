"""Joining of shards into one dataset file. It is byte-identical to the file that a single `contrails prepare` packs.

Every row is compared with its digest. The file gets its name when it is complete; the shards are kept.
"""

import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from contrails.dataset.layout import (
    Header,
    Shard,
    create,
    header_of,
    opened,
    row_offsets,
    shard_path,
    write_columns,
    write_row,
)
from contrails.dataset.rle import DEFAULT
from contrails.dataset.store import open_dataset
from contrails.dataset.verify import require_rows
from contrails.errors import DataError
from contrails.files import atomic_path, remove_leftovers, storage
from contrails.locks import sole_writer
from contrails.progress import bar

_SAME_IN_ALL = {
    "split": "split", "band_names": "bands", "frames": "frames", "size": "size", "with_marks": "marks",
    "values": "type and scale", "source": "source", "options": "options", "convention": "convention of masks",
}  # fmt: skip
"""Fields of the header that are equal in all shards of a plan, with their names in errors."""


@dataclass(frozen=True)
class Joined:
    """The result of a join; `made` is False if the file existed already."""

    num_records: int
    num_shards: int
    made: bool


def join(out: Path) -> Joined:
    """Write the dataset file `out` from the shards beside it, such as train-2of5.h5 for train.h5.

    Raises:
        DataError: a shard is missing, damaged or of another plan; `out` exists with other content.
        StorageError: the folder cannot be written or is full.
    """
    if out.exists() and not _find(out):  # the shards may be removed after joining
        existing = open_dataset(out)
        require_rows(existing, "make its shards again, remove it, and run the same command again")
        return Joined(existing.num_records, 0, made=False)
    parts = _read_shards(out)
    whole = _whole(out, parts)
    columns = _columns(parts)
    lock = out.with_name(f".{out.name}.lock")
    with sole_writer(lock, f"another contrails data join is writing {out.name}; wait for it"):
        made = not out.exists()
        if made:
            _make(out, whole, parts, columns)
        else:
            _require_same(out, whole, columns)
    return Joined(len(whole.record_ids), len(parts), made)


@dataclass(frozen=True)
class _Shard:
    """The header and the small arrays of a shard. Large arrays are left out, as each mapped one holds a descriptor."""

    path: Path
    header: Header
    shard: Shard
    annotators: np.ndarray
    digests: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Columns:
    annotators: bytes
    digests: dict[str, bytes]


def _read_shards(out: Path) -> list[_Shard]:
    """Return all shards in their order."""
    found = _find(out)
    counts = sorted({count for _, count in found})
    if not found:
        raise DataError(
            f"expected the shards of {out} beside it, called {shard_path(out, 1, 5).name} and so on, found none; "
            f"make each of them: `contrails prepare RAW {shlex.quote(str(out))} --shard 1/5`"
        )
    if len(counts) > 1:
        first_of = {count: index for index, count in reversed(found)}
        names = " and ".join(shard_path(out, first_of[count], count).name for count in counts)
        raise DataError(
            f"expected shards I of one number N for {out}, found those of {len(counts)} numbers, such as {names} in "
            f"{out.parent}; move the shards of the other numbers to another folder"
        )
    parts = [_read_shard(out, *numbers) for numbers in found]
    missing = sorted(set(range(1, counts[0] + 1)) - {index for index, _ in found})
    if missing:
        lines = [f"{shard_path(out, i, counts[0]).name}: `{_command(out, parts[0], i)}`" for i in missing[:20]]
        raise DataError(
            "\n".join(
                [f"expected {counts[0]} shards in {out.parent}, {len(missing)} of them are missing; make them:", *lines]
            )
        )
    return parts


def _find(out: Path) -> list[tuple[int, int]]:
    """Return (index, count) of the shards beside `out`, by their names."""
    pattern = re.compile(rf"{re.escape(out.stem)}-([1-9][0-9]*)of([1-9][0-9]*){re.escape(out.suffix)}")
    with storage(out.parent, "read"):
        names = [path.name for path in out.parent.iterdir()] if out.parent.is_dir() else []
    matches = [match for match in map(pattern.fullmatch, names) if match]
    return sorted((int(match[1]), int(match[2])) for match in matches)


def _read_shard(out: Path, index: int, count: int) -> _Shard:
    path = shard_path(out, index, count)
    dataset = open_dataset(path)
    header = header_of(dataset)
    if header.shard is None:
        kept = shlex.join(["mv", str(path), str(path.with_name(f"{path.stem}.whole{path.suffix}"))])
        raise DataError(
            f"{path}: expected a shard, found a whole dataset file (without the attributes 'shard' and 'plan'); keep "
            f"it under another name: `{kept}`, then make the shard if you need it: "
            f"`contrails prepare RAW {shlex.quote(str(out))} --shard {index}/{count}`"
        )
    if (header.shard.index, header.shard.count) != (index, count):
        raise DataError(
            f"{path}: expected shard {index} of {count}, found shard {header.shard.index} of {header.shard.count}; "
            f"rename it to {shard_path(out, header.shard.index, header.shard.count).name}"
        )
    return _Shard(path, header, header.shard, dataset.annotators, dataset.digests)


def _whole(out: Path, parts: list[_Shard]) -> Header:
    """Return the header of the whole file, from the headers of all shards."""
    common = Counter(part.shard.plan for part in parts).most_common(1)[0][0]
    mate = next(part for part in parts if part.shard.plan == common)
    foreign = [part for part in parts if part.shard.plan != common]
    if foreign:
        raise DataError(
            f"expected shards of one plan, found that {_names(foreign)} differ from {mate.path.name}: "
            f"{foreign[0].path.name} {_difference(mate, foreign[0])}; move these files to another folder, and make the "
            f"shard again: `{_command(out, mate, foreign[0].shard.index)}`"
        )
    whole = replace(
        mate.header,
        record_ids=tuple(chain.from_iterable(part.header.record_ids for part in parts)),
        groups=tuple(chain.from_iterable(part.header.groups for part in parts)),
        timestamps=tuple(chain.from_iterable(part.header.timestamps for part in parts)),
        placements=tuple(chain.from_iterable(part.header.placements for part in parts)),
        shard=None,
    )
    changed = [part for part in parts if whole.slice(part.shard.index, len(parts)).differences(part.header)]
    if changed:
        raise DataError(
            f"expected the records, bands and frames of the plan, found others in {_names(changed)}: at least one file "
            "was changed after it was made; copy them again, or make them again"
        )
    return whole


def _difference(mate: _Shard, foreign: _Shard) -> str:
    """Return a phrase that says how the shard `foreign` differs from `mate`, found by comparing their headers."""
    mine, other = mate.header, foreign.header
    options = [name for name in mine.differences(other) if name in _SAME_IN_ALL]
    if options:
        return "has " + ", ".join(
            f"{_SAME_IN_ALL[name]} {getattr(other, name)}, expected {getattr(mine, name)}" for name in options
        )
    if abs(len(other.record_ids) - len(mine.record_ids)) > 1:  # slices of one plan are of nearly equal size
        return f"has {len(other.record_ids)} records, expected about {len(mine.record_ids)}"
    twice = sorted(set(other.record_ids) & set(mine.record_ids))
    if twice:
        return f"has records of another shard: {twice[0]} is in both"
    return "was made from another number of records, or with other ids, locations or times"


def _columns(parts: list[_Shard]) -> _Columns:
    digests = {}
    for name in parts[0].digests:
        digests[name] = b"".join(part.digests[name].tobytes() for part in parts)
    return _Columns(b"".join(part.annotators.tobytes() for part in parts), digests)


def _require_same(out: Path, whole: Header, columns: _Columns) -> None:
    existing = open_dataset(out)
    found = _Columns(existing.annotators.tobytes(), {name: rows.tobytes() for name, rows in existing.digests.items()})
    different = header_of(existing).differences(whole) or (["rows"] if found != columns else [])
    if different:
        raise DataError(
            f"{out} exists and differs from the shards beside it (in {', '.join(different)}); an existing dataset file "
            "is never overwritten: move it to another folder, then run the same command again"
        )
    require_rows(existing, "remove it, and run the same command again with the shards beside it")


def _make(out: Path, whole: Header, parts: list[_Shard], columns: _Columns) -> None:
    remove_leftovers(out)
    with atomic_path(out) as temporary:
        create(whole, temporary)
        where = row_offsets(temporary)
        with opened(temporary) as descriptor, bar(f"joining {len(parts)} shards", len(whole.record_ids)) as advance:
            for row, payloads in enumerate(chain.from_iterable(_rows(out, part) for part in parts)):
                for name, payload in payloads.items():
                    write_row(descriptor, where[name], row, payload)
                advance(1)
        write_columns(temporary, columns.annotators, columns.digests)


def _rows(out: Path, part: _Shard) -> Iterator[dict[str, bytes]]:
    """Yield the bytes of each row of each array after comparing them with their digests."""
    where = row_offsets(part.path)
    # read, not mapped: an I/O error is an exception, not SIGBUS, and memory use stays constant
    with storage(part.path, "read"), part.path.open("rb") as file:
        for row, record_id in enumerate(part.header.record_ids):
            payloads = {name: _read_row(file.fileno(), *where[name], row) for name in part.digests}
            for name, payload in payloads.items():
                if hashlib.sha256(payload).digest() != part.digests[name][row].tobytes():
                    raise DataError(
                        f"{part.path}, record {record_id}: /{name} is not what was written; copy the shard again, or "
                        f"remove it and make it again: `{_command(out, part, part.shard.index)}`"
                    )
            yield payloads


def _read_row(descriptor: int, offset: int, size: int, row: int) -> bytes:
    return os.pread(descriptor, size, offset + row * size)


def _names(parts: list[_Shard]) -> str:
    return ", ".join(part.path.name for part in parts)


def _command(out: Path, mate: _Shard, index: int) -> str:
    """Return the command that makes shard `index` of the same plan as `mate`."""
    header = mate.header
    bands = ",".join(name.removeprefix("b").lstrip("0") for name in header.band_names)
    frames = ",".join(map(str, header.frames))
    options = header.options or f"--bands {bands} --frames {frames}"
    if header.convention != DEFAULT:
        options = f"{options} {shlex.join(header.convention.options())}"
    return (
        f"contrails prepare RAW {shlex.quote(str(out))} --split {header.split} {options} "
        f"--shard {index}/{mate.shard.count}"
    )
