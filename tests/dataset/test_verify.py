"""The rows that a training reads: each is compared once by the folds of a job, in the background, on what they map."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrails.dataset.store import open_dataset
from contrails.dataset.verify import RowCheck, damaged_rows
from contrails.errors import Stopped, StorageError

from dataset_edits import flip_a_bit

ALL_ROWS = np.arange(12)


def nothing() -> None:
    pass


@pytest.fixture
def path(tiny_data: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "data.h5"
    shutil.copy(tiny_data / "train.h5", copy)
    return copy


@pytest.fixture
def shared() -> Iterator[int]:
    descriptor = os.memfd_create("verified")
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that were compared, in their order."""
    rows, compare = list[int](), RowCheck._compare

    def noted(check: RowCheck, file: Any, row: int) -> None:
        rows.append(row)
        compare(check, file, row)

    monkeypatch.setattr(RowCheck, "_compare", noted)
    return rows


def test_folds_of_a_job_compare_each_row_once(path: Path, shared: int, compared: list[int]) -> None:
    dataset = open_dataset(path)
    for begin, expected in ((0.5, [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]), (0.0, [])):
        check = RowCheck([(dataset, ALL_ROWS)], begin, shared)
        check.finish(nothing)
        assert check.intact
        assert compared == expected
        compared.clear()
    alone = RowCheck([(dataset, ALL_ROWS[3:5]), (dataset, ALL_ROWS[4:6])])
    alone.finish(nothing)
    assert compared == [3, 4, 4, 5]  # two files, such as the dataset and pseudo-labels


def test_a_fold_does_not_rely_on_what_another_found_of_another_copy(path: Path, tmp_path: Path, shared: int) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(path, copy)
    flip_a_bit(copy, "bands", 4)
    RowCheck([(open_dataset(path), ALL_ROWS)], 0.0, shared).finish(nothing)
    check = RowCheck([(open_dataset(copy), ALL_ROWS)], 0.0, shared)
    check.finish(nothing)
    assert not check.intact
    assert str(check.damage) == "record 1004: /bands is not what was written"


def test_damage_is_found_by_every_fold_that_reads_it(path: Path, shared: int) -> None:
    flip_a_bit(path, "bands", 4)
    flip_a_bit(path, "votes", 4)
    dataset = open_dataset(path)
    for rows, is_read in ((ALL_ROWS, True), (ALL_ROWS[:4], False), (ALL_ROWS[4:], True)):
        check = RowCheck([(dataset, rows)], 0.0, shared)
        check.finish(nothing)
        assert check.intact == (not is_read)
        if is_read:
            assert str(check.damage) == "; ".join(damaged_rows(dataset))


def test_the_file_that_is_mapped_is_what_is_read(path: Path) -> None:
    """Another file may get its name meanwhile."""
    dataset = open_dataset(path)
    check = RowCheck([(dataset, ALL_ROWS)])
    replaced = path.with_name("new.h5")
    shutil.copy(path, replaced)
    flip_a_bit(path, "bands", 1)
    replaced.rename(path)
    check.finish(nothing)
    assert str(check.damage) == "record 1001: /bands is not what was written"


def test_the_background_has_the_lowest_priority(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, int]] = []
    compare = RowCheck._compare

    def noted(check: RowCheck, *arguments: Any) -> None:
        found.append((threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        compare(check, *arguments)

    monkeypatch.setattr(RowCheck, "_compare", noted)
    check, before = RowCheck([(open_dataset(path), ALL_ROWS)]), os.getpriority(os.PRIO_PROCESS, 0)
    check.start()
    end = time.monotonic() + 120
    while not check.intact:
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    assert found == [("verify", 19)] * 12
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    check.finish(nothing)
    assert len(found) == 12


def test_a_stop_ends_it_after_a_row_and_the_next_goes_on(path: Path, compared: list[int]) -> None:
    check = RowCheck([(open_dataset(path), ALL_ROWS)])

    def stop() -> None:
        if len(compared) == 3:
            raise Stopped("asked to")

    with pytest.raises(Stopped):
        check.finish(stop)
    check.finish(stop)
    assert compared == list(range(12))


def test_a_file_that_was_cut_short_is_named(path: Path) -> None:
    check = RowCheck([(open_dataset(path), ALL_ROWS)])
    os.truncate(path, open_dataset(path).bands.offset + 100)  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match=rf"cannot read {path}: the file is truncated"):
        check.finish(nothing)


def test_a_disk_that_does_not_give_rows_back_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = RowCheck([(open_dataset(path), ALL_ROWS)])

    def failing(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", failing)
    with pytest.raises(StorageError, match=rf"cannot read {path}: Input/output error"):
        check.finish(nothing)
