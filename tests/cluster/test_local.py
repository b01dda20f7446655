"""Folds in the background of this machine: submitted, killed, submitted again, from frozen code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import TINY_MODEL

import contrails
from contrails.files import read_json
from contrails.runs import Run


class Site:
    """A user's folder with a recipe and a copy of the package that can be edited."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root = root
        recipe: dict[str, Any] = {
            "data": {"dataset": str(data / "train.h5"), "filelist": str(data / "three.csv")},
            "model": TINY_MODEL,
            "train": {"epochs": 2, "batch_size": 2, "log_every": 1},
        }
        (root / "tiny.toml").write_text(tomli_w.dumps(recipe))
        shutil.copytree(Path(contrails.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def package(self) -> Path:
        return self.root / "clone" / "contrails"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ) | {"PYTHONPATH": str(self.package.parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "contrails", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    def states(self, name: str) -> dict[str, dict[str, Any]]:
        answer = self.run("status", name, "--json")
        assert answer.returncode == 0, answer.stderr
        return {state["fold"]: state for state in json.loads(answer.stdout)[name]}

    def wait_for(self, name: str, fold: str, *states: str) -> dict[str, Any]:
        end = time.monotonic() + 120
        while (state := self.states(name)[fold])["state"] not in states:
            assert time.monotonic() < end, state
            time.sleep(0.2)
        return state


@pytest.fixture
def site(tmp_path: Path, tiny_data: Path) -> Site:
    return Site(tmp_path, tiny_data)


def test_three_folds_to_their_end_and_again(site: Site) -> None:
    first = site.run("submit", "tiny.toml", "--folds", "3", "--wait")
    assert first.returncode == 0, first.stderr
    assert {fold: state["state"] for fold, state in site.states("tiny").items()} == dict.fromkeys("012", "done")
    assert (site.root / "runs" / "tiny").stat().st_mode & 0o777 == 0o700
    again = site.run("submit", "tiny.toml", "--folds", "3", "--wait", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["tiny"]["folds"] == dict.fromkeys("012", "done")
    run = Run(site.root / "runs" / "tiny")
    assert [len(fold.attempts()) for fold in run.folds()] == [1, 1, 1]
    attempt = run.fold("0").attempt(1)
    assert "pid" in read_json(attempt.job)
    assert attempt.stderr.exists()


def test_a_killed_fold_is_lost_and_goes_on_when_submitted_again(site: Site) -> None:
    arguments = ("submit", "tiny.toml", "--fold", "0", "-o", "train.epochs=400")
    assert site.run(*arguments).returncode == 0
    site.wait_for("tiny", "0", "running")
    fold = Run(site.root / "runs" / "tiny").fold("0")
    end = time.monotonic() + 60
    while not fold.all_snapshots():
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(read_json(fold.attempt(1).job)["pid"], signal.SIGKILL)
    lost = site.wait_for("tiny", "0", "lost")
    assert "submit the run again" in lost["reason"]
    assert site.run(*arguments).returncode == 0
    end = time.monotonic() + 60
    while len(fold.attempts()) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    site.wait_for("tiny", "0", "running")
    os.kill(read_json(fold.attempt(2).job)["pid"], signal.SIGTERM)
    stopped = site.wait_for("tiny", "0", "stopped")
    assert stopped["step"] > 0
    assert "going on at step" in fold.attempt(2).stderr.read_text()


def test_editing_the_clone_changes_nothing_in_a_run(site: Site) -> None:
    assert site.run("submit", "tiny.toml", "--fold", "0", "--wait").returncode == 0
    for name in ("loop", "fold"):
        (site.package / "train" / f"{name}.py").write_text("raise SystemExit('edited')\n")
    done = site.run("submit", "tiny.toml", "--fold", "1", "--wait")
    assert done.returncode == 0, done.stderr
    assert site.states("tiny")["1"]["state"] == "done"


def test_frozen_code_that_was_changed_is_refused(site: Site) -> None:
    assert site.run("submit", "tiny.toml", "--fold", "0", "--wait").returncode == 0
    with (site.root / "runs/tiny/code/contrails/losses.py").open("a") as file:
        file.write("# changed\n")
    failed = site.run("submit", "tiny.toml", "--fold", "1", "--wait")
    assert failed.returncode == 8
    log = next((site.root / "runs/tiny/submitit").glob("*_log.err"))
    texts = "".join(path.read_text() for path in log.parent.glob("*_log.err"))
    assert "was changed" in texts


def test_another_recipe_under_the_same_name_is_refused(site: Site) -> None:
    assert site.run("submit", "tiny.toml", "--fold", "0", "--wait").returncode == 0
    refused = site.run("submit", "tiny.toml", "--fold", "0", "-o", "train.lr=0.5")
    assert refused.returncode == 5
    assert "train.lr = 0.5, was 0.001" in refused.stderr
    assert "give --name" in refused.stderr


def test_a_wrong_number_of_folds_creates_nothing(site: Site) -> None:
    refused = site.run("submit", "tiny.toml", "--folds", "5")
    assert refused.returncode == 3
    assert "has 3 folds" in refused.stderr
    assert not (site.root / "runs").exists()


def test_dry_run_does_nothing(site: Site) -> None:
    shown = site.run("submit", "tiny.toml", "--folds", "3", "--seeds", "2", "--dry-run")
    assert shown.returncode == 0
    assert "tiny-s0" in shown.stdout
    assert "seed = 1" in shown.stdout
    assert not (site.root / "runs").exists()


def test_seeds_make_runs_and_all_trains_without_a_score(site: Site) -> None:
    done = site.run("submit", "tiny.toml", "--fold", "all", "--seeds", "2", "--wait", "-o", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "no validation score" in done.stderr
    for name in ("tiny-s0", "tiny-s1"):
        assert site.states(name)["all"]["state"] == "done"
        assert site.states(name)["all"]["best_dice"] is None


def test_training_in_the_foreground_shows_the_model(site: Site) -> None:
    done = site.run("train", "tiny.toml", "--debug")
    assert done.returncode == 0, done.stderr
    assert "Total params" in done.stdout
    assert "input (2, 3, 32, 32) -> output (2, 32, 32)" in done.stdout
    assert site.states("tiny-debug")["0"]["state"] == "done"
    assert site.run("train", "tiny.toml", "--debug").returncode == 0  # made afresh each time


def test_a_site_can_ask_for_staging_and_for_a_projection_beside_the_job(site: Site) -> None:
    profile = site.root / "jobs" / "sites" / "mine.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text(tomli_w.dumps({"sync": True, "stage_dir": str(site.root / "scratch")}))
    done = site.run("submit", "tiny.toml", "--fold", "0", "--site", "mine", "--wait")
    assert done.returncode == 0, done.stderr
    assert len(list((site.root / "scratch").glob("train-*.h5"))) == 1
    fold = Run(site.root / "runs" / "tiny").fold("0")
    end = time.monotonic() + 90
    while (read_json(fold.wandb) or {}).get("step") != 8:
        assert time.monotonic() < end, (fold.path / "sync.log").read_text()
        time.sleep(0.5)
