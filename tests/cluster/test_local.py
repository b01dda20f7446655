"""Folds in the background of this machine: submitted, killed, submitted again, from frozen code."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from contrails.cluster.queue.journal import newest_submissions, submissions
from contrails.files import read_hint, read_json, read_json_lines, to_json, write_atomic
from contrails.processes import process_of
from contrails.runs.folder import Run

from local_site import Site, eventually


@pytest.fixture
def site(tmp_path: Path, tiny_data: Path) -> Iterator[Site]:
    site = Site(tmp_path, tiny_data)
    yield site
    site.end_everything()


def test_three_folds_to_their_end_and_again(site: Site) -> None:
    first = site.run("submit", "tiny.toml", "--folds", "3", "--wait")
    assert first.returncode == 0, first.stderr
    assert {f"tiny fold {key}: done" in first.stderr for key in "012"} == {True}
    assert first.stderr.endswith("tiny: finished; next: `contrails aggregate tiny`\n")
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
    start_s = read_json(attempt.state)["start_s"]
    assert set(start_s) == {"launcher", "imports", "staging", "open", "first_step"}
    assert min(start_s.values()) > 0


def test_a_killed_fold_says_so_and_goes_on_when_submitted_again(site: Site) -> None:
    arguments = ("submit", "tiny.toml", "--fold", "0", "-o", "train.epochs=400")
    assert site.run(*arguments).returncode == 0
    fold = site.fold("0")
    site.wait_for_snapshot(fold)
    os.kill(read_json(fold.attempt(1).job)["pid"], signal.SIGKILL)
    killed = site.wait_for("tiny", "0", "failed")
    assert killed["reason"].startswith("killed (SIGKILL): it had used at most ")
    assert killed["reason"].endswith("a full node killed it; go on with `contrails resume tiny`")
    assert killed["step"] > 0
    assert site.run(*arguments).returncode == 0
    eventually(lambda: len(fold.attempts()) == 2)
    site.wait_for("tiny", "0", "running")
    os.kill(read_json(fold.attempt(2).job)["pid"], signal.SIGTERM)
    stopped = site.wait_for("tiny", "0", "stopped")
    assert stopped["step"] > 0
    assert "resuming at step" in fold.attempt(2).stderr.read_text()


def test_a_restart_of_the_machine_is_seen_and_resumed(site: Site) -> None:
    assert site.run("submit", "tiny.toml", "--fold", "0", "-o", "train.epochs=1", "--wait").returncode == 0
    fold = site.fold("0")
    fold.done.unlink()  # as it was just before its end
    attempt = fold.attempt(1)
    # another process has the number of the one that trained
    owner = read_json(attempt.job) | process_of(os.getpid()).to_json() | {"boot_id": "that of yesterday"}
    write_atomic(attempt.job, to_json(owner))
    write_atomic(attempt.state, to_json(read_json(attempt.state) | {"status": "running"}))
    assert site.states()["0"]["state"] == "lost"
    assert site.run("cancel", "tiny").returncode == 0
    assert site.states()["0"]["state"] == "cancelled"
    assert "fold 0: submitted" in site.run("resume", "tiny").stdout
    site.wait_for("tiny", "0", "done")
    assert len(fold.attempts()) == 2


def test_editing_the_clone_changes_nothing_in_a_run(site: Site) -> None:
    assert site.run("submit", "tiny.toml", "--fold", "0", "--wait").returncode == 0
    for name in ("loop", "fold"):
        (site.package / "train" / f"{name}.py").write_text("raise SystemExit('edited')\n")
    done = site.run("submit", "tiny.toml", "--fold", "1", "--wait")
    assert done.returncode == 0, done.stderr
    assert site.states("tiny")["1"]["state"] == "done"


def test_a_move_of_modules_changes_nothing_in_a_run(site: Site) -> None:
    assert site.run("submit", "tiny.toml", "--fold", "0", "--wait").returncode == 0
    site.move_launcher()
    done = site.run("submit", "tiny.toml", "--fold", "1", "--wait")
    assert done.returncode == 0, done.stderr
    trained = site.run("train", "tiny.toml", "--fold", "2")
    assert trained.returncode == 0, trained.stderr
    assert {state["state"] for state in site.states("tiny").values()} == {"done"}
    codes = {read_json(site.fold(key).attempt(1).job)["code"] for key in "012"}
    assert codes == {site.fold("0").run.read_config().code}
    assert "fold 1: done" in site.run("resume", "tiny").stdout


def test_frozen_code_that_was_changed_is_refused(site: Site) -> None:
    assert site.run("submit", "tiny.toml", "--fold", "0", "--wait").returncode == 0
    with (site.root / "runs/tiny/code/contrails/metrics.py").open("a") as file:
        file.write("# changed\n")
    failed = site.run("submit", "tiny.toml", "--fold", "1", "--wait")
    assert failed.returncode == 8
    texts = "".join(path.read_text() for path in (site.root / "runs/tiny/submitit").glob("*/*_log.err"))
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


def test_folds_are_cut_into_jobs(site: Site, tiny_data: Path) -> None:
    made = site.run("split", str(tiny_data / "train.h5"), "--folds", "5", "-o", "five.csv")
    assert made.returncode == 0, made.stderr
    arguments = ("submit", "tiny.toml", "--folds", "5", "-o", "data.filelist=five.csv", "-o", "train.epochs=1")
    shown = site.run(*arguments, "--folds-per-job", "2", "--dry-run")
    assert [line[-1] for line in shown.stdout.splitlines()[1:6]] == list("11223")
    done = site.run(*arguments, "--folds-per-job", "2", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    rows = read_json_lines(Run(site.root / "runs" / "tiny").journal)
    assert [row["folds"] for row in rows if row["event"] == "intent"] == [["0", "1"], ["2", "3"], ["4"]]
    jobs = {fold: job.job_id for fold, job in newest_submissions(submissions(site.fold("0").run)).items()}
    assert list(jobs) == list("01234")
    assert jobs["0"] == jobs["1"] != jobs["2"] == jobs["3"] != jobs["4"] != jobs["0"]
    for key, job_id in jobs.items():
        assert read_json(site.fold(key).attempt(1).job)["job_id"] == job_id


def test_two_jobs_of_two_folds_share_two_places(site: Site) -> None:
    profile = site.root / "jobs" / "sites" / "two.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text("folds_at_a_time = 2")
    both = ("--fold", "0,1", "--folds-per-job", "2", "--seeds", "2")
    done = site.run("submit", "tiny.toml", *both, "--site", "two", "--wait", "-o", "train.epochs=1")
    assert done.returncode == 0, done.stderr


def test_a_fold_that_waits_for_a_place_is_cancelled_at_once(site: Site) -> None:
    profile = site.root / "jobs" / "sites" / "one.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text("folds_at_a_time = 1")
    assert site.run("submit", "tiny.toml", "--fold", "0,1", "--site", "one", "-o", "train.epochs=400").returncode == 0
    eventually(lambda: {state["state"] for state in site.states().values()} == {"running", "waiting"})
    trains, waits = sorted(site.states(), key=lambda key: site.states()[key]["state"])
    assert site.run("cancel", "tiny", "--fold", waits).returncode == 0
    assert site.states()[waits]["state"] == "cancelled"
    assert site.states()[trains]["state"] == "running"
    again = site.run("resume", "tiny")
    assert f"fold {waits}: submitted" in again.stdout, again.stderr
    assert site.wait_for("tiny", waits, "waiting")


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
    assert "\nparameters: 81,625\n" in done.stderr
    assert "input (2, 3, 32, 32) -> output (2, 32, 32)" in done.stderr
    assert site.states("tiny-debug")["0"]["state"] == "done"
    tiny = (site.root / "tiny.toml").read_text()
    (site.root / "long.toml").write_text(tiny.replace("[train]\n", "[train]\nsteps = 100000\n"))
    assert site.run("train", "long.toml", "--debug", "--name", "tiny").returncode == 0  # made afresh each time
    assert site.states("tiny-debug")["0"]["num_steps"] < 20


def test_a_site_can_ask_for_staging_and_for_a_projection_beside_the_job(site: Site) -> None:
    profile = site.root / "jobs" / "sites" / "mine.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text(tomli_w.dumps({"sync": True, "stage_dir": str(site.root / "scratch")}))
    done = site.run("submit", "tiny.toml", "--fold", "0", "--site", "mine", "--wait")
    assert done.returncode == 0, done.stderr
    assert len(list((site.root / "scratch").glob("train-*.h5"))) == 1
    eventually(lambda: read_hint(site.fold("0").wandb).get("rows") == 8)
    small = [path for path in (site.root / "runs" / "tiny").rglob("*.json") if path.parent.name != "code"]
    assert {path.name for path in small} >= {"provenance.json", "job.json", "state.json", "done.json", "verified.json"}
    for path in small:  # nothing that was written is taken for damage
        assert not [key for key in read_json(path).keys() - read_hint(path).keys() if read_json(path)[key] is not None]
