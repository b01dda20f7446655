"""The plugin through submitit's own interface, with nothing broken: these tests run on a real PBS too."""

import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import FailedJobError, UncompletedJobError

from contrails.errors import ClusterError, RecipeError
from contrails.submitit_pbs import client
from contrails.submitit_pbs.search import pbs_id

import pbs_tasks
from local_site import eventually
from pbs_site import MARGIN_S, REAL, WALLTIME, Site, history_does_not_matter, is_gone


def test_a_result_comes_back_with_both_logs(site: Site) -> None:
    job = site.executor().submit(pbs_tasks.add, 2, 3)
    assert re.fullmatch(r"\d+\..+", job.job_id)
    assert job.result() == 5
    assert "adding 2 and 3" in (job.stdout() or "")
    assert "a word for stderr" in (job.stderr() or "")
    eventually(lambda: job.state == "COMPLETED")
    assert job.done()
    assert (site.folder.stat().st_mode & 0o777) == 0o700


@history_does_not_matter
def test_an_exception_comes_back_with_its_traceback(site: Site) -> None:
    job = site.executor().submit(pbs_tasks.divide, 1, 0)
    exception = job.exception()
    assert isinstance(exception, FailedJobError)
    assert "ZeroDivisionError" in str(exception)
    assert "pbs_tasks.py" in str(exception)
    with pytest.raises(FailedJobError, match="ZeroDivisionError"):
        job.result()
    eventually(lambda: job.state == "FAILED")


@history_does_not_matter
def test_map_array_is_one_array(site: Site) -> None:
    jobs = site.executor(pbs_array_parallelism=2).map_array(pbs_tasks.divide, [6, 8, 1], [2, 4, 0])
    assert [job.job_id.rpartition("_")[2] for job in jobs] == ["0", "1", "2"]
    assert len({job.job_id.rpartition("_")[0] for job in jobs}) == 1
    assert [jobs[0].result(), jobs[1].result()] == [3, 2]
    assert "ZeroDivisionError" in str(jobs[2].exception())
    assert not [path.name for path in site.folder.iterdir() if "[" in path.name and path.suffix != ".OU"]
    assert client.query([pbs_id(f"{jobs[0].job_id.rpartition('_')[0]}_3")]) == {}
    (alone,) = site.executor().map_array(pbs_tasks.add, [1], [2])  # PBS refuses an array of one
    assert "[" not in alone.job_id


@history_does_not_matter
def test_a_task_sees_its_job(site: Site) -> None:
    job = site.executor().submit(pbs_tasks.describe)
    seen: dict[str, Any] = job.result()
    assert seen["job_id"] == job.job_id
    assert (seen["cluster"], seen["num_tasks"], seen["global_rank"], seen["array_job_id"]) == ("pbs", 1, 0, None)
    assert len(seen["hostnames"]) == 1


@history_does_not_matter
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
    assert job.state == "CANCELLED"
    with pytest.raises(UncompletedJobError, match="CANCELLED"):
        job.result()
    (successor,) = site.links(job)
    eventually(lambda: is_gone(job.job_id) and is_gone(successor))
    assert site.starts(job) == [job.job_id]  # the next one was deleted before the first one's end let it go
    steps = len(rows.read_text().splitlines())
    time.sleep(1)
    assert len(rows.read_text().splitlines()) == steps


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["held", "at_warning"])
def test_a_checkpointable_goes_on_through_three_links_under_one_id(site: Site, tmp_path: Path, chain: str) -> None:
    rows = tmp_path / "rows"
    # a slow machine takes fewer steps in a link, and more links
    executor = site.executor(20, pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S, pbs_chain=chain)
    job = executor.submit(pbs_tasks.Counter(), str(rows), 600 if REAL else 80)
    num_steps = job.result()
    taken = [int(row.split()[0]) for row in rows.read_text().splitlines()]
    assert taken == list(range(num_steps))  # no step was lost, or taken twice
    links = list(dict.fromkeys(row.split()[1] for row in rows.read_text().splitlines()))
    assert len(links) >= 3
    assert links[0] == job.job_id
    eventually(lambda: job.state == "COMPLETED")
    assert "Starting with JobEnvironment" in (job.stderr() or "") + (job.stdout() or "")
    if chain == "held":  # the last successor waited for a failure that did not come
        eventually(lambda: is_gone(site.links(job)[-1]))


@pytest.mark.parametrize("task", [pbs_tasks.warned_after_the_result, pbs_tasks.killed_after_the_result])
def test_a_result_is_the_end_however_its_process_ended(site: Site, task: Callable[[], None]) -> None:
    job = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S, pbs_chain="held").submit(task)
    assert job.result() == "kept"
    eventually(lambda: job.state == "COMPLETED")


def test_an_error_that_was_stored_is_a_failure_however_its_process_ended(site: Site) -> None:
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S, pbs_chain="held")
    job = executor.submit(pbs_tasks.killed_after_the_result, "error")
    with pytest.raises(FailedJobError, match="kept"):
        job.result()
    eventually(lambda: job.state == "FAILED")


@history_does_not_matter
def test_a_callable_without_checkpoint_polls_the_clock(site: Site, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S, pbs_chain="held")
    job = executor.submit(pbs_tasks.poll, str(rows), 300 if REAL else 40)
    assert re.fullmatch(r"\d+ steps after [1-9] restarts", job.result())
    assert site.events(job).count("judged") >= 1


@history_does_not_matter
def test_without_a_chain_the_walltime_is_the_end(site: Site, tmp_path: Path) -> None:
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S)
    job = executor.submit(pbs_tasks.sleep, 100, str(tmp_path / "started"))
    with pytest.raises(UncompletedJobError, match="timed-out and not checkpointable"):
        job.result()


@history_does_not_matter
@pytest.mark.slow
def test_a_checkpointable_times_out_as_often_as_allowed(site: Site, tmp_path: Path) -> None:
    executor = site.executor(pbs_walltime=WALLTIME, pbs_signal_delay_s=MARGIN_S, max_num_timeout=1)
    job = executor.submit(pbs_tasks.Counter(), str(tmp_path / "rows"), 10_000)
    with pytest.raises(UncompletedJobError, match="timed-out too many times"):
        job.result()
    assert site.events(job).count("start") == 2


def test_an_exit_code_of_a_task_ends_the_chain(site: Site) -> None:
    job = site.executor(pbs_chain="held").submit(pbs_tasks.leave, 8)
    job.wait()
    assert job.get_info()["Reason"].startswith("exit code 8")
    eventually(lambda: is_gone(site.links(job)[0]))
    assert site.starts(job) == [job.job_id]  # the next one was deleted before it could start


@history_does_not_matter
def test_a_job_object_can_be_pickled(site: Site) -> None:
    job = pickle.loads(pickle.dumps(site.executor().submit(pbs_tasks.add, 1, 1)))
    assert job.result() == 2


@history_does_not_matter
def test_what_the_server_refuses_says_why(site: Site) -> None:
    with pytest.raises(ClusterError, match=r"(?s)code 170: .*Unknown queue; list the queues with `qstat -Q`"):
        site.executor(pbs_queue="nosuch").submit(pbs_tasks.add, 1, 2)


@history_does_not_matter
def test_unknown_parameters_are_refused_with_the_list(site: Site) -> None:
    with pytest.raises(NameError, match=r"'quue' for executor 'pbs'.*Valid arguments: .*queue"):
        site.executor(pbs_quue="gpu")
    with pytest.raises(RecipeError, match="nodes = 2: the executor 'pbs' starts all tasks on one node"):
        site.executor(nodes=2)


@history_does_not_matter
def test_a_task_that_leaves_before_the_warning_has_a_next_link(site: Site) -> None:
    job = site.executor(pbs_chain="at_warning", pbs_max_links=2).submit(pbs_tasks.leave, 75)
    job.wait()
    assert site.events(job).count("start") == 2
    assert "there is no next link" in job.get_info()["Reason"]


@history_does_not_matter
def test_a_teardown_can_change_what_follows(site: Site) -> None:
    executor = site.executor(pbs_chain="held", pbs_max_links=2, pbs_teardown=["echo $code >&2", "code=3"])
    job = executor.submit(pbs_tasks.leave, 75)
    job.wait()
    assert site.events(job).count("start") == 1
    assert "exit code 3" in job.get_info()["Reason"]
    assert "75" in (job.stderr() or "").split()


def test_a_job_after_others_starts_when_their_chains_have_succeeded(site: Site, tmp_path: Path) -> None:
    executor = site.executor(pbs_chain="held")
    first = executor.submit(pbs_tasks.sleep, 2, str(tmp_path / "first"))
    fails = executor.submit(pbs_tasks.leave, 4)
    good, bad = (
        site.executor(pbs_after=[str(job.paths.folder / job.job_id)]).submit(pbs_tasks.describe)
        for job in (first, fails)
    )
    assert good.result()["job_id"] == good.job_id
    assert first.done(force_check=True)
    bad.wait()
    assert bad.state == "CANCELLED"
    assert f"job {fails.job_id}, which had to succeed first, ended: FAILED" in bad.get_info()["Reason"]
