"""Folds on PBS: submitted, watched, cancelled and resumed as on any other site."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contrails.cluster.queue.journal import record, submissions
from contrails.files import read_json, to_json, write_atomic
from contrails.runs.folder import Run

from fake_pbs import FakePbs
from local_site import eventually
from pbs_runs import PbsRuns
from pbs_site import REAL, history_does_not_matter
from slurm_site import weights

pytestmark = [pytest.mark.slow, pytest.mark.pbs_runs]

SHORT = ("-o", "train.epochs=1")
EPOCHS = ("-o", "train.epochs=100")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, history: bool) -> Iterator[PbsRuns]:
    fake = None if REAL else FakePbs(tmp_path_factory.mktemp("pbs") / "server", history=history)
    site = PbsRuns(tmp_path_factory.mktemp("runs"), tiny_data, fake)
    yield site
    site.end_everything()
    if fake is not None:
        fake.stop()


@pytest.fixture(scope="module")
def undisturbed(site: PbsRuns) -> dict[str, str]:
    site.submit("undisturbed", *EPOCHS)
    site.wait_for_done("undisturbed")
    assert site.ends("undisturbed") == [""]
    return weights(site.fold("0", "undisturbed"))


@history_does_not_matter
def test_five_folds_from_frozen_code_and_what_follows(site: PbsRuns, tiny_data: Path) -> None:
    made = site.run("split", str(tiny_data / "train.h5"), "--folds", "5", "-o", "five.csv")
    assert made.returncode == 0, made.stderr
    arguments = ["submit", "tiny.toml", "--name", "five", "--folds", "5", "-o", "data.filelist=five.csv", *SHORT]
    arguments += ["--folds-per-job", "3", "--site", "test", "--json"]
    done = site.run(*arguments, "--then", "aggregate")
    assert done.returncode == 0, done.stderr
    loop = site.package / "train" / "loop.py"
    original = loop.read_text()
    loop.write_text("raise SystemExit('edited')\n")
    assert {state["state"] for state in site.states("five").values()} <= {"waiting", "starting", "running", "done"}
    site.wait_for_done("five", *"01234")
    loop.write_text(original)
    eventually((site.root / "runs/five/aggregate/default/ensemble.json").exists)
    again = site.run(*arguments)
    assert json.loads(again.stdout)["five"]["folds"] == dict.fromkeys("01234", "done")
    run = Run(site.root / "runs/five")
    assert [job.folds for job in submissions(run)] == [("0", "1", "2"), ("3", "4"), ()]
    assert run.path.stat().st_mode & 0o077 == 0


@history_does_not_matter
def test_a_chain_of_three_links(site: PbsRuns, undisturbed: dict[str, str]) -> None:
    site.submit("chain", *EPOCHS)
    fold = site.fold("0", "chain")
    for number in (1, 2):
        site.wait_for_attempt(fold, number)
        clock = fold.run.clock(site.job("chain"))
        assert 500 < read_json(clock)["end"] - time.monotonic() < 600  # the launcher knows its link's walltime
        out_of_time(site, "chain", "0")
    site.wait_for_done("chain")
    assert site.ends("chain") == ["walltime", "walltime", ""]
    assert len(set(site.links("chain"))) == 3
    assert weights(fold) == undisturbed


def test_a_killed_submission_is_neither_forgotten_nor_doubled(site: PbsRuns, undisturbed: dict[str, str]) -> None:
    arguments = ["submit", "tiny.toml", "--name", "killed", "--fold", "0,1,2", "--site", "test", *EPOCHS]
    for number in range(1, 4):
        site.kill_after("qsub")
        assert site.run(*arguments).returncode == -signal.SIGKILL
        assert len(site.first_links("killed")) == number
    alive = {"waiting", "starting", "running", "done"}  # done: on a busy machine
    for command in (arguments, ["resume", "killed"], ["resume", "killed"]):
        again = site.run(*command, "--json")
        assert set(json.loads(again.stdout)["killed"]["folds"].values()) <= alive, again.stderr
        assert {state["state"] for state in site.states("killed").values()} <= alive
        assert len(site.first_links("killed")) <= 3
    site.wait_for_done("killed", *"012")
    for key in "012":
        fold = site.fold(key, "killed")
        assert len({read_json(attempt.job)["job_id"] for attempt in fold.attempts()}) == 1
    assert weights(site.fold("0", "killed")) == undisturbed


def test_what_runs_is_never_lost(site: PbsRuns) -> None:
    site.submit("asked", "-o", "train.epochs=3000")
    site.wait_for_attempt(site.fold("0", "asked"), 1)
    seen = {site.states("asked")["0"]["state"] for _ in range(3)}
    assert seen == {"running"}
    assert site.run("cancel", "asked").returncode == 0


@pytest.mark.fake_pbs
def test_whatever_ends_a_job_but_its_user_the_fold_goes_on(
    site: PbsRuns, undisturbed: dict[str, str], history: bool
) -> None:
    fake, fold = site.fake, site.fold("0", "disturbed")
    site.submit("disturbed", *EPOCHS)
    for number, order in enumerate(("preempt", "schedule", "kill -9"), start=1):
        site.wait_for_attempt(fold, number)
        fake.order(order, site.links("disturbed")[-1])
    site.wait_for_attempt(fold, 4)
    os.kill(site.pid("disturbed"), signal.SIGKILL)
    site.wait_for_done("disturbed")
    # without a history nobody knows why the whole job was killed; what the launcher sees is killed far from the limit
    assert site.ends("disturbed") == ["preemption", "preemption", "memory" if history else "lost", "killed", ""]
    assert weights(fold) == undisturbed
    last = fake.attributes(site.links("disturbed")[-1])
    assert last["Resource_List"]["select"] == f"1:ncpus=1:mem={3072 if history else 2048}mb"


def test_a_deleted_job_stays_deleted_until_it_is_resumed(site: PbsRuns, undisturbed: dict[str, str]) -> None:
    site.submit("deleted", *EPOCHS)
    fold = site.fold("0", "deleted")
    site.wait_for_attempt(fold, 1)
    site.pbs("qdel", site.links("deleted")[-1])
    state = site.wait_for("deleted", "0", "cancelled")
    assert "go on with `contrails resume deleted`" in state["reason"]
    assert len(fold.attempts()) == 1
    resumed = site.run("resume", "deleted")
    assert resumed.returncode == 0, resumed.stderr
    site.wait_for_done("deleted")
    assert len(submissions(fold.run)) == 2
    assert weights(fold) == undisturbed


def test_cancel_deletes_what_runs_and_what_waits(site: PbsRuns) -> None:
    with site.one_at_a_time():
        site.submit("cancelled", "-o", "train.epochs=3000", fold="0,1", site="whole")
        site.wait_for_attempt(site.fold("0", "cancelled"), 1)
        eventually(lambda: len(site.queued("cancelled")) == 3)  # the one that runs has a next link
        assert {key: state["state"] for key, state in site.states("cancelled").items()} == {
            "0": "running", "1": "waiting",
        }  # fmt: skip
        assert site.run("cancel", "cancelled").returncode == 0
        eventually(lambda: site.queued("cancelled") == {})
    for key in "01":
        assert site.wait_for("cancelled", key, "cancelled")["cause"] == "cancelled"
    assert len(site.links("cancelled")) == 1
    assert site.fold("1", "cancelled").attempts() == []


@history_does_not_matter
def test_a_limit_that_lasts_is_told_and_resume_goes_on(site: PbsRuns, undisturbed: dict[str, str]) -> None:
    fold = site.fold("0", "limited")
    with site.limit(1):
        site.submit("limited", *EPOCHS)
        site.wait_for_attempt(fold, 1)
        out_of_time(site, "limited", "0")
        state = site.wait_for("limited", "0", "failed")
        assert state["cause"] == "refused"
        assert "per-user limit" in state["reason"]
        assert "go on with `contrails resume limited`" in state["reason"]
    resumed = site.run("resume", "limited")
    assert resumed.returncode == 0, resumed.stderr
    site.wait_for_done("limited")
    assert weights(fold) == undisturbed


@history_does_not_matter
def test_the_other_jobs_of_a_run_submit_what_a_limit_has_refused(site: PbsRuns, undisturbed: dict[str, str]) -> None:
    site.profile("warned", next_job="at_warning")
    folds = [site.fold(key, "shared") for key in "01"]
    with site.limit(2):
        site.submit("shared", *EPOCHS, fold="0,1", site="warned")
        for fold in folds:
            site.wait_for_attempt(fold, 1)
        out_of_time(site, "shared", "0")
        assert site.wait_for("shared", "0", "failed")["cause"] == "refused"
        out_of_time(site, "shared", "1")  # its next link has room now, and submits the other fold when it starts
        site.wait_for_attempt(folds[1], 2)
        site.wait_for_done("shared", *"01")
    assert weights(folds[0]) == undisturbed
    assert [job.folds for job in submissions(folds[0].run)] == [("0",), ("1",), ("0",)]


@history_does_not_matter
def test_a_limit_lets_some_jobs_of_a_run_in_and_these_the_others(site: PbsRuns) -> None:
    site.profile("warned", next_job="at_warning")
    with site.limit(2):
        said = site.submit("some", *EPOCHS, fold="0,1,2", site="warned")
        assert "some fold 2: not accepted yet (qsub: PBS refuses with code 38" in said
        eventually(lambda: site.states("some")["2"]["cause"] == "refused")  # not while a job that starts tries again
        site.wait_for_attempt(site.fold("1", "some"), 1)
        os.kill(site.pid("some", "1"), signal.SIGSTOP)  # it ends after the other one, which leaves room then
        site.wait_for_attempt(site.fold("0", "some"), 1)
        assert site.run("cancel", "some", "--fold", "0").returncode == 0
        eventually(lambda: len(site.queued("some")) == 1)
        os.kill(site.pid("some", "1"), signal.SIGCONT)
        site.wait_for_done("some", *"12")
    assert [job.folds for job in submissions(site.fold("0", "some").run) if not job.void] == [("0",), ("1",), ("2",)]


@pytest.mark.fake_pbs
@history_does_not_matter
def test_where_all_jobs_of_a_run_end_at_once_the_last_one_waits_for_the_others(site: PbsRuns) -> None:
    site.profile("warned", next_job="at_warning")
    fake, run = site.fake, site.fold("0", "leaving").run
    with site.limit(2):
        site.submit("leaving", *EPOCHS, fold="0,1,2", site="warned")
        second = submissions(run)[1]
        site.wait_for_attempt(site.fold("1", "leaving"), 1)
        fake.order("suspend", str(second.job_id))
        record(run, "leaving", name=second.name)
        eventually(lambda: submissions(run)[0].is_leaving)  # refused again: both jobs are there still
        assert site.fold("0", "leaving").done.exists()
        fake.order("delete", str(second.job_id))
        site.wait_for_done("leaving", "0", "2")
    assert [job.folds for job in submissions(run) if not job.void] == [("0",), ("1",), ("2",)]


@history_does_not_matter
def test_a_walltime_that_is_too_short_to_begin_is_told(site: PbsRuns) -> None:
    site.profile("short", walltime_min=1, margin_s=50, prologue=["sleep 11"], retries={"walltime": 0})
    site.submit("short", *SHORT, site="short")
    state = site.wait_for("short", "0", "failed")
    assert state["cause"] == "walltime"
    assert "raise walltime_min of the site profile" in state["reason"]
    assert "`contrails resume short --site short`" in state["reason"]
    assert "no step was made within 1" in state["reason"]  # 11 s and what the start took until the margin


@pytest.mark.fake_pbs
@history_does_not_matter
def test_a_suspended_fold_is_told_from_one_that_trains(site: PbsRuns) -> None:
    site.submit("suspended", "-o", "train.epochs=3000")
    site.wait_for_attempt(site.fold("0", "suspended"), 1)
    site.fake.order("suspend", site.links("suspended")[-1])
    state = site.wait_for("suspended", "0", "suspended")
    assert "it continues where it is" in state["reason"]
    site.fake.order("let go", site.links("suspended")[-1])
    site.wait_for("suspended", "0", "running")
    assert site.run("cancel", "suspended").returncode == 0


@pytest.mark.fake_pbs
def test_a_failed_node_and_its_ghost(site: PbsRuns, undisturbed: dict[str, str]) -> None:
    fake, fold = site.fake, site.fold("0", "ghost")
    site.submit("ghost", *EPOCHS)
    site.wait_for_attempt(fold, 1)
    fake.order("node", site.links("ghost")[-1])
    site.wait_for_done("ghost")
    assert weights(fold) == undisturbed


@pytest.mark.fake_pbs
def test_lost_answers_a_server_that_is_down_and_a_purged_history(site: PbsRuns) -> None:
    site.fake.configure(lose_replies=1)
    site.submit("lost", *SHORT)
    site.fake.go_down(60)
    assert site.states("lost")["0"]["stale"] or site.fold("0", "lost").done.exists()
    site.fake.go_down(0)
    site.wait_for_done("lost")
    eventually(lambda: site.states("lost")["0"]["state"] == "done")
    (job,) = submissions(site.fold("0", "lost").run)
    asked = [site.fake.attributes(job_id) for job_id in site.fake.ids()]
    own = [each for each in asked if each["Job_Name"] == job.name]
    assert len([each for each in own if "SUBMITIT_PBS_LINK" not in each["Submit_arguments"]]) == 1
    site.fake.purge()
    assert site.states("lost")["0"]["state"] == "done"


def test_a_run_after_another_waits_for_its_success(site: PbsRuns) -> None:
    site.submit("first", *EPOCHS)
    fold = site.fold("0", "first")
    site.wait_for_attempt(fold, 1)
    site.submit("second", *SHORT, "--after", "first")
    out_of_time(site, "first", "0")
    site.wait_for_done("second")
    assert fold.done.exists()
    assert site.ends("first") == ["walltime", ""]


@pytest.mark.fake_pbs
@history_does_not_matter
def test_a_run_after_one_that_fails_starts_when_that_goes_on(site: PbsRuns) -> None:
    site.fake.configure(slots=0)
    site.submit("broken", *SHORT)
    loop = site.fold("0", "broken").run.code / "contrails" / "train" / "loop.py"
    right = loop.read_text()
    loop.write_text("")  # the code is no longer what was frozen
    site.submit("later", *SHORT, "--after", "broken")
    site.fake.configure(slots=4)
    eventually(lambda: "which had to succeed first" in (site.states("later")["0"]["reason"] or ""))
    state = site.states("later")["0"]
    assert state["state"] == "waiting"
    assert "go on with `contrails resume broken`, and this run follows; or end it with" in state["reason"]
    loop.write_text(right)
    assert site.run("resume", "broken").returncode == 0
    site.wait_for_done("later")
    assert site.fold("0", "broken").done.exists()


@history_does_not_matter
def test_doctor_looks_at_a_node(site: PbsRuns) -> None:
    done = site.run("doctor", "--site", "test", "--job", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["a node for the job"]["holds"]
    assert checks["job: import torch"]["holds"], done.stderr


@history_does_not_matter
def test_an_error_is_not_tried_again(site: PbsRuns) -> None:
    site.submit("wrong", *SHORT)
    run = site.fold("0", "wrong").run
    (run.code / "contrails" / "train" / "loop.py").write_text("")  # the code is no longer what was frozen
    state = site.wait_for("wrong", "0", "failed", "lost")
    assert "ended before it began" in state["reason"]
    assert "was changed" in state["reason"]


def out_of_time(site: PbsRuns, name: str, key: str) -> None:
    """Let the clock of a fold's job say that its time is over."""
    fold = site.fold(key, name)
    write_atomic(fold.run.clock(site.job(name, key)), to_json({"end": time.monotonic()}))
