"""Faults while a snapshot is written: the one before stays, training goes on, nothing starts again from zero."""

import errno
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrails import files
from contrails.errors import Stopped, StorageError
from contrails.runs.folder import Fold, Run
from contrails.train.fold import train_fold
from contrails.train.loop import Loop
from contrails.train.saved import snapshot
from contrails.train.saved.snapshot import load_snapshot, remove_leftovers, save_snapshot

MakeRun = Callable[..., Run]
pytestmark = pytest.mark.usefixtures("restore_process")


def content(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((3,), float(step))}}


def weights(fold: Fold) -> dict[str, str]:
    done = fold.read_done()
    assert done is not None
    return {name: entry["sha256"] for name, entry in done["weights"].items()}


def test_a_crash_between_any_two_calls_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    """A child process writes a snapshot and ends itself before its n-th call that touches the disk, for every n."""
    fold, deaths, survived = Fold(tmp_path / "run" / "folds" / "0"), 0, False
    save_snapshot(fold, 1, content(1))
    while not survived:
        survived = _write_and_die(fold, deaths)
        found = load_snapshot(fold)
        assert found is not None
        name, loaded = found
        assert loaded["model"]["w"].tolist() == [name.step] * 3
        assert name.step in ((2,) if survived else (1, 2))
        if name.step == 2:
            name.path.unlink()
        deaths += 1
    assert deaths > 10
    assert list(fold.snapshots.glob(".*.tmp"))
    remove_leftovers(fold)
    assert not list(fold.snapshots.glob(".*.tmp"))


def _write_and_die(fold: Fold, calls_left: int) -> bool:
    """Return whether the child came to its end before so many calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: this child only writes
        child = os.fork()
    if child == 0:
        _die_after(calls_left)
        save_snapshot(fold, 1, content(2))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _die_after(calls_left: int) -> None:
    left = [calls_left]
    of_interest = {"open", "write", "close", "fsync", "replace", "unlink", "mkdir", "stat", "write_bytes"}

    def profile(frame: Any, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in of_interest:
            if left[0] == 0:
                os._exit(1)
            left[0] -= 1

    sys.setprofile(profile)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=lambda n: errno.errorcode[n])
def test_training_goes_on_where_a_snapshot_cannot_be_written(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = make_run("undisturbed").fold("0")
    train_fold(undisturbed)
    fold = make_run("full").fold("0")
    failures = [2]
    original = files.fsync

    def fsync(path: Path) -> None:
        if path.parent == fold.snapshots and failures[0]:
            failures[0] -= 1
            raise OSError(number, os.strerror(number))
        original(path)

    monkeypatch.setattr(files, "fsync", fsync)
    train_fold(fold)
    assert caplog.text.count("no snapshot was written, the previous one stays") == 2
    assert os.strerror(number) in caplog.text
    assert weights(fold) == weights(undisturbed)
    assert not list(fold.snapshots.glob(".*"))


def test_a_stop_on_a_full_disk_says_so_and_keeps_the_snapshot_before(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make_run("undisturbed").fold("0")
    train_fold(undisturbed)
    fold = make_run("full").fold("0")
    original = Loop._step

    def full(*_: Any) -> None:
        raise StorageError("cannot write: no space left")

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if loop.state.step == 7:
            loop._writer.wait()
            loop.stop.reason = "SIGTERM"
            monkeypatch.setattr(snapshot, "save_snapshot", full)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        with pytest.raises(StorageError, match="no space left"):
            train_fold(fold)
    monkeypatch.undo()
    assert fold.all_snapshots()[0].step == 4
    train_fold(fold)
    assert weights(fold) == weights(undisturbed)


def test_a_write_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom contrails.errors import StorageError\n"
        "from contrails.runs.folder import Fold\nfrom contrails.train.saved.snapshot import save_snapshot\n"
        "try:\n    save_snapshot(Fold(Path(sys.argv[1])), 1, {'step': 2, 'w': torch.zeros(100_000)})\n"
        "except StorageError as error:\n    print(error)\n"
    )
    fold = Fold(tmp_path / "run" / "folds" / "0")
    save_snapshot(fold, 1, content(1))
    limit = 100_000  # bytes a file: the kernel writes that much and then refuses
    done = subprocess.run(
        [sys.executable, "-c", code, str(fold.path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write" in done.stdout
    assert [path.name for path in fold.snapshots.iterdir()] == [fold.all_snapshots()[0].path.name]
    assert fold.all_snapshots()[0].step == 1


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    fold = Fold(tmp_path / "run" / "folds" / "0")
    fold.path.mkdir(parents=True)
    fold.snapshots.write_text("a file where the folder belongs")
    with pytest.raises(StorageError, match=r"cannot write \S+/snapshots/step00000001-a001"):
        save_snapshot(fold, 1, content(1))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_newest_snapshot_costs_steps_not_the_run(make_run: MakeRun, damage: str) -> None:
    undisturbed = make_run("undisturbed").fold("0")
    train_fold(undisturbed)
    fold = make_run("damaged").fold("0")
    with pytest.MonkeyPatch.context() as patch:
        original = Loop._step

        def step(loop: Loop, batches: Any) -> None:
            original(loop, batches)
            if loop.state.step == 10:
                loop.stop.reason = "SIGTERM"

        patch.setattr(Loop, "_step", step)
        with pytest.raises(Stopped):
            train_fold(fold)
    newest, before = fold.all_snapshots()
    payload = bytearray(newest.path.read_bytes())
    payload[len(payload) // 2] ^= 1
    newest.path.write_bytes(payload if damage == "flip" else payload[: len(payload) // 3])
    found = load_snapshot(fold)
    assert found is not None
    assert found[0] == before
    train_fold(fold)
    assert weights(fold) == weights(undisturbed)
