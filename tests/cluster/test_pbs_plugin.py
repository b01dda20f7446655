"""The plugin through submitit's own interface: on a fake PBS, or on the real one of this machine.

The tests that do not break anything run against a real server where qsub is on the PATH and CONTRAILS_TEST_PBS=1.
"""

import os
import pickle
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit
from submitit.core import plugins
from submitit.core.core import Job
from submitit.core.utils import FailedJobError, UncompletedJobError

import contrails
from contrails.cluster.pbs import client
from contrails.cluster.pbs.chain import Chain
from contrails.cluster.pbs.job import PbsJob
from contrails.cluster.pbs.watcher import PbsInfoWatcher
from contrails.errors import ClusterError, RecipeError

import pbs_tasks
from fake_pbs import FakePbs
from local_site import eventually

REAL = os.environ.get("CONTRAILS_TEST_PBS") == "1" and shutil.which("qsub") is not None
WALLTIME, MARGIN_S = ("00:00:40", 15) if REAL else ("00:00:06", 3)


class Site:
    """A user's folder on a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jobs"

    def executor(self, **parameters: Any) -> submitit.AutoExecutor:
        executor = submitit.AutoExecutor(self.folder, cluster="pbs")
        here = (Path(contrails.__file__).parents[1], Path(pbs_tasks.__file__).parent)
        path = shlex.quote(":".join(map(str, here)))
        executor.update_parameters(
            name="test", timeout_min=1, mem_gb=0.5, pbs_setup=[f"export PYTHONPATH={path}"], **parameters
        )
        return executor

    def events(self, job: Job[Any]) -> list[str]:
        return [row["event"] for row in self.chain(job).rows()]

    def chain(self, job: Job[Any]) -> Chain:
        return Chain(self.folder, job.job_id)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    if "pbs" not in plugins.get_executors():
        pytest.fail("submitit does not know the executor 'pbs': the package is not installed; run envs/build test")
    monkeypatch.setattr(PbsJob, "watcher", PbsInfoWatcher(delay_s=30.0 if REAL else 0.3))
    monkeypatch.setattr(client, "RETRY_S", 0.3)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Site:
    if not REAL:
        request.getfixturevalue("fake")
    return Site(tmp_path)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePbs]:
    if REAL:
        pytest.skip("needs faults that only the fake PBS makes")
    fake = FakePbs(tmp_path / "pbs")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    yield fake
    fake.stop()


def test_a_result_comes_back_with_both_logs(site: Site) -> None:
    job = site.executor().submit(pbs_tasks.add, 2, 3)
    assert re.fullmatch(r"\d+\..+", job.job_id)
    assert job.result() == 5
    assert "adding 2 and 3" in (job.stdout() or "")
    assert "a word for stderr" in (job.stderr() or "")
    eventually(lambda: job.state == "COMPLETED")
    assert job.done()
    assert (site.folder.stat().st_mode & 0o777) == 0o700


def test_an_exception_comes_back_with_its_traceback(site: Site) -> None:
    job = site.executor().submit(pbs_tasks.divide, 1, 0)
    exception = job.exception()
    assert isinstance(exception, FailedJobError)
    assert "ZeroDivisionError" in str(exception)
    assert "pbs_tasks.py" in str(exception)
    with pytest.raises(FailedJobError, match="ZeroDivisionError"):
        job.result()
    eventually(lambda: job.state == "FAILED")


def test_map_array_is_one_array(site: Site) -> None:
    jobs = site.executor(pbs_array_parallelism=2).map_array(pbs_tasks.divide, [6, 8, 1], [2, 4, 0])
    assert [job.job_id.rpartition("_")[2] for job in jobs] == ["0", "1", "2"]
    assert len({job.job_id.rpartition("_")[0] for job in jobs}) == 1
    assert [jobs[0].result(), jobs[1].result()] == [3, 2]
    assert "ZeroDivisionError" in str(jobs[2].exception())
    (alone,) = site.executor().map_array(pbs_tasks.add, [1], [2])  # PBS refuses an array of one
    assert "[" not in alone.job_id


def test_a_task_sees_its_job(site: Site) -> None:
    job = site.executor().submit(pbs_tasks.describe)
    seen: dict[str, Any] = job.result()
    assert seen["job_id"] == job.job_id
    assert (seen["cluster"], seen["num_tasks"], seen["global_rank"], seen["array_job_id"]) == ("pbs", 1, 0, None)
    assert len(seen["hostnames"]) == 1


def test_several_tasks_have_a_result_and_a_log_each(site: Site) -> None:
    job = site.executor(tasks_per_node=2).submit(pbs_tasks.describe)
    assert [seen["global_rank"] for seen in job.results()] == [0, 1]
    assert {seen["num_tasks"] for seen in job.results()} == {2}
    assert job.task(1).paths.stderr.exists()


def test_cancel_deletes_every_link(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 10_000)
    eventually(rows.exists)
    assert job.state == "RUNNING"
    job.cancel()
    eventually(lambda: job.done(force_check=True))
    assert job.state == "CANCELLED"
    links = [row["job_id"] for row in site.chain(job).rows() if row["event"] in ("start", "successor")]
    assert len(links) == 2
    eventually(lambda: all(attributes["job_state"] == "F" for attributes in client.query(links).values()))
    monkeypatch.setattr(PbsJob, "_results_timeout_s", 0)
    with pytest.raises(UncompletedJobError, match="CANCELLED"):
        job.result()
    steps = len(rows.read_text().splitlines())
    time.sleep(1)
    assert len(rows.read_text().splitlines()) == steps


@pytest.mark.parametrize("chain", ["held", "at_warning"])
def test_a_checkpointable_goes_on_through_three_links_under_one_id(site: Site, tmp_path: Path, chain: str) -> None:
    rows = tmp_path / "rows"
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S, pbs_chain=chain)
    job = executor.submit(pbs_tasks.Counter(), str(rows), 600 if REAL else 60)
    num_steps = job.result()
    taken = [int(row.split()[0]) for row in rows.read_text().splitlines()]
    assert taken == list(range(num_steps))  # no step was lost, or taken twice
    links = list(dict.fromkeys(row.split()[1] for row in rows.read_text().splitlines()))
    assert len(links) >= 3
    assert links[0] == job.job_id
    eventually(lambda: job.state == "COMPLETED")
    assert "Starting with JobEnvironment" in (job.stderr() or "") + (job.stdout() or "")
    # the last successor waits for a failure that did not come
    if chain == "held":
        last = [row["job_id"] for row in site.chain(job).rows() if row["event"] == "successor"][-1]
        eventually(lambda: client.query([last])[last]["job_state"] == "F")


def test_a_callable_without_checkpoint_polls_the_clock(site: Site, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S, pbs_chain="held")
    job = executor.submit(pbs_tasks.poll, str(rows), 300 if REAL else 40)
    assert re.fullmatch(r"\d+ steps after [1-9] restarts", job.result())
    assert site.events(job).count("judged") >= 1


def test_without_a_chain_the_walltime_is_the_end(site: Site, tmp_path: Path) -> None:
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S)
    job = executor.submit(pbs_tasks.sleep, 100, str(tmp_path / "started"))
    with pytest.raises(UncompletedJobError, match="timed-out and not checkpointable"):
        job.result()


def test_an_exit_code_of_a_task_ends_the_chain(site: Site) -> None:
    job = site.executor(pbs_chain="held").submit(pbs_tasks.leave, 8)
    job.wait()
    assert job.get_info()["Reason"].startswith("exit code 8")
    links = [row["job_id"] for row in site.chain(job).rows() if row["event"] == "successor"]
    eventually(lambda: client.query(links)[links[0]]["job_state"] == "F")
    assert site.events(job).count("start") == 1


def test_a_job_object_can_be_pickled(site: Site) -> None:
    job = pickle.loads(pickle.dumps(site.executor().submit(pbs_tasks.add, 1, 1)))
    assert job.result() == 2


# faults


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


def test_a_job_that_the_scheduler_deletes_goes_on_in_the_next_link(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 30)
    eventually(rows.exists)
    fake.order("schedule", job.job_id)
    assert job.result() == 30
    assert [row["cause"] for row in site.chain(job).rows() if row["event"] == "judged"] == ["PREEMPTED"]


@pytest.mark.parametrize("how", ["qdel", "qdel without history", "qdel -W force"])
def test_a_deleted_job_stays_deleted(site: Site, fake: FakePbs, tmp_path: Path, how: str) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 10_000)
    eventually(rows.exists)
    fake.configure(history="without" not in how)
    fake.order("kill" if "force" in how else "delete", job.job_id)
    job.wait()
    assert job.state == "CANCELLED"
    successor = next(row["job_id"] for row in site.chain(job).rows() if row["event"] == "successor")
    eventually(lambda: fake.attributes(successor)["job_state"] == "F")
    assert fake.attributes(successor)["Exit_status"] == 0
    assert {row.split()[1] for row in rows.read_text().splitlines()} == {job.job_id}


def test_a_lost_answer_is_not_a_second_job(site: Site, fake: FakePbs) -> None:
    fake.configure(lose_replies=1)
    job = site.executor().submit(pbs_tasks.add, 1, 2)
    assert job.result() == 3
    assert fake.ids() == [job.job_id]


def test_a_lost_request_is_submitted_again(site: Site, fake: FakePbs) -> None:
    fake.configure(lose_requests=1)
    assert site.executor().submit(pbs_tasks.add, 1, 2).result() == 3
    assert len(fake.ids()) == 1


def test_a_lost_answer_to_an_array_finds_the_array(site: Site, fake: FakePbs) -> None:
    fake.configure(lose_replies=1)
    jobs = site.executor().map_array(pbs_tasks.add, [1, 2], [3, 4])
    assert [job.result() for job in jobs] == [4, 6]


def test_a_purged_history_changes_nothing(site: Site, fake: FakePbs) -> None:
    job = site.executor().submit(pbs_tasks.add, 1, 2)
    eventually(lambda: fake.attributes(job.job_id)["job_state"] == "F")
    fake.purge()
    assert job.state == "COMPLETED"
    assert job.result() == 3


def test_a_job_of_which_nothing_is_left_is_lost(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    started = tmp_path / "started"
    job = site.executor().submit(pbs_tasks.sleep, 100, str(started))
    eventually(started.exists)
    assert job.state == "RUNNING"
    fake.configure(history=False)
    fake.order("kill -9", job.job_id)
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


def test_out_of_memory_asks_for_more(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 30)
    eventually(rows.exists)
    fake.order("memory", job.job_id)
    assert job.result() == 30
    last = list(dict.fromkeys(row.split()[1] for row in rows.read_text().splitlines()))[-1]
    assert fake.attributes(job.job_id)["Resource_List"]["select"] == "1:ncpus=1:mem=512mb"
    assert fake.attributes(last)["Resource_List"]["select"] == "1:ncpus=1:mem=768mb"
    successor = [row["job_id"] for row in site.chain(job).rows() if row["event"] == "successor"][-1]
    assert fake.attributes(successor)["Resource_List"]["select"] == "1:ncpus=1:mem=768mb"


def test_a_killed_task_is_tried_again_until_its_budget_is_used_up(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    executor = site.executor(pbs_chain="held", pbs_budgets={"KILLED": 1})
    recovers = executor.submit(pbs_tasks.die, str(tmp_path / "once"), 1)
    dies = executor.submit(pbs_tasks.die, str(tmp_path / "always"), 100)
    assert recovers.result() == "alive"
    dies.wait()
    assert dies.state == "KILLED"
    assert "2 times in a row without progress" in dies.get_info()["Reason"]
    assert len((tmp_path / "always").read_text().splitlines()) == 2


def test_a_job_killed_with_all_its_processes_goes_on(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    job = site.executor().submit(pbs_tasks.Counter(), str(rows), 20)
    eventually(rows.exists)
    fake.order("kill -9", job.job_id)
    assert job.result() == 20
    assert [row["cause"] for row in site.chain(job).rows() if row["event"] == "judged"] == ["KILLED"]


def test_an_extended_walltime_needs_no_second_link(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S)
    job = executor.submit(pbs_tasks.Counter(), str(rows), 60)
    eventually(rows.exists)
    fake.extend(job.job_id, "00:01:00")
    assert job.result() == 60
    assert {row.split()[1] for row in rows.read_text().splitlines()} == {job.job_id}


def test_a_limit_on_queued_jobs_puts_the_next_link_off(site: Site, fake: FakePbs, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    fake.configure(max_queued=1)
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S)
    job = executor.submit(pbs_tasks.Counter(), str(rows), 40)
    eventually(rows.exists)
    assert "successor" not in site.events(job)
    fake.configure(max_queued=2)
    assert job.result() == 40


def test_what_can_never_run_says_so(site: Site, fake: FakePbs) -> None:
    job = site.executor(cpus_per_task=64).submit(pbs_tasks.add, 1, 2)
    assert job.state == "PENDING"
    assert "no node can ever satisfy it" in job.get_info()["Advice"]
    assert job.get_info()["Comment"].startswith("Can Never Run")


def test_what_the_server_refuses_says_why(site: Site) -> None:
    with pytest.raises(ClusterError, match=r"(?s)code 170: .*Unknown queue; see the queues with `qstat -Q`"):
        site.executor(pbs_queue="nosuch").submit(pbs_tasks.add, 1, 2)


def test_unknown_parameters_are_refused_with_the_list(site: Site) -> None:
    with pytest.raises(NameError, match=r"'quue' for executor 'pbs'.*Valid arguments: .*queue"):
        site.executor(pbs_quue="gpu")
    with pytest.raises(RecipeError, match="nodes = 2: the executor 'pbs' starts its tasks on one node"):
        site.executor(nodes=2)


def test_polls_are_sparing(site: Site, fake: FakePbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PbsJob, "watcher", PbsInfoWatcher())
    fake.configure(slots=0)
    jobs = site.executor().map_array(pbs_tasks.add, range(45), range(45))
    for job in jobs:
        assert job.state == "PENDING"
        assert not job.done(force_check=True)
    assert len(fake.calls("qstat")) == 3  # 45 jobs, 20 a call, one round in 30 s
