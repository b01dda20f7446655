"""Where the hours of attempts went, and what is asked for next time."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.cluster.queue.journal import record
from contrails.cluster.status.fold_state import FoldState
from contrails.cluster.status.overview import overview
from contrails.cluster.status.starts import start_of
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


def write_attempt(
    fold: Fold,
    number: int,
    after_h: float,
    hours: float,
    owner: Mapping[str, object] = MappingProxyType({}),
    **state: object,
) -> None:
    attempt = fold.attempt(number)
    started = datetime.fromtimestamp(START + after_h * HOUR, UTC).isoformat()
    made_by = {"started": started, "job_id": "77", "device": "cuda", "num_ranks": 2} | dict(owner)
    write_atomic(attempt.job, to_json(made_by))
    write_atomic(attempt.state, to_json(state | {"time": START + (after_h + hours) * HOUR}))
    told = {"data_wait_share": 0.1, "memory": 8_000_000_000, "resident": number * 1_000_000_000}
    append_json_line(attempt.telemetry, told)


def test_hours_by_what_they_went_into(fold: Fold) -> None:
    found = usage_of(fold.run)["0"]
    assert found.hours == pytest.approx(3.0)
    assert found.hours_lost == pytest.approx(0.5)
    assert found.hours_waiting == pytest.approx(0.3)
    assert found.hours_queued == pytest.approx(0.5 + 1.0)
    assert found.gpu_hours == pytest.approx(6.0)
    assert found.memory_gb == 2.0
    assert found.efficiency == pytest.approx(1 - 0.8 / 3)


@pytest.mark.parametrize(
    ("gpus", "jobs", "gpu_hours", "of_last"),
    [
        ("0", ["7"] * 5, 3.0, 2.2),
        ("0", ["7", "7", "7", "8", "8"], 4.0, 2.5),  # numbers mean other GPUs in another job
        ("GPU-aaaa", ["7", "7", "7", "8", "8"], 3.0, 2.2),
        (None, ["7"] * 5, 3.0, 2.2),
    ],
)
def test_a_gpu_that_folds_share_counts_once(
    make_run: MakeRun, gpus: str | None, jobs: list[str], gpu_hours: float, of_last: float
) -> None:
    """Five folds for one hour, and the last of them for two more."""
    run = make_run()
    for key, job_id in enumerate(jobs):
        owner = {"num_ranks": 1, "gpus": gpus, "job_id": job_id, "host": "node1"}
        write_attempt(run.fold(str(key)), 1, 0.0, 3.0 if key == 4 else 1.0, owner, status="done")
    used = usage_of(run)
    total = sum(used.values(), Usage())
    assert total.hours == pytest.approx(7.0)
    assert total.gpu_hours == pytest.approx(gpu_hours)
    assert used["4"].gpu_hours == pytest.approx(of_last)
    assert overview([run])[run][4].usage == used["4"]


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


def test_a_start_by_what_it_waits_for(fold: Fold, capsys: pytest.CaptureFixture[str]) -> None:
    phases = {"launcher": 1.0, "imports": 9.0, "staging": 30.0, "open": 2.0, "first_step": 0.5}
    write_state(fold, 1, start_s=phases | {"environment": 20.0})
    write_state(fold, 2, start_s=phases | {"imports": 5.0, "open": "?"})
    queue = [HOUR / 2 - 30.0, HOUR - 6.0]
    expected = {"queue": sum(queue) / 2, **phases, "environment": 20.0, "imports": 7.0}
    assert start_of(fold) == pytest.approx(expected)
    name = str(fold.run.path)
    cli(["usage", name, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["folds"]["0"]["start_s"] == pytest.approx(expected)
    cli(["usage", name], standalone_mode=False)
    table = capsys.readouterr().out.partition("seconds before the first step, median of the attempts:")[2]
    rows = [line.split() for line in table.splitlines()]
    assert ["fold", "queue", "launcher", "environment", "imports", "staging", "open", "first", "step"] in rows
    assert ["0", "2682.0", "1.0", "20.0", "7.0", "30.0", "2.0", "0.5"] in rows


def test_attempts_of_older_versions_show_no_start(fold: Fold, capsys: pytest.CaptureFixture[str]) -> None:
    assert start_of(fold) == {}
    cli(["usage", str(fold.run.path)], standalone_mode=False)
    assert "first step" not in capsys.readouterr().out
    cli(["usage", str(fold.run.path), "--json"], standalone_mode=False)
    assert "start_s" not in capsys.readouterr().out


def write_state(fold: Fold, number: int, **state: object) -> None:
    path = fold.attempt(number).state
    write_atomic(path, to_json(json.loads(path.read_text()) | state))
