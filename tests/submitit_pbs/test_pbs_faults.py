"""The plugin on a PBS that preempts, fails, forgets and is down, with a history and without: on the fake one only."""

import socket
import time
from pathlib import Path

import pytest

from contrails.errors import ClusterError
from contrails.submitit_pbs import client
from contrails.submitit_pbs.job import PbsJob
from contrails.submitit_pbs.watcher import PbsInfoWatcher

import pbs_tasks
from fake_pbs import FakePbs
from local_site import eventually
from pbs_site import MARGIN_S, WALLTIME, Site, history_does_not_matter, is_gone


def test_a_preempted_job_goes_on_with_what_it_saved(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 40)
    eventually(rows.exists)
    fake.order("preempt", job.job_id)
    assert job.result() == 40
    assert [int(row.split()[0]) for row in rows.read_text().splitlines()] == list(range(40))
    assert {row.split()[1] for row in rows.read_text().splitlines()} == {job.job_id}
    assert fake.attributes(job.job_id)["run_count"] == 2
    assert site.events(job).count("successor") == 1  # a rerun submits none of its own


def test_a_rerun_knows_a_successor_that_was_not_written_down(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 20)
    eventually(rows.exists)
    path = site.chain(job).path
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"successor"' not in line))
    fake.order("preempt", job.job_id)
    assert job.result() == 20
    assert len(fake.ids()) == 2


@history_does_not_matter
def test_the_teardown_runs_after_the_task_has_saved(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows, torn = tmp_path / "rows", tmp_path / "torn"
    executor = site.executor(pbs_teardown=[f"echo $code >> {torn}"])
    job = executor.submit(pbs_tasks.Counter(), str(rows), 20)
    eventually(rows.exists)
    fake.order("preempt", job.job_id)
    assert job.result() == 20
    eventually(lambda: torn.read_text().split() == ["255", "0"])


def test_a_tombstone_alone_keeps_a_job_from_coming_back(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 10_000)
    eventually(rows.exists)
    site.chain(job).cancel()
    fake.order("preempt", job.job_id)
    eventually(lambda: fake.attributes(job.job_id)["job_state"] == "F")
    assert fake.attributes(job.job_id)["Exit_status"] == 0
    assert job.state == "CANCELLED"
    assert site.events(job).count("start") == 1


@history_does_not_matter
def test_a_link_keeps_off_the_node_that_failed(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    here = {"Name": socket.gethostname(), "state": "free", "ncpus": "8", "mem": "64gb", "cl_old": "True"}
    fake.configure(resources=["cl_old"], more_nodes=[here])
    job = site.executor(pbs_chain="held").submit(pbs_tasks.leave_at_first, 9, str(tmp_path / "left"))
    assert job.result() == "done"
    assert site.events(job).count("replaced") == 1
    assert len([line for line in fake.calls("qsub") if ":cl_old=False " in line]) == 1  # of the links, that one alone
    assert site.events(job).count("successor") > 1
    assert f"avoiding {socket.gethostname()}" in (job.stderr() or "")


def test_a_job_that_the_scheduler_deletes_goes_on_in_the_next_link(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 30)
    eventually(rows.exists)
    fake.order("schedule", job.job_id)
    assert job.result() == 30
    assert [row["cause"] for row in site.chain(job).rows() if row["event"] == "judged"] == ["PREEMPTED"]


@pytest.mark.parametrize("how", ["delete", "kill"])  # qdel, qdel -W force
def test_a_deleted_job_stays_deleted(site: Site, fake: FakePbs, tmp_path: Path, how: str, history: bool) -> None:
    if how == "kill" and not history:
        pytest.skip("a job that is killed without TERM looks like a node that has failed, where PBS keeps no history")
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 10_000)
    eventually(rows.exists)
    fake.order(how, job.job_id)
    job.wait()
    assert job.state == "CANCELLED"
    (successor,) = site.links(job)
    eventually(lambda: is_gone(successor))
    assert fake.attributes(successor)["Exit_status"] == 0
    assert {row.split()[1] for row in rows.read_text().splitlines()} == {job.job_id}


def test_a_job_that_is_deleted_in_the_queue_is_cancelled(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 10_000)
    eventually(rows.exists)
    (successor,) = site.links(job)
    fake.configure(slots=0)
    fake.order("preempt", job.job_id)
    eventually(lambda: job.state == "REQUEUED")
    fake.order("delete", job.job_id)
    eventually(lambda: job.state == "CANCELLED")
    assert not is_gone(successor)  # PBS lets it wait for ever
    job.cancel()
    eventually(lambda: is_gone(successor))


def test_cancel_finds_a_link_that_was_not_written_down(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 10_000)
    eventually(rows.exists)
    (successor,) = site.links(job)
    path = site.chain(job).path
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"successor"' not in line))
    other = site.executor(pbs_chain="held").submit(pbs_tasks.sleep, 60, str(tmp_path / "other"))  # of the same name
    job.cancel()
    eventually(lambda: is_gone(job.job_id) and is_gone(successor))
    assert fake.calls("qdel") == [f"qdel {successor}", f"qdel {job.job_id}"]
    eventually(lambda: other.state == "RUNNING")


@history_does_not_matter
def test_a_strangers_job_with_the_same_id_is_none_of_ours(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    job = site.executor().submit(pbs_tasks.sleep, 60, str(tmp_path / "started"))
    eventually((tmp_path / "started").exists)
    fake.alter(job.job_id, name="somebodys")  # as a server does that has lost its state, and counts from 1 again
    job.cancel()
    assert not is_gone(job.job_id)
    assert job.state == "CANCELLED"


def test_a_lost_answer_is_not_a_second_job(site: Site, fake: FakePbs) -> None:
    fake.configure(lose_replies=1)
    job = site.executor().submit(pbs_tasks.add, 1, 2)
    assert job.result() == 3
    assert fake.ids() == [job.job_id]


@history_does_not_matter
def test_a_lost_request_is_submitted_again(site: Site, fake: FakePbs) -> None:
    fake.configure(lose_requests=1)
    assert site.executor().submit(pbs_tasks.add, 1, 2).result() == 3
    assert len(fake.ids()) == 1


@history_does_not_matter
def test_a_lost_answer_to_an_array_finds_the_array(site: Site, fake: FakePbs) -> None:
    fake.configure(lose_replies=1)
    jobs = site.executor().map_array(pbs_tasks.add, [1, 2], [3, 4])
    assert [job.result() for job in jobs] == [4, 6]


def test_a_job_that_pbs_has_forgotten_has_its_result(site: Site, fake: FakePbs) -> None:
    job = site.executor().submit(pbs_tasks.add, 1, 2)
    eventually(lambda: fake.attributes(job.job_id)["job_state"] == "F")
    fake.purge()
    assert job.state == "COMPLETED"
    assert job.result() == 3


def test_a_job_of_which_nothing_is_left_is_lost(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    started = tmp_path / "started"
    job = site.executor().submit(pbs_tasks.sleep, 100, str(started))
    eventually(started.exists)
    for _ in range(5):
        time.sleep(0.4)
        assert job.state == "RUNNING"  # however often PBS is asked
    fake.order("kill -9", job.job_id)
    eventually(lambda: fake.attributes(job.job_id)["job_state"] == "F")
    fake.purge()
    job.wait()
    assert job.state == "LOST"
    assert "does not know job" in job.get_info()["Reason"]


def test_a_server_that_is_down_for_a_while(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    executor = site.executor()
    job = executor.submit(pbs_tasks.Counter(), str(rows), 40)
    eventually(lambda: job.state == "RUNNING")
    fake.go_down(3)
    time.sleep(1)
    assert job.state == "RUNNING"  # what was known stays
    later = executor.submit(pbs_tasks.add, 1, 2)  # waits for the server
    assert (job.result(), later.result()) == (40, 3)


@history_does_not_matter
def test_a_server_that_stays_down_is_named(site: Site, fake: FakePbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.0)
    fake.go_down(60)
    with pytest.raises(ClusterError, match="could not reach the PBS server"):
        site.executor().submit(pbs_tasks.add, 1, 2)


def test_a_failed_node_leaves_a_ghost_that_does_no_harm(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 30)
    eventually(rows.exists)
    fake.order("node", job.job_id)
    assert job.result() == 30
    eventually(lambda: job.state == "COMPLETED")
    eventually(lambda: fake.attributes(job.job_id)["job_state"] == "F")
    assert fake.attributes(job.job_id)["run_count"] == 2
    assert fake.attributes(job.job_id)["Exit_status"] == 0
    assert site.events(job).count("over") == 1
    assert len(fake.ids()) == 2


def test_out_of_memory_asks_for_more(site: Site, fake: FakePbs, tmp_path: Path, history: bool) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 30)
    eventually(rows.exists)
    fake.order("memory", job.job_id)
    assert job.result() == 30
    last = list(dict.fromkeys(row.split()[1] for row in rows.read_text().splitlines()))[-1]
    assert selected(fake, job.job_id) == "1:ncpus=1:mem=512mb"
    expected = "1:ncpus=1:mem=768mb" if history else "1:ncpus=1:mem=512mb"  # without one nobody knows why it ended
    assert [selected(fake, link) for link in (last, site.links(job)[-1])] == [expected, expected]


@history_does_not_matter
def test_memory_grows_up_to_that_of_a_node_and_anew_after_progress(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    fake.configure(node={"ncpus": "8", "mem": "1000mb"})
    executor = site.executor(pbs_chain="held", pbs_budgets={"KILLED": 3})
    job = executor.submit(pbs_tasks.die, str(tmp_path / "started"), 5, {3})
    assert job.result() == "alive"
    memory = [selected(fake, link).rpartition("=")[2] for link in site.starts(job)]
    # what makes way for a larger link has the memory of the one before
    assert memory == ["512mb", "512mb", "768mb", "768mb", "1000mb", "1000mb", "1000mb", "1000mb"]


@pytest.mark.slow
def test_a_killed_task_is_tried_again_until_its_budget_is_used_up(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    executor = site.executor(pbs_chain="held", pbs_budgets={"KILLED": 1})
    recovers = executor.submit(pbs_tasks.die, str(tmp_path / "once"), 1)
    dies = executor.submit(pbs_tasks.die, str(tmp_path / "always"), 100)
    assert recovers.result() == "alive"
    dies.wait()
    assert dies.state == "KILLED"
    assert "2 times without progress in between" in dies.get_info()["Reason"]
    assert len((tmp_path / "always").read_text().splitlines()) == 2


def test_a_job_killed_with_all_its_processes_goes_on(site: Site, fake: FakePbs, tmp_path: Path, history: bool) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 20)
    eventually(rows.exists)
    job.paths.result_pickle.with_suffix(
        ".pkl.save_tmp"
    ).touch()  # submitit refuses to write over what is left of a write
    fake.order("kill -9", job.job_id)
    assert job.result() == 20
    judged = [row["cause"] for row in site.chain(job).rows() if row["event"] == "judged"]
    assert judged == (["KILLED", None] if history else ["LOST"])  # killed, it made way for more memory


@history_does_not_matter
@pytest.mark.slow
def test_an_extended_walltime_needs_no_second_link(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S)
    job = executor.submit(pbs_tasks.Counter(), str(rows), 60)
    eventually(rows.exists)
    fake.extend(job.job_id, "00:01:00")
    assert job.result() == 60
    assert {row.split()[1] for row in rows.read_text().splitlines()} == {job.job_id}


@pytest.mark.slow
def test_a_limit_on_queued_jobs_puts_the_next_link_off(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    fake.configure(max_queued=1)
    executor = site.executor(20, pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S)
    job = executor.submit(pbs_tasks.Counter(), str(rows), 50)
    eventually(rows.exists)
    assert "successor" not in site.events(job)
    eventually(lambda: "warning" in site.events(job))
    fake.configure(max_queued=2)  # it asks again as long as its margin lasts
    assert job.result() == 50


@pytest.mark.slow
def test_a_limit_that_lasts_is_the_end_and_says_so(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    fake.configure(max_queued=1)
    job = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S).submit(
        pbs_tasks.Counter(), str(tmp_path / "rows"), 10_000
    )
    job.wait()
    assert job.state == "REFUSED"
    reason = job.get_info()["Reason"]
    assert "would exceed queue generic's per-user limit" in reason
    assert "wait until some end" in reason
    assert len(fake.calls("qsub")) >= 3  # the job itself, the next link at its start, and again within the margin


@history_does_not_matter
def test_what_can_never_run_says_so(site: Site, fake: FakePbs) -> None:
    job = site.executor(cpus_per_task=64).submit(pbs_tasks.add, 1, 2)
    assert job.state == "PENDING"
    assert "no node can ever satisfy it" in job.get_info()["Advice"]
    assert job.get_info()["Comment"].startswith("Can Never Run")


@history_does_not_matter
def test_polls_are_sparing(site: Site, fake: FakePbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PbsJob, "watcher", PbsInfoWatcher())
    fake.configure(slots=0)
    jobs = site.executor().map_array(pbs_tasks.add, range(45), range(45))
    for job in jobs:
        assert job.state == "PENDING"
        assert not job.done(force_check=True)
    assert len(fake.calls("qstat")) == 3  # 45 jobs, 20 a call, one round in 30 s


def selected(fake: FakePbs, job_id: str) -> str:
    return str(fake.attributes(job_id)["Resource_List"]["select"])
