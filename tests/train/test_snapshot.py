import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from contrails.errors import RunError
from contrails.runs.folder import Fold
from contrails.train.saved.snapshot import load_snapshot, prune_snapshots, save_snapshot


def content(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((3,), float(step))}}


def flip_a_bit(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 1
    path.write_bytes(payload)


@pytest.fixture
def fold(tmp_path: Path) -> Fold:
    return Fold(tmp_path / "run" / "folds" / "0")


def test_the_newest_is_loaded(fold: Fold) -> None:
    for step, attempt in ((5, 1), (20, 1), (20, 2), (10, 3)):
        save_snapshot(fold, attempt, content(step))
    loaded = load_snapshot(fold)
    assert loaded is not None
    assert (loaded[0].step, loaded[0].attempt) == (20, 2)
    assert loaded[1]["model"]["w"].tolist() == [20, 20, 20]


def test_none_is_none(fold: Fold) -> None:
    assert load_snapshot(fold) is None


@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: path.write_bytes(path.read_bytes()[:-5])])
def test_a_damaged_one_is_named_and_skipped(fold: Fold, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    save_snapshot(fold, 1, content(5))
    damage(save_snapshot(fold, 1, content(6)))
    with caplog.at_level(logging.WARNING):
        loaded = load_snapshot(fold)
    assert loaded is not None
    assert loaded[0].step == 5
    assert "step00000006-a001" in caplog.text


def test_all_damaged_is_an_error_not_a_new_start(fold: Fold) -> None:
    flip_a_bit(save_snapshot(fold, 1, content(5)))
    with pytest.raises(RunError, match=r"expected an intact snapshot in .*, found 1 that are damaged"):
        load_snapshot(fold)


def test_pruning_keeps_the_last_two(fold: Fold) -> None:
    for step in range(5):
        save_snapshot(fold, 1, content(step))
    prune_snapshots(fold)
    assert [name.step for name in fold.all_snapshots()] == [4, 3]
