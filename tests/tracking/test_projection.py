"""The projection into W&B, read back from the offline files that it writes."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contrails.history import fold_metrics
from contrails.runs import Fold, Run
from contrails.tracking.projection import sync_fold
from contrails.train.fold import train_fold

pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def trained(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fold:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    fold = make_run().fold("0")
    train_fold(fold, {})
    return fold


def records(fold: Fold) -> Iterator[Any]:
    """Every record of the offline files, in order."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted((fold.path / "wandb").glob("offline-run-*/*.wandb")):
        for payload in payloads(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            yield record


def payloads(content: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log: blocks of 32 KiB, each piece with a checksum, its length and its place."""
    block, header, position, parts = 32_768, 7, 7, b""  # the file opens with 7 bytes of W&B's own
    while position + header <= len(content):
        if block - position % block < header:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def history(fold: Fold) -> list[dict[str, Any]]:
    rows = []
    for record in records(fold):
        if record.WhichOneof("record_type") == "history":
            items = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def test_each_row_once_and_nothing_else(trained: Fold) -> None:
    expected = fold_metrics(trained)
    assert sync_fold(trained) == len(expected) == 6
    assert sync_fold(trained) == 0
    assert history(trained) == expected


def test_one_run_a_fold_grouped_by_run(trained: Fold) -> None:
    sync_fold(trained)
    run = next(record.run for record in records(trained) if record.WhichOneof("record_type") == "run")
    known = json.loads(trained.wandb.read_text())
    assert (run.run_id, run.display_name, run.run_group, run.job_type) == (known["id"], "fold0", "run", "train")
    assert known["step"] == 12


def test_rows_beyond_the_last_snapshot_wait(trained: Fold) -> None:
    trained.done.unlink()
    for name in trained.all_snapshots():
        if name.step > 8:
            name.path.unlink()
    sync_fold(trained)
    assert [row["step"] for row in history(trained)] == [2, 4, 6, 8]
