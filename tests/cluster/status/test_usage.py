"""Where the hours of attempts went, and what is asked for next time."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.cluster.queue.journal import record
from contrails.cluster.status.fold_state import FoldState
from contrails.cluster.status.suggest import suggest
from contrails.cluster.status.usage import Usage, spans, usage_of
from contrails.files import append_json_line, last_json_line, to_json, write_atomic
from contrails.runs.folder import Fold

START = 1_800_000_000.0
HOUR = 3600.0


@pytest.fixture
def fold(make_run: MakeRun) -> Fold:
    """A fold whose job waited for half an hour, was preempted after two hours, waited again and ended."""
    fold = make_run().fold("0")
    record(fold.run, "intent", name="j0", folds=["0"], pickle=None, exclude=[])
    record(fold.run, "submitted", name="j0", job_id="77")
    rows = fold.run.journal.read_text().splitlines()
    fold.run.journal.write_text("\n".join(to_json(json.loads(row) | {"time": START}) for row in rows) + "\n")
    write_attempt(fold, 1, 0.5, 2.0, status="running", step=100, seconds_per_step=36.0)
    write_atomic(fold.attempt(1).ended, to_json({"cause": "preemption", "step": 50, "handed_over": True}))
    write_attempt(fold, 2, 3.5, 1.0, status="done", step=200, seconds_per_step=36.0)
    return fold


def write_attempt(fold: Fold, number: int, after_h: float, hours: float, **state: object) -> None:
    attempt = fold.attempt(number)
    started = datetime.fromtimestamp(START + after_h * HOUR, UTC).isoformat()
    owner = {"started": started, "job_id": "77", "device": "cuda", "num_ranks": 2}
    write_atomic(attempt.job, to_json(owner))
    write_atomic(attempt.state, to_json(state | {"time": START + (after_h + hours) * HOUR}))
    told = {"data_wait_share": 0.1, "memory": 8_000_000_000, "resident": number * 1_000_000_000}
    append_json_line(attempt.telemetry, told)


def test_hours_by_what_they_went_into(fold: Fold) -> None:
    found = usage_of(fold)
    assert found.hours == pytest.approx(3.0)
    assert found.hours_lost == pytest.approx(0.5)
    assert found.hours_waiting == pytest.approx(0.3)
    assert found.hours_queued == pytest.approx(0.5 + 1.0)
    assert (found.num_gpus, found.memory_gb) == (2, 2.0)
    assert found.efficiency == pytest.approx(1 - 0.8 / 3)


def test_attempts_in_time(fold: Fold) -> None:
    first, second = spans(fold)
    assert (first.status, first.cause, second.status, second.cause) == ("lost", "preemption", "done", None)
    assert (first.queued, second.queued) == (START, START + 2.5 * HOUR)


def test_sums() -> None:
    both = Usage(1, 0.5, 0.25, 2, 1, 3.0) + Usage(2, 0, 0, 0, 0, None)
    assert both == Usage(3, 0.5, 0.25, 2, 1, 3.0)
    assert Usage().efficiency is None


def test_a_suggestion_rests_on_the_longest_fold() -> None:
    done = FoldState("0", "done", step=100, num_steps=100, usage=Usage(hours=1.5, hours_lost=0.5, memory_gb=3.0))
    half = FoldState("1", "running", step=50, num_steps=100, usage=Usage(hours=0.75, memory_gb=3.4))
    found = suggest([done, half], margin_s=120)
    assert (found.walltime_min, found.memory_gb) == (110, 4.5)
    assert "the longest fold takes 90.0 min" in found.reason
    assert suggest([done], margin_s=120, num_ranks=2).memory_gb == 7.5
    assert suggest([FoldState("0", "waiting")], 120).reason == "no fold has made a step yet"


def test_on_the_command_line(fold: Fold, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cli(["usage", str(fold.run.path), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["folds"]["0"]["gpu_hours"] == pytest.approx(6.0)
    cli(["usage", str(fold.run.path)], standalone_mode=False)
    assert "memory_gb = 2.5" in capsys.readouterr().out
    monkeypatch.setenv("CONTRAILS_RUNS", str(fold.run.path.parent))
    write_atomic(fold.run.provenance, to_json({"user": "zoë"}))
    cli(["usage", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["users"]["zoë"]["hours"] == pytest.approx(3.0)


def test_the_last_row_of_a_file_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert last_json_line(path) == {}
    for step in range(3000):
        append_json_line(path, {"step": step, "filling": "x" * 40})
    with path.open("a") as file:
        file.write('{"step": 3000, "fil')
    assert last_json_line(path)["step"] == 2999
