"""The projection into W&B, read back from the offline files that it writes, killed at every stage."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed import SYNC_STAGES, sync_killed
from wandb_fixtures import as_at_step_8

from contrails.cli.main import cli
from contrails.errors import TrackingError
from contrails.files import read_json, to_json, write_atomic
from contrails.locks import sole_writer
from contrails.runs.folder import Fold, Run
from contrails.runs.metrics import fold_metrics
from contrails.tracking import projection
from contrails.tracking.plan import Item
from contrails.tracking.projection import Sent, follow, sync_fold

pytestmark = pytest.mark.usefixtures("restore_process", "nobody")


def records(folder: Path) -> Iterator[Any]:
    """Every record of the offline files, in order."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
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


def history(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def offline_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "wandb").glob("offline-run-*"))


def test_each_row_once_and_nothing_else(trained: Fold) -> None:
    expected = fold_metrics(trained)
    assert sync_fold(trained) == len(expected) == 6
    assert sync_fold(trained) == 0
    assert history(trained.path) == expected


def test_one_run_a_fold_grouped_by_run(trained: Fold) -> None:
    sync_fold(trained)
    run = next(record.run for record in records(trained.path) if record.WhichOneof("record_type") == "run")
    known = json.loads(trained.wandb.read_text())
    assert (run.run_id, run.display_name, run.run_group, run.job_type) == (known["id"], "fold0", "Läufe ü", "train")
    config = {
        item.key: json.loads(item.value_json)
        for record in records(trained.path)
        if record.WhichOneof("record_type") == "config"
        for item in record.config.update
    }
    assert config["recipe"]["train"]["epochs"] == 3
    assert config["attempts"][0]["cpu"]
    assert {"site", "data", "compute", "provenance"} <= set(config)


def test_weights_are_referred_to_and_not_sent(trained: Fold) -> None:
    sync_fold(trained)
    (artifact,) = [each.artifact for each in records(trained.path) if each.WhichOneof("record_type") == "artifact"]
    files = {Path(entry.path).name: entry.ref for entry in artifact.manifest.contents}
    assert artifact.type == "weights"
    assert files == {path.name: path.as_uri() for path in trained.weights.glob("*.safetensors")}
    assert sum(path.stat().st_size for path in (trained.path / "wandb").rglob("*") if path.is_file()) < 200_000


def test_rows_beyond_the_last_snapshot_wait_and_then_follow(trained: Fold) -> None:
    with as_at_step_8(trained):
        assert sync_fold(trained) == 4
        assert [row["step"] for row in history(trained.path)] == [2, 4, 6, 8]
        assert sync_fold(trained) == 0
    assert sync_fold(trained) == 6
    assert [row["step"] for row in history(trained.path)] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("stage", ["rows", "wandb-core", "answered"])
def test_killed_at_any_stage_nothing_is_lost_or_doubled(trained: Fold, stage: str) -> None:
    write_atomic(trained.wandb, to_json({"id": "0123abcd"}))
    done = sync_killed(trained, stage)
    assert done.returncode == (-9 if stage in SYNC_STAGES else 10), done.stderr
    assert sync_fold(trained) == 6
    assert history(trained.path) == fold_metrics(trained)
    assert len(offline_folders(trained.path)) == 1
    assert read_json(trained.wandb)["id"] == "0123abcd"


def test_killed_before_it_was_written_down(trained: Fold) -> None:
    sync_fold(trained)
    write_atomic(trained.wandb, to_json({"id": read_json(trained.wandb)["id"]}))
    assert sync_fold(trained) == 6
    assert history(trained.path) == fold_metrics(trained)


def test_a_new_run_where_the_old_one_is_beyond_repair(trained: Fold) -> None:
    sync_fold(trained)
    old = read_json(trained.wandb)["id"]
    assert sync_fold(trained, rebuild=True) == 6
    assert read_json(trained.wandb)["id"] != old
    assert history(trained.path) == fold_metrics(trained)


def test_no_answer_in_time(trained: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(projection, "_DEADLINE_S", 0.05)
        with pytest.raises(TrackingError, match="W&B: no answer within 0 s"):
            sync_fold(trained)
    assert sync_fold(trained) == 6


def test_no_network_is_one_warning(trained: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("WANDB_API_KEY", "0" * 40)
        patched.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        with pytest.raises(TrackingError, match=r"W&B: .*nothing is lost: fix the cause \(key, network\)"):
            cli(["sync", str(trained.run.path)], standalone_mode=False)
    assert sync_fold(trained) == 6
    assert history(trained.path) == fold_metrics(trained)


def test_two_at_a_time_are_refused(trained: Fold) -> None:
    with (
        sole_writer(trained.path / ".wandb.lock", ""),
        pytest.raises(TrackingError, match="another contrails sync works on"),
    ):
        sync_fold(trained)


def test_following_ends_with_the_folds(trained: Fold) -> None:
    looks = iter([False, False, True])
    outcomes = [sent.rows for sent in follow(trained.run, [trained], lambda _: next(looks), interval_s=0)]
    assert outcomes == [6, 0, 0]


def test_a_follower_tells_a_problem_once(
    trained: Fold, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    item = Item(trained.run, trained.path, trained)
    failed = Sent(item, error="W&B: no network")
    looks = [failed, Sent(item), failed, Sent(item, rows=6), Sent(item), failed, failed]
    monkeypatch.setattr(projection, "follow", lambda *_: iter(looks))
    cli(["sync", str(trained.run.path), "--follow"], standalone_mode=False)
    assert capsys.readouterr().err.count("warning: fold 0: W&B: no network") == 2


def test_an_aggregation_is_a_run_of_its_own(aggregated: Run, capsys: pytest.CaptureFixture[str]) -> None:
    cli(["sync", str(aggregated.path)], standalone_mode=False)
    assert "aggregation default: scores and samples" in capsys.readouterr().out
    folder = aggregated.aggregate("default")
    run = next(record.run for record in records(folder) if record.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type, run.display_name) == (aggregated.name, "aggregate", "default")
    summary = {
        item.key: json.loads(item.value_json)
        for record in records(folder)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    scores = read_json(folder / "ensemble.json")["scores"]
    assert summary["dice"] == scores["dice"]
    tables = {
        record.artifact.name.rpartition("-")[2]: [entry.path for entry in record.artifact.manifest.contents]
        for record in records(folder)
        if record.WhichOneof("record_type") == "artifact" and record.artifact.type == "run_table"
    }
    assert set(tables) == {"predictions", "decisions"}
    pictures = [path for path in tables["predictions"] if path.startswith("media/images/")]
    assert sum("mask" not in path for path in pictures) == 12  # all of them: fewer than the cap
    cli(["sync", str(aggregated.path)], standalone_mode=False)
    assert "aggregation default: nothing new" in capsys.readouterr().out
