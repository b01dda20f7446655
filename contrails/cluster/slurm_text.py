"""What Slurm's commands print, parsed: text in, plain values out, so that all of it can be tested without a cluster."""

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Literal

from contrails.cluster.scheduler import Cause, Job, Reference, Standing

SQUEUE = ("squeue", "--me", "--noheader", "--states=all", "--format=%i|%j|%T|%r|%N")
SACCT = ("sacct", "--noheader", "--parsable2", "--format=JobID,JobName,State,NodeList")

_HINTS = {
    "DependencyNeverSatisfied": "the run that it waits for failed: `contrails resume RUN` with the name of that one, "
    "and this follows it; or cancel this one, and submit it without --after",
    "JobHeldUser": "`scontrol release {job_id}` lets it start",
    "JobHeldAdmin": "an administrator holds it, and only they let it start",
    "launch failed requeued held": "a node could not start it; `scontrol release {job_id}` lets it start again",
    "job requeued in held state": "`scontrol release {job_id}` lets it start",
}
"""What to do about reasons of squeue(1) that do not pass by themselves."""

_State = Literal["waiting", "running", "ended"]
_STATES: dict[str, tuple[_State, Cause | None]] = {
    "PENDING": ("waiting", None),
    "CONFIGURING": ("waiting", None),  # the node boots
    "REQUEUED": ("waiting", None),
    "REQUEUE_FED": ("waiting", None),
    "REQUEUE_HOLD": ("waiting", None),  # until `scontrol release`
    "SPECIAL_EXIT": ("waiting", None),  # held as well
    "RESV_DEL_HOLD": ("waiting", None),
    "RUNNING": ("running", None),
    "SUSPENDED": ("running", None),
    "STOPPED": ("running", None),
    "SIGNALING": ("running", None),
    "RESIZING": ("running", None),
    "STAGE_OUT": ("running", None),
    "COMPLETING": ("running", None),  # its processes end; a requeued job passes through it too
    "COMPLETED": ("ended", None),
    "FAILED": ("ended", "error"),
    "CANCELLED": ("ended", "cancelled"),
    "TIMEOUT": ("ended", "walltime"),
    "DEADLINE": ("ended", "walltime"),
    "PREEMPTED": ("ended", "preemption"),
    "NODE_FAIL": ("ended", "node"),
    "BOOT_FAIL": ("ended", "node"),
    "OUT_OF_MEMORY": ("ended", "memory"),
    "REVOKED": ("ended", "lost"),  # a federation runs it elsewhere
}
"""Every state of squeue(1) and sacct(1); one that is not here is a newer Slurm's, and taken for a job that lives."""


def parse_squeue(text: str) -> list[Job]:
    """Return the jobs that `SQUEUE` lists.

    >>> parse_squeue("7|ct0a1b2cf0a1|PENDING|Priority|\\n")[0].native
    'PENDING (Priority)'
    """
    return [_job(*line.split("|", 4)) for line in text.splitlines() if line.count("|") >= 4]


def parse_sacct(text: str) -> list[Job]:
    """Return the jobs that `SACCT` lists.

    A cgroup that runs out of memory ends as OUT_OF_MEMORY in the row of a step, below a job that says only FAILED.
    """
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        if line.count("|") != 3:
            continue
        job_id, name, state, node = line.split("|")
        number, dot, _ = job_id.partition(".")
        if not dot:
            jobs[number] = _job(job_id, name, state, "", node)
        elif state == "OUT_OF_MEMORY" and number in jobs and jobs[number].cause == "error":
            jobs[number] = _job(number, jobs[number].name, state, "", jobs[number].node)
    return list(jobs.values())


def parse_standing(text: str, restart_count: int) -> Standing:
    """Return how a job that has been started `restart_count` times before stands in `scontrol --oneliner show job`."""
    fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
    if int(fields.get("Restarts", 0)) > restart_count:
        return "requeued"
    if fields.get("JobState") == "RUNNING":
        return "running"
    limit = parse_duration(fields.get("TimeLimit", ""))
    lasted = _seconds(fields.get("EndTime", "")) - _seconds(fields.get("StartTime", ""))
    return "timeout" if limit is not None and lasted >= limit else "cancelled"


def pass_on_dependency(text: str, successors: Mapping[str, Collection[str]]) -> str | None:
    """Return a dependency as squeue shows it with other jobs in the place of some, None if it names none of them.

    >>> pass_on_dependency("afterok:7(failed),afterok:8(unfulfilled)", {"7": ["11", "9"]})
    'afterok:9,afterok:11,afterok:8'
    """
    parts = [re.sub(r"\(\w+\)", "", part).rpartition(":") for part in text.split(",")]
    if not any(job_id in successors for _, _, job_id in parts):
        return None
    return ",".join(
        f"{kind}:{each}" for kind, _, job_id in parts for each in sorted(successors.get(job_id, [job_id]), key=int)
    )


def parse_duration(text: str) -> float | None:
    """Return the seconds of a limit, None where there is none.

    >>> parse_duration("1-02:00:00"), parse_duration("00:01:00"), parse_duration("UNLIMITED")
    (93600.0, 60.0, None)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _seconds(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:  # "Unknown", "N/A"
        return 0.0


def matching(wanted: Iterable[Reference], listed: Iterable[Job]) -> dict[str, Job]:
    """Return those of the listed jobs that are wanted, by name; of several that agree the last one counts."""
    ids = {job.name: job.job_id for job in wanted}
    return {job.name: job for job in listed if job.name in ids and ids[job.name] in (None, job.job_id)}


def _job(job_id: str, name: str, state: str, reason: str, node: str) -> Job:
    base = state.split()[0] if state else ""  # "CANCELLED by 1000"
    what, cause = _STATES.get(base, ("running", None))
    shown = f"{base} ({reason})" if reason not in ("", "None") and what == "waiting" else base
    hint = _HINTS.get(reason.replace("_", " "))  # newer versions join the words of a reason
    shown = f"{shown}: {hint.format(job_id=job_id)}" if hint else shown
    return Job(job_id, name, what, shown, cause, node)
