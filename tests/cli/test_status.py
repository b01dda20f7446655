"""`contrails status` on a narrow terminal, and `--watch`: live on a terminal, lines elsewhere, until the folds end."""

import json
import os
import pty
import subprocess
import sys

import click
import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.cli.watch import status
from contrails.cluster.status.fold_state import FoldState
from contrails.files import append_json_line, to_json, write_atomic
from contrails.runs.folder import Run
from contrails.train.attempt import Heart, claim_attempt
from contrails.train.context import JobContext


@pytest.fixture
def training(make_run: MakeRun) -> Run:
    """A run whose fold 0 is being trained by this process, as far as its files say."""
    run = make_run("watched")
    fold = run.fold("0")
    attempt = claim_attempt(fold, JobContext(), {"device": "cpu"}, lambda: True)
    heart = Heart(fold, attempt)
    heart.start()
    heart.stop(status="running", step=4, num_steps=12, epoch=1, num_epochs=3, seconds_per_step=60.0, best_dice=0.25)
    for step, loss in ((2, 0.5), (4, 0.25)):
        append_json_line(attempt.metrics, {"step": step, "epoch": step / 4, "train/loss_smooth": loss})
    append_json_line(attempt.metrics, {"step": 4, "epoch": 1, "val/dice": 0.25})
    told = {"step": 4, "images_per_s": 12.34, "data_wait_share": 0.031, "memory": 2_500_000_000, "gpu_use": 0.87}
    append_json_line(attempt.telemetry, told)
    return run


def watch(run: Run, out: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "contrails", "status", str(run.path), "--watch"]
    environment = dict(os.environ) | {"COLUMNS": "160", "TERM": "xterm"}
    return subprocess.Popen(command, stdout=out, env=environment)


def finish(run: Run) -> None:
    write_atomic(run.fold("0").done, to_json({"attempt": 1, "step": 12, "epoch": 3, "best_dice": 0.5}))


def test_lines_where_there_is_no_terminal(training: Run) -> None:
    with watch(training, subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline().decode()
        for said in ("watched fold 0: running", "epoch 1/3", "loss █▁ 0.2500", "Dice ▁ 0.2500", "left 8:00"):
            assert said in first
        for said in ("images/s 12.3", "data 3.1%", "GPU 87%", "memory 2.5 GB"):
            assert said in first
        finish(training)
        rest = process.stdout.read().decode()
        assert process.wait(60) == 0
    assert "watched fold 0: done" in rest
    assert len(rest.splitlines()) == 1


def test_a_live_table_on_a_terminal(training: Run) -> None:
    ours, theirs = pty.openpty()
    with watch(training, theirs) as process:
        os.close(theirs)
        shown = b""
        while b"running" not in shown or b"Ctrl-C" not in shown:
            shown += os.read(ours, 65536)
        finish(training)
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other side has closed it
                break
        assert process.wait(60) == 0
    os.close(ours)
    assert "done" in shown.decode()
    assert "█▁ 0.2500" in shown.decode()


def test_a_script_does_not_watch(training: Run) -> None:
    with pytest.raises(click.UsageError, match="--watch and --json"):
        cli(["status", str(training.path), "--watch", "--json"], standalone_mode=False)


def test_hours_survive_a_copy(training: Run, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = training.fold("0").attempt(1)
    os.utime(attempt.state, (0, 2e9))  # as a copy may set it
    capsys.readouterr()
    cli(["status", str(training.path), "--json"], standalone_mode=False)
    usage = json.loads(capsys.readouterr().out)["watched"][0]["usage"]
    assert 0 <= usage["hours"] < 0.1
    assert usage["hours_waiting"] == pytest.approx(0.031 * usage["hours"])


def test_a_narrow_table_cuts_no_figure(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = FoldState("0", "cancelled", 12, 11_800, 12_000, 58, 60, 0.6123, 3723.0, node="gpu-node-17.cluster")
    status.print_states(make_run(), [row])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(
        line.split() == ["0", "cancelled", "12", "11800/12000", "0.6123", "1:02:03", "0.00", "0.00", "yes"]
        for line in lines
    )
