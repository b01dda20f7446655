"""Parsers for the output of Slurm's commands, which need no cluster to be tested."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Literal

from contrails.cluster.outcomes import Cause
from contrails.cluster.schedulers.base import Job, Reference, Standing

SQUEUE = ("squeue", "--me", "--noheader", "--states=all", "--format=%i|%j|%T|%r|%N")
SACCT = ("sacct", "--noheader", "--parsable2", "--format=JobID,JobName,State,ExitCode,NodeList")

PEAK = ("sacct", "--noheader", "--parsable2", "--format=JobID,State,MaxRSS")

_RELEASE = "start it with `scontrol release {job_id}`"
_ORPHAN = "DependencyNeverSatisfied"
_HINTS = {
    _ORPHAN: "the run that it waits for failed",
    "JobHeldUser": _RELEASE,
    "JobHeldAdmin": "an administrator holds it, and only they can release it",
    "JobHoldMaxRequeue": f"it was started too often; {_RELEASE}",
    "launch failed requeued held": f"a node could not start it; {_RELEASE}",
    "job requeued in held state": _RELEASE,
    "Partition(Down|Inactive)": "an administrator has stopped the partition; list the others with `sinfo`",
    "ReqNodeNotAvail|NodeDown|Nodes required for job are": "nodes that could run it are down, drained or reserved; "
    "see why with `sinfo -R`",
    r"(Assoc|QOS)Grp\w*Minutes": "the account or QOS has used up its hours; see `sshare`, and ask its owner",
    r"(Assoc|QOS)(Grp|MaxJobs|Max\w*PerUser)|Max\w+PerAccount|AssociationJobLimit|(Association|QOS)ResourceLimit|"
    "QOSJobLimit|AccountingPolicy": "you, the account or the QOS have reached a limit; it starts when other jobs of "
    "theirs end",
    "QOSUsageThreshold": "the account has used too much of this QOS recently; it starts later, or under another qos",
}
"""Advice on temporary reasons of squeue(1), by a pattern for their beginning; the first match is used."""

_STUCK = {
    "PartitionTimeLimit": "walltime_min is more than the partition allows; see the limit with `sinfo -o '%P %l'`",
    "Partition(Node|Config|Min|Max)": "the partition has no node with as many CPUs, or as much memory",
    "BadConstraints": "no node has what it requests; list the nodes with `sinfo -N -l`",
    "MaxMemPerLimit": "memory_gb is more than the partition allows per job",
    r"AssocMax\w*Per(Job|Node)": "it requests more than the account allows per job; see `sacctmgr show assoc`",
    "AssociationTimeLimit": "walltime_min is more than the account allows; see `sacctmgr show assoc`",
    r"QOSMax\w*Per(Job|Node)|QOSTimeLimit": "it requests more than the QOS allows per job; see `sacctmgr show qos`",
    "QOSMin": "it requests less than the QOS demands; see `sacctmgr show qos`",
    "InvalidAccount|AccountNotAllowed": "you may not use the account; list yours: `sacctmgr show assoc user=$USER`",
    "InvalidQOS|QOSNotAllowed": "you may not use the qos; list yours: `sacctmgr show assoc user=$USER format=qos`",
    "ReservationDeleted": "the reservation was deleted; list those left with `scontrol show reservation`",
}
"""Advice on permanent reasons: the job requests what it can never get."""

_KILLED = "JobLaunchFailure|RaisedSignal|SystemFailure"
"""Reasons of a job whose batch script was killed."""

_SUSPENDED = "it keeps its node, and continues when a job with precedence ends, or when an administrator resumes it"

_IN_GB = {"": 2**-30, "K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}

_State = Literal["waiting", "running", "suspended", "ended"]
_STATES: dict[str, tuple[_State, Cause | None]] = {
    "PENDING": ("waiting", None),
    "CONFIGURING": ("waiting", None),  # the node boots
    "REQUEUED": ("waiting", None),
    "REQUEUE_FED": ("waiting", None),
    "REQUEUE_HOLD": ("waiting", None),  # until `scontrol release`
    "SPECIAL_EXIT": ("waiting", None),  # also held
    "RESV_DEL_HOLD": ("waiting", None),
    "RUNNING": ("running", None),
    "SUSPENDED": ("suspended", None),
    "STOPPED": ("suspended", None),
    "SIGNALING": ("running", None),
    "RESIZING": ("running", None),
    "STAGE_OUT": ("running", None),
    "COMPLETING": ("running", None),  # its processes end; a requeued job passes through this state too
    "COMPLETED": ("ended", None),
    "FAILED": ("ended", "error"),
    "CANCELLED": ("ended", "cancelled"),
    "TIMEOUT": ("ended", "walltime"),
    "DEADLINE": ("ended", "walltime"),
    "PREEMPTED": ("ended", "preemption"),
    "NODE_FAIL": ("ended", "node"),
    "BOOT_FAIL": ("ended", "node"),
    "OUT_OF_MEMORY": ("ended", "memory"),
    "REVOKED": ("ended", "lost"),  # another cluster of a federation runs it
}
"""All states of squeue(1) and sacct(1); an unknown one is that of a newer Slurm, and counts as running."""


def parse_squeue(text: str) -> list[Job]:
    """Return the jobs that `SQUEUE` lists.

    >>> parse_squeue("7|ct0a1b2cf0a1|PENDING|Priority|\\n")[0].native
    'PENDING (Priority)'
    """
    return [_job(*line.split("|", 4)) for line in text.splitlines() if line.count("|") >= 4]


def parse_sacct(text: str) -> list[Job]:
    """Return the jobs that `SACCT` lists.

    After a cgroup ran out of memory, OUT_OF_MEMORY is the state of a step; the job's own row says only FAILED.
    """
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        if line.count("|") != 4:
            continue
        job_id, name, state, code, node = line.split("|")
        number, dot, _ = job_id.partition(".")
        if not dot:
            reason = f"RaisedSignal:{signal}" if (signal := code.partition(":")[2]) not in ("", "0") else ""
            jobs[number] = _job(job_id, name, state, reason, node.removeprefix("None assigned"))
        elif state == "OUT_OF_MEMORY" and number in jobs and jobs[number].cause in ("error", "lost"):
            jobs[number] = _job(number, jobs[number].name, state, "", jobs[number].node)
    return list(jobs.values())


def parse_peak(text: str) -> float | None:
    """Return the peak memory in GB of the steps that `PEAK` lists; infinite if one was killed for memory.

    None if a step has not ended, or nothing was measured.

    >>> parse_peak("7|RUNNING|\\n7.batch|RUNNING|\\n7.0|CANCELLED|2097152K\\n")
    2.0
    """
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    steps = [(state, peak) for job_id, state, peak in rows if job_id.partition(".")[2] not in ("", "batch", "extern")]
    if any(state == "OUT_OF_MEMORY" for state, _ in steps):
        return math.inf
    if any(state == "RUNNING" for state, _ in steps):
        return None
    sizes = [re.fullmatch(r"([\d.]+)([KMGT]?)", peak) for _, peak in steps]
    return max((float(size[1]) * _IN_GB[size[2]] for size in sizes if size and float(size[1])), default=None)


def parse_partition(text: str, name: str | None) -> dict[str, str]:
    """Return the attributes of a partition, by default the default one, from `scontrol --oneliner show partition`.

    >>> parse_partition("PartitionName=a Default=NO MaxTime=1-00:00:00\\nPartitionName=b Default=YES", None)
    {'PartitionName': 'b', 'Default': 'YES'}
    """
    listed = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines()]
    wanted = {"Default": "YES"} if name is None else {"PartitionName": name}
    return next((fields for fields in listed if wanted.items() <= fields.items()), {})


def parse_standing(text: str, restart_count: int) -> Standing:
    """Return the standing of a job with `restart_count` earlier starts, from `scontrol --oneliner show job`."""
    fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
    if int(fields.get("Restarts", 0)) > restart_count:
        return "requeued"
    if fields.get("JobState") == "RUNNING":
        return "running"
    if re.match(_KILLED, fields.get("Reason", "")):
        return "lost"
    limit = parse_duration(fields.get("TimeLimit", ""))
    lasted = _seconds(fields.get("EndTime", "")) - _seconds(fields.get("StartTime", ""))
    return "timeout" if limit is not None and lasted >= limit else "cancelled"


def pass_on_dependency(text: str, successors: Mapping[str, Collection[str]]) -> str | None:
    """Return a dependency of squeue with some jobs replaced by their successors; None if it names none of them.

    >>> pass_on_dependency("afterok:7(failed),afterok:8(unfulfilled)", {"7": ["11", "9"]})
    'afterok:9,afterok:11,afterok:8'
    """
    parts = [re.sub(r"\(\w+\)", "", part).rpartition(":") for part in text.split(",")]
    if not any(job_id in successors for _, _, job_id in parts):
        return None
    changed = []
    for kind, _, job_id in parts:
        changed += [f"{kind}:{each}" for each in sorted(successors.get(job_id, [job_id]), key=int)]
    return ",".join(changed)


def parse_duration(text: str) -> float | None:
    """Return the seconds of a time limit; None if there is no limit.

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
    """Return the listed jobs that are wanted, by name; of several matches the last one counts."""
    ids = {job.name: job.job_id for job in wanted}
    return {job.name: job for job in listed if job.name in ids and ids[job.name] in (None, job.job_id)}


def _job(job_id: str, name: str, state: str, reason: str, node: str) -> Job:
    base = state.split()[0] if state else ""  # "CANCELLED by 1000"
    what, cause = _STATES.get(base, ("running", None))
    reason = "" if reason == "None" else reason
    if base == "FAILED" and node and reason not in ("", "NonZeroExitCode"):
        cause = "lost"  # its script was killed or did not start; only a plain exit code comes from the script
    shown = f"{base} ({reason})" if reason and what in ("waiting", "ended") else base
    stuck, hint = (_first(table, reason) if what == "waiting" else "" for table in (_STUCK, _HINTS))
    advice = _SUSPENDED if what == "suspended" else (stuck or hint).format(job_id=job_id)
    shown = f"{shown}: {advice}" if advice else shown
    never_ran, is_orphan = what == "ended" and not node, what == "waiting" and reason == _ORPHAN
    return Job(job_id, name, what, shown, cause, node, bool(stuck), never_ran, is_orphan)


def _first(table: Mapping[str, str], reason: str) -> str:
    """Return the first hint whose pattern matches a reason; empty if there is none."""
    spelled = reason.replace("_", " ")  # newer versions join the words of a reason by underscores
    return next((hint for begins, hint in table.items() if re.match(begins, spelled)), "")
