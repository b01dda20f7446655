"""The projection into W&B, compared with the files of the run on a server that answers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRun
from killed import kill_core
from wandb_fixtures import as_at_step_8
from wandb_server import StoredRun, WandbServer

from contrails.cli.main import cli
from contrails.errors import Stopped
from contrails.files import read_json, read_json_lines
from contrails.report.log import add_note
from contrails.runs.folder import Fold, Run
from contrails.runs.metrics import fold_metrics
from contrails.tracking.plan import items_of
from contrails.tracking.projection import Projection, follow, sync_fold
from contrails.train.context import JobContext
from contrails.train.fold import train_fold
from contrails.train.loop import Loop

pytestmark = pytest.mark.usefixtures("restore_process")


def steps_of(fold: Fold) -> dict[int, dict[str, Any]]:
    """The raw rows of all attempts, by step."""
    rows: dict[int, dict[str, Any]] = {}
    for attempt in fold.attempts():
        for row in read_json_lines(attempt.metrics):
            rows.setdefault(row["step"], {}).update(row)
    return rows


def run_of(server: WandbServer, folder: Path) -> StoredRun:
    return server.held.runs[read_json(folder / "wandb.json")["id"]]


def left_at(fold: Fold, job: JobContext, step: int, number: int) -> None:
    """Train a fold in a process that gets a signal after a step."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    original = Loop._step

    def step_and_signal(loop: Loop, batch: Any) -> None:
        original(loop, batch)
        if loop.state.step == step:
            os.kill(os.getpid(), number)

    Loop._step = step_and_signal  # type: ignore[method-assign,assignment]
    try:
        train_fold(fold, job)
    except Stopped:
        pass
    finally:
        os._exit(0)


def test_five_folds_killed_and_moved_to_another_site(
    make_run: MakeRun, tiny_data: Path, tmp_path: Path, server: WandbServer
) -> None:
    filelist = tmp_path / "five.csv"
    cli(["split", str(tiny_data / "train.h5"), "--folds", "5", "-o", str(filelist)], standalone_mode=False)
    run = make_run("five", data={"filelist": str(filelist)})
    folds = [run.fold(str(key)) for key in range(5)]
    for fold in folds:
        left_at(fold, JobContext(scheduler="slurm", node="a1"), 5, signal.SIGKILL)
        left_at(fold, JobContext(scheduler="slurm", node="a1"), 6, signal.SIGTERM)
        left_at(fold, JobContext(scheduler="slurm", node="a2"), 7, signal.SIGKILL)
    assert send(run) == {"fold 0", "fold 1", "fold 2", "fold 3", "fold 4"}
    assert {run_of(server, fold.path).state for fold in folds} == {"failed"}  # nobody trains them: they are lost
    first = {name: len(each.rows) for name, each in server.held.runs.items()}
    there = tmp_path / "another site" / "five"
    shutil.copytree(run.path, there)
    shutil.rmtree(run.path)
    moved = Run(there)
    for fold in map(moved.fold, "01234"):
        left_at(fold, JobContext(scheduler="pbs", node="b1"), 10, signal.SIGTERM)
    send(moved)
    assert {each.state for each in server.held.runs.values()} == {"preempted"}
    for fold in map(moved.fold, "01234"):
        train_fold(fold, JobContext(scheduler="pbs", node="b2"))
    send(moved)
    assert set(server.held.runs) == set(first)
    for fold in map(moved.fold, "01234"):
        held, raw = run_of(server, fold.path), steps_of(fold)
        assert held.rows == fold_metrics(fold) == [raw[step] for step in sorted(raw)]
        assert len(held.rows) > first[held.name] > 0
        assert (held.fields["groupName"], held.fields["jobType"]) == ("five", "train")
        assert held.fields["displayName"] == f"fold{fold.key}"
        assert held.states == ["running", "failed", "running", "preempted", "running", "finished"]
        assert {"recipe", "site", "data", "compute", "fold", "attempts"} <= set(held.first_config)
        attempts = [attempt["node"] for attempt in held.config["attempts"]["value"]]
        assert attempts == ["a1", "a1", "a2", "b1", "b2"]
        assert {key: held.summary[key] for key in raw[max(raw)]} == raw[max(raw)]
    assert not server.held.wrong


def send(run: Run) -> set[str]:
    with Projection(run) as projection:
        sent = list(projection.send(items_of(run, run.folds(), aggregations=True)))
    assert [each.error for each in sent if each.error] == []
    return {each.item.name for each in sent if each.rows}


def test_rows_go_on_where_w_and_b_stands(trained: Fold, server: WandbServer) -> None:
    with as_at_step_8(trained):
        assert sync_fold(trained) == 4
        assert [row["step"] for row in run_of(server, trained.path).rows] == [2, 4, 6, 8]
    assert sync_fold(trained) == 6
    asked = len(server.requests)
    assert sync_fold(trained) == 0
    assert len(server.requests) == asked
    held = run_of(server, trained.path)
    assert held.rows == fold_metrics(trained)
    assert held.summary["best_dice"] == read_json(trained.done)["best_dice"]
    assert held.states == ["running", "failed", "running", "finished"]
    assert not (trained.path / "wandb").exists()


def test_a_row_whose_validation_is_to_come_waits(trained: Fold, server: WandbServer) -> None:
    """A snapshot by a signal at the last step of an epoch lies between the two halves of its row."""
    done, metrics = trained.done.read_text(), trained.attempts()[0].metrics
    text = metrics.read_text()
    trained.done.unlink()
    halves = [line for line in text.splitlines(keepends=True) if not ('"step":12' in line and "val/dice" in line)]
    metrics.write_text("".join(halves))
    assert fold_metrics(trained)[-1]["step"] == 12
    assert sync_fold(trained) == 5
    metrics.write_text(text)
    trained.done.write_text(done)
    assert sync_fold(trained) == 6
    (held,) = server.held.runs.values()
    assert held.rows == fold_metrics(trained)


def test_fewer_rows_than_w_and_b_holds_wait(trained: Fold, server: WandbServer) -> None:
    """A fold that goes on from an older snapshot makes the same rows again."""
    sync_fold(trained)
    trained.done.unlink()
    for snapshot in trained.all_snapshots():
        if snapshot.step > 4:
            snapshot.path.unlink()
    old = read_json(trained.wandb)["id"]
    sync_fold(trained)
    assert read_json(trained.wandb)["id"] == old
    assert [row["step"] for row in run_of(server, trained.path).rows] == [2, 4, 6, 8, 10, 12]
    assert not server.held.wrong


def test_weights_are_referred_to_and_notes_are_sent(trained: Fold, server: WandbServer) -> None:
    add_note(trained.run, "drops after tracing", 0.6)
    sync_fold(trained)
    (artifact,) = server.held.artifacts.values()
    files = {name: entry["ref"] for name, entry in artifact.manifest["contents"].items()}
    assert (artifact.kind, artifact.state) == ("weights", "COMMITTED")
    assert files == {path.name: path.as_uri() for path in trained.weights.glob("*.safetensors")}
    assert run_of(server, trained.path).fields["notes"] == "drops after tracing"
    add_note(trained.run, "another", None)
    sync_fold(trained)
    assert run_of(server, trained.path).fields["notes"] == "drops after tracing\nanother"


def test_an_aggregation_with_its_pictures(
    aggregated: Run, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    cli(["sync", str(aggregated.path)], standalone_mode=False)
    assert "aggregation default: scores and samples" in capsys.readouterr().out
    folder = aggregated.aggregate("default")
    held = run_of(server, folder)
    assert held.fields["jobType"] == "aggregate"
    assert held.state == "finished"
    assert held.summary["dice"] == read_json(folder / "ensemble.json")["scores"]["dice"]
    assert [sorted(row) for row in held.rows] == [["predictions"], ["decisions"]]
    tables = {each.kind: each for each in server.held.artifacts.values() if each.name.endswith("predictions")}
    pictures = [name for name in tables["run_table"].manifest["contents"] if name.startswith("media/images/")]
    assert sum("mask" not in name for name in pictures) == 12  # all of them: fewer than the cap
    uploaded = [name for name in server.held.uploads if name.endswith(".png")]
    assert {Path(name).name for name in pictures} == {Path(name).name for name in uploaded}
    (folder / "ensemble.json").write_text(f"{(folder / 'ensemble.json').read_text()}\n")  # made again
    cli(["sync", str(aggregated.path)], standalone_mode=False)
    assert run_of(server, folder) is held
    assert [sorted(row) for row in held.rows] == [["predictions"], ["decisions"]] * 2


class Training:
    """A training of another process, whose files say what they should."""

    def __init__(self, run: Run) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SLOW, str(run.path)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


_SLOW = """
import sys, time
from pathlib import Path
from contrails.runs.folder import Run
from contrails.train.fold import train_fold
from contrails.train.loop import Loop

original = Loop._step
def step(loop, batch):
    original(loop, batch)
    while loop.state.step >= 8 and not (Path(sys.argv[1]) / "go on").exists():
        time.sleep(0.05)
Loop._step = step
train_fold(Run(Path(sys.argv[1])).fold("0"))
"""


def eventually(true: Callable[[], bool], limit_s: float = 120.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_following_keeps_a_run_open_and_outlives_server_and_core(make_run: MakeRun, server: WandbServer) -> None:
    run = make_run("followed")
    fold = run.fold("0")
    with Training(run) as training:
        eventually(lambda: len(fold_metrics(fold)) >= 2)
        states, seen = list[str](), list[Any]()
        for sent in follow(run, [fold], lambda _: training.process.poll() is not None, interval_s=0.2):
            seen.append(sent)
            if len(seen) == 1:
                eventually(lambda: server.kinds().count("UpsertBucket") == 2)  # the second has the whole configuration
                opened = server.kinds().count("UpsertBucket")
            if len(seen) == 3:
                assert server.kinds().count("UpsertBucket") == opened  # it is still the same process
                states.append(run_of(server, fold.path).state)
                server.stop()
                kill_core()  # of this process, and so of the worker
                (run.path / "go on").touch()
            if sent.error and not server.alive:
                server.start()
    assert states == ["running"]
    assert any(sent.error for sent in seen)
    sync_fold(fold)  # as the command does, where the last look failed
    held = run_of(server, fold.path)
    assert held.rows == fold_metrics(fold)
    assert held.state == "finished"
    assert not server.held.wrong


def test_a_follower_that_is_stopped_leaves_a_run_that_goes_on(make_run: MakeRun, server: WandbServer) -> None:
    run = make_run("followed")
    fold = run.fold("0")
    with Training(run):
        eventually(lambda: len(fold_metrics(fold)) >= 2)
        command = [sys.executable, "-m", "contrails", "sync", str(run.path), "--follow"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout is not None
            assert follower.stdout.readline().startswith("fold 0: ")
            assert run_of(server, fold.path).state == "running"
            follower.kill()
        eventually(lambda: run_of(server, fold.path).state == "preempted")
        assert run_of(server, fold.path).rows == fold_metrics(fold)
        items, old = items_of(run, [fold], aggregations=False), run_of(server, fold.path)
        with Projection(run, live=True) as projection:
            assert [sent.rows for sent in projection.send(items)] == [len(old.rows)]
            assert old.state == "running"
            metrics = fold.attempts()[0].metrics
            metrics.write_text(metrics.read_text().replace('"train/loss":', '"train/loss":1', 1))
            (sent,) = projection.send(items)
            new = run_of(server, fold.path)
            assert sent.said is not None and f"W&B holds as {old.name} have changed" in sent.said
            assert (old.state, new.state, new.rows) == ("failed", "running", fold_metrics(fold))
        assert new.state == "preempted"
