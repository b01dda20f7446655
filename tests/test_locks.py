"""Locks: one holder at a time, and a word where the file system has none."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from contrails import locks
from contrails.errors import RunError, StorageError
from contrails.locks import locked, sole_writer

HOLD = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"


class Busy(Exception):
    """Somebody else has the lock."""


def busy() -> NoReturn:
    raise Busy


def test_a_lock_is_held_by_one_and_given_back_by_its_end(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Busy), locked(path, busy):
            pass
        with pytest.raises(RunError, match="wait for it"), sole_writer(path, "wait for it"):
            pass
        other.kill()
    with locked(path, busy):
        pass
    with sole_writer(path, "unused"):
        pass


def test_nothing_is_left_beside_an_output_but_what_holds_something(tmp_path: Path) -> None:
    with pytest.raises(Busy), sole_writer(tmp_path / ".out.h5.lock", "unused"):
        raise Busy
    with sole_writer(tmp_path / ".out.h5.lock", "unused"), sole_writer(tmp_path / ".out.h5.journal", "unused"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".out.h5.journal"]


def test_a_lock_that_its_holder_has_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = tmp_path / ".out.h5.lock", locks.try_lock
    removals = iter([path])

    def end_of_the_holder(descriptor: int, of: Path) -> bool:
        for each in removals:  # between opening and locking
            each.unlink()
        return original(descriptor, of)

    monkeypatch.setattr(locks, "try_lock", end_of_the_holder)
    with sole_writer(path, "unused"):
        assert path.exists()
        monkeypatch.setattr(locks, "try_lock", original)
        with pytest.raises(RunError, match="wait for it"), sole_writer(path, "wait for it"):
            pass
        assert path.exists()
    assert not path.exists()


def flock_that_says(number: int) -> Any:
    def flock(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_the_work_goes_on_with_a_warning(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock_that_says(number))
    with locked(tmp_path / "one", busy):
        (tmp_path / "one").write_text("went on")
    with sole_writer(tmp_path / "two", "unused"):
        pass
    assert (tmp_path / "one").read_text() == "went on"
    assert [record.message.partition(" has no file locks")[0] for record in caplog.records] == [str(tmp_path)] * 2
    assert "do not start the same command twice" in caplog.text


def test_any_other_mistake_of_a_lock_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setattr(fcntl, "flock", flock_that_says(errno.EIO))
    with pytest.raises(StorageError, match=f"cannot lock {path}"), locked(path, busy):
        pass
    with pytest.raises(StorageError, match=f"cannot lock {path}"), sole_writer(path, "unused"):
        pass


@pytest.mark.parametrize("hold", [lambda path: locked(path, busy), lambda path: sole_writer(path, "unused")])
def test_what_fails_while_a_lock_is_held_is_not_said_of_the_lock(
    tmp_path: Path, hold: Callable[[Path], AbstractContextManager[None]]
) -> None:
    with pytest.raises(FileNotFoundError, match="no such record"), hold(tmp_path / "lock"):
        raise FileNotFoundError(errno.ENOENT, "no such record", str(tmp_path / "raw" / "record.npy"))
    with pytest.raises(OSError, match="a broken disk"), hold(tmp_path / "lock"):
        raise OSError(errno.EIO, "a broken disk")
