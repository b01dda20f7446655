"""Damaged data end a fold, whichever bytes it reads, and what was trained on them is not gone on from."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contrails.dataset.stage import stage
from contrails.dataset.store import open_dataset
from contrails.dataset.verify import RowCheck
from contrails.errors import DataError, NodeError, Stopped
from contrails.files import read_json, sha256
from contrails.runs.folder import Fold, Run
from contrails.runs.metrics import covered_step
from contrails.train.context import JobContext
from contrails.train.fold import train_fold
from contrails.train.loop import Loop

from dataset_edits import flip_a_bit, set_row

MakeRun = Callable[..., Run]
pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "data.h5"
    shutil.copy(tiny_data / "train.h5", path)
    return path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify before the first step."""
    monkeypatch.setattr(RowCheck, "start", lambda check: check.finish(lambda: None))


@pytest.fixture
def at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A background that never gets to it, on a machine with much else to do."""
    monkeypatch.setattr(RowCheck, "start", lambda _: None)


def stop_at(step: int, fold: Fold) -> None:
    original = Loop._step

    def step_and_stop(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if loop.state.step == step:
            loop.stop.reason = "SIGTERM"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", step_and_stop)
        with pytest.raises(Stopped):
            train_fold(fold)


def result(fold: Fold) -> dict[str, str]:
    done = fold.read_done()
    assert done is not None
    for entry in done["weights"].values():
        assert sha256(fold.weights / entry["file"]) == entry["sha256"]
    return {name: entry["sha256"] for name, entry in done["weights"].items()}


@pytest.mark.parametrize("residency", ["mmap", "ram"])
@pytest.mark.parametrize("array", ["bands", "votes"])
def test_a_flipped_bit_ends_the_fold(make_run: MakeRun, data: Path, array: str, residency: str) -> None:
    fold = make_run(data={"dataset": str(data), "residency": residency}).fold("0")
    flip_a_bit(data, array, 5)
    with pytest.raises(DataError) as found:
        train_fold(fold)
    said = str(found.value)
    assert (
        f"{data} is damaged: record 1005: /{array} is not what was written. The snapshots of fold 0 since then" in said
    )
    assert f"restore the original file (`contrails data verify {data}` lists all damaged records)" in said
    assert said.endswith(f"then `contrails resume {fold.run.typed}`")
    assert not fold.done.exists()
    assert not fold.all_snapshots()
    assert read_json(fold.attempt(1).verified)["damage"] == f"record 1005: /{array} is not what was written"


def test_edited_votes_under_the_old_fingerprint_are_found(make_run: MakeRun, data: Path) -> None:
    fold, before = make_run(data={"dataset": str(data)}).fold("0"), open_dataset(data).fingerprint
    set_row(data, "votes", 7, 3, digest=False)
    assert open_dataset(data).fingerprint == before
    with pytest.raises(DataError, match="record 1007: /votes is not what was written"):
        train_fold(fold)


@pytest.mark.usefixtures("at_the_end")
def test_no_fold_is_finished_before_its_data_are_verified(make_run: MakeRun, data: Path) -> None:
    fold = make_run(data={"dataset": str(data)}).fold("0")
    flip_a_bit(data, "bands", 11)
    with pytest.raises(DataError, match="record 1011: /bands"):
        train_fold(fold)
    assert '"step":12' in fold.attempt(1).metrics.read_text()
    assert not fold.done.exists()


def test_what_no_step_reads_is_not_verified(make_run: MakeRun, data: Path) -> None:
    fold = make_run(data={"dataset": str(data), "limit": 2}).fold("0")
    used = {"1000", "1001", "1002", "1005"}  # the first two records of either side
    row = next(row for row, record_id in enumerate(open_dataset(data).record_ids) if record_id not in used)
    flip_a_bit(data, "bands", row)
    train_fold(fold)
    verified = read_json(fold.attempt(1).verified)
    assert verified["damage"] is None
    assert 0 < verified["step"] <= 3


@pytest.mark.usefixtures("at_once")
def test_snapshots_since_the_data_were_known_to_be_intact_are_set_aside(make_run: MakeRun, data: Path) -> None:
    undisturbed, fold = (make_run(name, data={"dataset": str(data)}).fold("0") for name in ("undisturbed", "damaged"))
    train_fold(undisturbed)
    stop_at(6, fold)
    assert read_json(fold.attempt(1).verified) == {"damage": None, "step": 1}
    flip_a_bit(data, "bands", 5)
    with pytest.raises(DataError, match=r"not trusted \(2 renamed to \*.distrusted\); it starts again"):
        train_fold(fold)
    assert [path.name[:17] for path in fold.distrusted_snapshots()] == ["step00000004-a001", "step00000006-a001"]
    assert covered_step(fold) == 0
    flip_a_bit(data, "bands", 5)  # put back
    train_fold(fold)
    assert result(fold) == result(undisturbed)
    assert not fold.distrusted_snapshots()


def test_older_snapshots_are_gone_on_from(make_run: MakeRun, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, fold = (make_run(name, data={"dataset": str(data)}).fold("0") for name in ("undisturbed", "damaged"))
    train_fold(undisturbed)
    for last_step, verifies in ((6, False), (7, True), (8, False)):
        begin = (lambda check: check.finish(lambda: None)) if verifies else (lambda _: None)
        monkeypatch.setattr(RowCheck, "start", begin)
        stop_at(last_step, fold)
    assert [attempt.verified.exists() for attempt in fold.attempts()] == [False, True, False]
    assert [name.step for name in fold.all_snapshots()] == [8, 7]
    monkeypatch.setattr(RowCheck, "start", lambda check: check.finish(lambda: None))
    flip_a_bit(data, "votes", 2)
    with pytest.raises(DataError, match=r"\(1 renamed to \*.distrusted\); it resumes from step 7; restore"):
        train_fold(fold)
    flip_a_bit(data, "votes", 2)
    train_fold(fold)
    assert result(fold) == result(undisturbed)


def test_an_attempt_that_was_killed_when_it_found_damage_is_heard(make_run: MakeRun, data: Path) -> None:
    """Its word is written before its snapshots are set aside; the next attempt does that."""
    undisturbed, fold = (make_run(name, data={"dataset": str(data)}).fold("0") for name in ("undisturbed", "damaged"))
    train_fold(undisturbed)
    stop_at(6, fold)
    fold.attempt(1).verified.write_text('{"damage":"record 1005: /bands is not what was written","step":6}')
    train_fold(fold)
    assert '"step":2' in fold.attempt(2).metrics.read_text()
    assert result(fold) == result(undisturbed)


def test_normalisation_that_was_fitted_on_damaged_data_is_fitted_again(make_run: MakeRun, data: Path) -> None:
    tables = {"data": {"dataset": str(data), "normalise": "mean_std"}}
    undisturbed, fold = (make_run(name, **tables).fold("0") for name in ("undisturbed", "damaged"))
    train_fold(undisturbed)
    for row in range(12):
        flip_a_bit(data, "bands", row)
    with pytest.raises(DataError, match="is damaged"):
        train_fold(fold)
    for row in range(12):
        flip_a_bit(data, "bands", row)
    train_fold(fold)
    assert result(fold) == result(undisturbed)


@pytest.mark.usefixtures("at_the_end")
def test_a_stop_is_not_delayed(make_run: MakeRun, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold, compared, original = make_run(data={"dataset": str(data)}).fold("0"), list[int](), Loop.require_intact
    compare = RowCheck._compare

    def require_intact(loop: Loop, poll: Any = None) -> None:
        loop.stop.reason = "SIGUSR2"
        original(loop, poll)

    def noted(check: RowCheck, rows: Any, row: int) -> None:
        compared.append(row)
        compare(check, rows, row)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "require_intact", require_intact)
        patch.setattr(RowCheck, "_compare", noted)
        with pytest.raises(Stopped, match=r"stopped at step 12 \(SIGUSR2\)"):
            train_fold(fold)
    assert len(compared) == 1
    assert not fold.done.exists()
    train_fold(fold)
    assert fold.done.exists()


@pytest.mark.usefixtures("at_the_end")
def test_what_is_not_finite_on_damaged_data_is_their_fault(
    make_run: MakeRun, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Loop._step

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        next(loop.state.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Loop, "_step", step)
    fold = make_run(data={"dataset": str(data)}).fold("0")
    flip_a_bit(data, "bands", 3)
    with pytest.raises(DataError, match="record 1003: /bands"):
        train_fold(fold)


def test_a_damaged_copy_on_the_node_is_the_nodes_fault(make_run: MakeRun, data: Path, tmp_path: Path) -> None:
    fold, job = make_run(data={"dataset": str(data)}).fold("0"), JobContext(stage_dir=str(tmp_path / "scratch"))
    copy = stage(data, tmp_path / "scratch")  # by another run
    flip_a_bit(copy, "bands", 5)
    with pytest.raises(NodeError, match=rf"the copy of {data} on this node \({copy}\) is damaged, the file is"):
        train_fold(fold, job)
    assert not copy.exists()
    train_fold(fold, job)
    assert copy.exists()


def test_a_damaged_copy_in_ram_is_the_nodes_fault(make_run: MakeRun, data: Path) -> None:
    fold, descriptor = make_run(data={"dataset": str(data), "residency": "ram"}).fold("0"), os.memfd_create("dataset")
    try:
        os.write(descriptor, data.read_bytes())
        offset = open_dataset(data).votes.offset  # type: ignore[attr-defined]
        os.pwrite(descriptor, bytes([os.pread(descriptor, 1, offset)[0] ^ 1]), offset)
        with pytest.raises(NodeError, match="record 1000: /votes is not what was written"):
            train_fold(fold, JobContext(ram_fd=descriptor))
    finally:
        os.close(descriptor)


def test_an_edited_composite_is_refused(make_run: MakeRun, data: Path) -> None:
    fold = make_run(data={"dataset": str(data), "normalise": "mean_std"}).fold("0")
    stop_at(5, fold)
    written = fold.composite.read_text()
    fold.composite.write_text(written.replace('"per_image":false', '"per_image":true'))
    with pytest.raises(DataError, match=r"composite.json is not what was written: .*; remove it, then run"):
        train_fold(fold)
    fold.composite.unlink()
    train_fold(fold)
    assert fold.composite.read_text() == written
