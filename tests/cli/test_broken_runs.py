"""One file of one run that is broken is in the way of no other run, and a root that is no folder is said."""

import os
from pathlib import Path

import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.cluster.queue.journal import record
from contrails.errors import RunError, StorageError
from contrails.files import append_json_line, to_json, write_atomic
from contrails.processes import process_of
from contrails.runs.folder import Run

_ATTEMPT = "folds/0/attempts/001"
_FILES = (
    "run.toml", "journal.jsonl", "provenance.json", "notes.jsonl", "then.json", "then.claim", f"{_ATTEMPT}/job.json",
    f"{_ATTEMPT}/state.json", f"{_ATTEMPT}/ended.json", f"{_ATTEMPT}/metrics.jsonl", f"{_ATTEMPT}/telemetry.jsonl",
    "folds/1/done.json", "aggregate/default/ensemble.json",
)  # fmt: skip
_NAMES = ("name", "event", "status", "folds", "time", "command", "step", "job_id", "exclude", "started", "best_dice")
_BROKEN = {
    "empty": "",
    "garbage": "\x00 {",
    "list": "[1, 2]",
    "number": "7",
    "object": "{}",
    "others": to_json({name: ["x"] for name in (*_NAMES, "epoch", "attempt", "cause", "code", "pid")}),
    "more": to_json(
        {"event": "intent", "name": "a2", "status": 7, "folds": 5, "step": "x", "started": "x", "time": "x"}
    ),
    "folder": None,
}


@pytest.fixture
def runs(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    """Two runs, each with a fold that has failed, one that is finished, and something in every file."""
    found = make_run("good"), make_run("broken")
    for run in found:
        fold = run.fold("0")
        attempt = fold.attempt(1)
        owner = process_of(os.getpid()).to_json() | {"started": "2026-01-01T00:00:00+00:00"}
        write_atomic(attempt.job, to_json(owner))
        write_atomic(attempt.state, to_json({"status": "failed", "reason": "no", "step": 3}))
        write_atomic(attempt.ended, to_json({"cause": "error", "step": 0}))
        append_json_line(attempt.metrics, {"step": 1, "train/loss": 1.0})
        append_json_line(attempt.telemetry, {"step": 1})
        record(run, "intent", name="a1", folds=["0"], exclude=[])
        record(run, "submitted", name="a1", job_id="5", process=process_of(os.getpid()).to_json())
        append_json_line(run.notes, {"text": "a remark"})
        write_atomic(run.provenance, to_json({"user": "me"}))
        write_atomic(run.fold("1").done, to_json({"attempt": 1, "step": 12, "epoch": 3, "best_dice": 0.5}))
        write_atomic(run.then, to_json({"command": ["aggregate"], "folds": ["1"]}))
        write_atomic(run.then_claim, to_json({"code": 1}))
        write_atomic(run.aggregate("default") / "ensemble.json", "{}")
    monkeypatch.setenv("CONTRAILS_RUNS", str(found[0].path.parent))
    return found


@pytest.mark.parametrize("name", _FILES)
def test_a_broken_file_is_in_the_way_of_no_other_run(
    runs: tuple[Run, Run], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs[1].path / name
    for content in _BROKEN.values():
        path.unlink()
        path.mkdir() if content is None else path.write_text(content)
        for command in (["status"], ["status", "--json"], ["runs"], ["usage"]):
            cli(command, standalone_mode=False)
            shown = capsys.readouterr().out
            assert "good" in shown
            assert "broken" in shown


@pytest.mark.parametrize("content", ["[1, 2]", "{}", '{"attempt": 1, "step": 12}'])
def test_a_result_that_is_none_is_damaged(runs: tuple[Run, Run], content: str) -> None:
    fold = runs[1].fold("1")
    write_atomic(fold.done, content)
    with pytest.raises(StorageError, match=r"done.json is not the result .*, it lacks .*; restore it, or remove"):
        fold.read_done()


@pytest.mark.parametrize("command", [["status"], ["runs"], ["report", "first"], ["usage"]])
def test_a_root_that_is_a_file_is_said(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=r"expected a folder for runs at .*/runs, found a file; move it, or set"):
        cli(command, standalone_mode=False)
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path / "runs"))
    with pytest.raises(RunError, match=r"found a file; correct \$CONTRAILS_RUNS"):
        cli(command, standalone_mode=False)
