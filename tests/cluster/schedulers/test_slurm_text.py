"""What Slurm prints, as text: jobs, their states and causes, how a job stands."""

import math
from pathlib import Path

import pytest

from contrails.cluster.schedulers.base import Job, Reference
from contrails.cluster.schedulers.slurm_text import (
    matching,
    parse_duration,
    parse_partition,
    parse_peak,
    parse_sacct,
    parse_squeue,
    parse_standing,
)

SQUEUE = """\
12|ct0a1b2cf0a1|PENDING|Priority|
13|ct0a1b2cf1a1|RUNNING|None|n1
14|ct0a1b2cf2a1|COMPLETING|None|n2
15|ct0a1b2cf3a2|CANCELLED|None|n2
16|ct0a1b2cf4a1|NEW_STATE_OF_25|None|n2
"""
SACCT = """\
1|ctf0a1|CANCELLED by 1000|0:0|n1
1.batch|batch|CANCELLED|0:15|n1
2|ctf1a1|FAILED|1:0|n1
2.batch|batch|FAILED|1:0|n1
2.0|python|OUT_OF_MEMORY|0:125|n1
3|ctf2a1|TIMEOUT|0:0|n3
4|ctf3a1|COMPLETED|0:0|n3
5|ctf4a1|FAILED|1:0|None assigned
6|ctf5a1|FAILED|0:9|n1
7|ctf6a1|FAILED|3:0|n1
"""


def test_squeue() -> None:
    jobs = {job.job_id: job for job in parse_squeue(SQUEUE)}
    assert jobs["12"] == Job("12", "ct0a1b2cf0a1", "waiting", "PENDING (Priority)")
    assert [jobs[key].state for key in ("13", "14", "15", "16")] == ["running", "running", "ended", "running"]
    assert (jobs["13"].node, jobs["15"].cause, jobs["16"].native) == ("n1", "cancelled", "NEW_STATE_OF_25")
    assert parse_squeue("slurm_load_jobs error: Unable to contact slurm controller\n") == []


def test_an_id_counts_only_with_its_name() -> None:
    def wanted(name: str, job_id: str | None) -> Reference:
        return Reference(name, Path(), 0.0, job_id)

    listed = parse_squeue(SQUEUE)
    assert matching([wanted("ct0a1b2cf0a1", "12"), wanted("ct0a1b2cf1a1", None)], listed).keys() == {
        "ct0a1b2cf0a1",
        "ct0a1b2cf1a1",
    }
    assert matching([wanted("ct0a1b2cf0a1", "13"), wanted("other", "12")], listed) == {}


@pytest.mark.parametrize("reason", ["JobHeldUser", "launch failed requeued held", "launch_failed_requeued_held"])
def test_what_releases_a_job_that_is_held(reason: str) -> None:
    (job,) = parse_squeue(f"12|ct0a1b2cf0a1|PENDING|{reason}|\n")
    assert job.native.startswith(f"PENDING ({reason}): ")
    assert "`scontrol release 12`" in job.native


def test_sacct_finds_the_memory_in_the_step() -> None:
    jobs = {job.job_id: job for job in parse_sacct(SACCT)}
    assert {key: job.cause for key, job in jobs.items()} == {
        "1": "cancelled", "2": "memory", "3": "walltime", "4": None, "5": "error", "6": "lost", "7": "error"
    }  # fmt: skip
    assert jobs["2"].name == "ctf1a1"
    assert [key for key, job in jobs.items() if job.never_ran] == ["5"]
    assert jobs["6"].native == "FAILED (RaisedSignal:9)"
    assert jobs["5"].node == ""


def test_a_job_that_was_refused_never_ran_and_one_that_was_killed_made_no_error() -> None:
    refused, killed, failed = parse_squeue(
        "1|ct0|FAILED|BadConstraints|\n2|ct1|FAILED|JobLaunchFailure|n1\n3|ct2|FAILED|NonZeroExitCode|n1\n"
    )
    assert [job.never_ran for job in (refused, killed, failed)] == [True, False, False]
    assert [job.cause for job in (refused, killed, failed)] == ["error", "lost", "error"]
    assert killed.native == "FAILED (JobLaunchFailure)"


def test_a_suspended_job_does_not_run() -> None:
    jobs = parse_squeue("1|ct0|SUSPENDED|None|n1\n2|ct1|STOPPED|None|n1\n")
    assert [job.state for job in jobs] == ["suspended", "suspended"]
    assert jobs[0].native.startswith("SUSPENDED: it keeps its node, and continues when")


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("PartitionTimeLimit", "walltime_min is more than the partition allows"),
        ("PartitionConfig", "the partition has no node with as many CPUs"),
        ("BadConstraints", "no node has what it requests"),
        ("AssocMaxWallDurationPerJobLimit", "it requests more than the account allows per job"),
        ("AssocMaxCpuMinutesPerJobLimit", "it requests more than the account allows per job"),
        ("QOSMaxMemoryPerNode", "it requests more than the QOS allows per job"),
        ("QOSMinGRES", "less than the QOS demands"),
        ("InvalidAccount", "you may not use the account"),
        ("ReservationDeleted", "the reservation was deleted"),
    ],
)
def test_what_can_never_start_is_stuck(reason: str, hint: str) -> None:
    (job,) = parse_squeue(f"12|ct0a1b2cf0a1|PENDING|{reason}|\n")
    assert (job.state, job.stuck) == ("waiting", True)
    assert hint in job.native


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("AssocMaxJobsLimit", "it starts when other jobs"),
        ("QOSMaxJobsPerUserLimit", "it starts when other jobs"),
        ("AssocGrpCpuLimit", "it starts when other jobs"),
        ("QOSMaxGRESPerUser", "it starts when other jobs"),
        ("MaxCpuPerAccount", "it starts when other jobs"),
        ("AssocGrpCPUMinutesLimit", "has used up its hours"),
        ("QOSGrpCPURunMinutesLimit", "has used up its hours"),
        ("PartitionDown", "an administrator has stopped the partition"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "down, drained or reserved"),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions", "`sinfo -R`"),
        ("JobHoldMaxRequeue", "`scontrol release 12`"),
    ],
)
def test_what_others_must_let_start_has_a_hint(reason: str, hint: str) -> None:
    (job,) = parse_squeue(f"12|ct0a1b2cf0a1|PENDING|{reason}|\n")
    assert (job.state, job.stuck) == ("waiting", False)
    assert hint in job.native


@pytest.mark.parametrize("reason", ["Priority", "Resources", "Dependency", "BeginTime", "None", ""])
def test_what_passes_by_itself_needs_no_hint(reason: str) -> None:
    (job,) = parse_squeue(f"12|ct0a1b2cf0a1|PENDING|{reason}|\n")
    assert job.native in ("PENDING", f"PENDING ({reason})")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("JobState=RUNNING Restarts=1 TimeLimit=00:10:00", "running"),
        # its batch shell was killed
        ("JobState=COMPLETING Reason=JobLaunchFailure Restarts=1 TimeLimit=00:10:00 ExitCode=0:9", "lost"),
        # preempted without grace time: Slurm has put it back already
        ("JobState=COMPLETING Restarts=2 EndTime=2026-11-21T08:37:58 TimeLimit=00:10:00", "requeued"),
        (
            "JobState=COMPLETING Restarts=1 TimeLimit=00:10:00 {} EndTime=2026-11-21T08:32:26",
            "cancelled",
        ),
        (
            "JobState=COMPLETING Restarts=1 TimeLimit=00:01:00 {} EndTime=2026-11-21T08:33:31",
            "timeout",
        ),
        ("JobState=COMPLETING Restarts=1 TimeLimit=UNLIMITED StartTime=Unknown EndTime=Unknown", "cancelled"),
    ],
)
def test_how_a_job_stands(text: str, expected: str) -> None:
    words = text.format("StartTime=2026-11-21T08:32:23")
    assert parse_standing(f"JobId=7 JobName=ct Requeue=1 {words} NodeList=n1", restart_count=1) == expected


def test_limits() -> None:
    assert parse_duration("2-01:00:05") == 2 * 86400 + 3605
    assert parse_duration("Partition_Limit") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7|RUNNING|\n7.batch|RUNNING|\n7.0|RUNNING|\n", None),
        ("7|RUNNING|\n7.batch|RUNNING|4748K\n7.0|CANCELLED by 0|3145728K\n", 3.0),
        ("7|RUNNING|\n7.extern|RUNNING|9G\n7.0|COMPLETED|12K\n7.1|FAILED|1.50G\n", 1.5),
        ("7|RUNNING|\n7.0|OUT_OF_MEMORY|12K\n", math.inf),
        ("7|RUNNING|\n7.0|CANCELLED|0\n", None),  # it was killed before Slurm looked
        ("7|RUNNING|\n7.0|CANCELLED|\n", None),
    ],
)
def test_the_memory_of_a_step_that_has_ended(text: str, expected: float | None) -> None:
    assert parse_peak(text) == expected


def test_a_partition_by_its_name_or_as_the_default() -> None:
    text = "PartitionName=a Default=NO MaxTime=1-00:00:00 Nodes=n[1-3]\nPartitionName=b Default=YES MaxTime=UNLIMITED\n"
    assert parse_partition(text, "a")["MaxTime"] == "1-00:00:00"
    assert parse_partition(text, None)["PartitionName"] == "b"
    assert parse_partition(text, "none") == {}


def test_a_thousand_jobs() -> None:
    text = "".join(f"{number}|ct0a1b2cf{number}a1|RUNNING|None|n1\n" for number in range(1000))
    assert len(parse_squeue(text)) == 1000
