"""OpenPBS and PBS Pro: jobs through our own submitit plugin (`contrails.submitit_pbs`), as chains of links.

A chain is one job here, with the id of its first link, and each further link, or PBS's own rerun, is a restart of it.
Whether there is a next link is decided by the exit code with which the launcher, or else the teardown, leaves.
"""

import functools
import os
import shlex
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from contrails.cluster.outcomes import Cause
from contrails.cluster.schedulers.base import Capabilities, Job, Reference, Request, Standing, ThisJob
from contrails.cluster.schedulers.pbs_check import check as check
from contrails.cluster.schedulers.pbs_script import chain_of, parameters_for, spec_for
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError, LimitReached, TrainingError
from contrails.processes import Process
from contrails.submitit_pbs import chain, client, script
from contrails.submitit_pbs.in_job.clock import Clock
from contrails.submitit_pbs.limits import Node, all_away, largest_mb, read_nodes, shortage
from contrails.submitit_pbs.search import first_id_of
from contrails.submitit_pbs.states import HANDED_OVER, KILLED, TASK_EXITS

CAPABILITIES = Capabilities(has_queue=True, runs_here=False, starts_again=True)

_PATIENCE_S = 60.0
_SKEW_S = 60.0

_State = Literal["waiting", "running", "suspended", "ended"]
_STATES: dict[str, tuple[_State, Cause | None]] = {
    "PENDING": ("waiting", None),
    "HELD": ("waiting", None),
    "REQUEUED": ("waiting", None),
    "RUNNING": ("running", None),
    "SUSPENDED": ("suspended", None),
    "COMPLETING": ("running", None),
    "COMPLETED": ("ended", None),
    "FAILED": ("ended", "error"),
    "KILLED": ("ended", "memory"),
    "OUT_OF_MEMORY": ("ended", "memory"),
    "TIMEOUT": ("ended", "walltime"),
    "PREEMPTED": ("ended", "preemption"),
    "NODE_FAIL": ("ended", "node"),
    "CANCELLED": ("ended", "cancelled"),
    "LOST": ("ended", "lost"),
    "REFUSED": ("ended", "refused"),
}
"""Every state of the plugin (`contrails.submitit_pbs.states`)."""


def preview(folder: Path, site: Site, request: Request) -> str:
    """Return the command that submits a job, and its script."""
    from contrails.submitit_pbs import staging

    spec = spec_for(folder, site, request)
    options = shlex.join(["qsub", *spec.qsub, f"{request.name}.sh"])
    return f"# {options}\n{staging.render(folder, spec, parameters_for(site, request))}"


def submit(
    folder: Path,
    site: Site,
    request: Request,
    announce: Callable[[Path], None],
    accept: Callable[[str, Process | None], None],
) -> str:
    """Submit a job and return its id; see `contrails.cluster.schedulers.base.Scheduler`."""

    from contrails.submitit_pbs import staging

    delayed = request.delayed()
    _require_shared(folder)
    staged = staging.stage(folder, [delayed], parameters_for(site, request), chain_of(site, request))
    if (lacking := shortage(staged.spec.qsub, read_nodes())) is not None:
        raise ClusterError(f"no node can ever run the job {request.name}: {lacking}; ask for less, see `pbsnodes -av`")
    (pickle,) = staged.pickles
    announce(pickle)
    try:
        job_id = staged.submit(patience_s=_PATIENCE_S)
    except client.Refused as error:
        if error.pbs_code not in client.LIMITS:
            raise
        raise LimitReached(str(error)) from error
    accept(job_id, None)
    complete(folder, pickle, job_id)
    return job_id


def _require_shared(folder: Path) -> None:
    """Refuse a path that means another folder on another frontend, as /home does where there is a /storage."""
    if folder.is_relative_to("/home") and Path("/storage").is_dir():
        raise ClusterError(
            f"{folder}: expected a path under /storage, which is the same on all machines; go there, or "
            "`export CONTRAILS_RUNS=/storage/<city>/home/$USER/runs`"
        )


def complete(folder: Path, pickle: Path, job_id: str) -> None:
    """Give the files of a job the names under which its links look for them."""
    from contrails.submitit_pbs import staging

    staging.name_script(folder, pickle, job_id)
    staging.name_pickle(folder, pickle, job_id)


def look(jobs: Collection[Reference]) -> dict[str, Job]:
    """Return what PBS knows of jobs: about 20 of them in a call, and of the same ones once in 30 s.

    Without a history it knows nothing of a job that has ended: that is left out, and whether its next link is there
    was looked at.
    """
    from submitit.core.utils import JobPaths

    from contrails.submitit_pbs.job import PbsJob

    found = (job if job.job_id is not None else _with_id(job) for job in jobs)
    known = {
        str(job.job_id): job for job in sorted(filter(None, found), key=lambda job: job.since)
    }  # the newest of an id
    watcher = PbsJob.watcher
    if [job_id for job_id, job in known.items() if watcher.watch(job_id, JobPaths(job.folder, job_id), job.name)]:
        watcher.update()
    else:
        watcher.update_if_long_enough("standard")
    if watcher.unanswered is not None:
        raise watcher.unanswered
    nodes = functools.cache(read_nodes)
    return {
        job.name: _job(job_id, watcher.get_info(job_id, "cache"), nodes)
        for job_id, job in known.items()
        if watcher.is_known(job_id)
    }


def cancel(jobs: Collection[Reference]) -> None:
    """End jobs for good, with all their links, also those whose answer was lost or that PBS says nothing about."""
    from contrails.submitit_pbs import job as pbs_job

    failed: ClusterError | None = None
    for job in jobs:
        try:
            if (known := job if job.job_id is not None else _with_id(job)) is not None:
                pbs_job.cancel(job.folder, str(known.job_id), job.name)
        except ClusterError as error:  # the others are to go all the same
            failed = error
    if failed is not None:
        raise failed


def pass_on(_successors: Mapping[str, Collection[str]]) -> None:
    """Do nothing: what waits for a job that has ended badly has found out and left; see `Job.is_orphan`."""


def interruptions() -> dict[str, Callable[[Reference], object]]:
    """Return what a drill may do to a running job: TERM would mean a deletion here, and a job's shell dies of USR2."""
    return {"SIGKILL of the whole job": lambda job: client.kill(_running_link(job))}


def _running_link(job: Reference) -> str:
    """Return the id of the link that runs now; all links of a job have its name."""
    running = [link for link, attributes in client.named(job.name) if attributes["job_state"] == "R"]
    if not running:
        raise ClusterError(f"no link of the job {job.name} runs; see `qstat -u $USER`")
    return running[0]


def this_job() -> ThisJob:
    """Return the job that this process runs in; its id is that of the first link."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return ThisJob(
        name=script.spec_of(os.environ).name,
        job_id=os.environ[chain.JOB_ID],
        restart_count=int(os.environ[chain.RESTARTS]),
        node=socket.gethostname(),
        devices=tuple(device for device in devices.split(",") if device),
        memory_gb=None,
    )


def end_time(_job: ThisJob) -> float:
    """Return when this link's time is over; `qextend` or an operator may have changed it since the last call."""
    return time.time() + Clock.of_this_job().ask()


def standing(_job: ThisJob) -> Standing:
    """Return whether somebody has cancelled the job.

    What TERM means only the next link learns, when PBS says how this one ended; if that was qdel, it leaves at once.
    """
    return "cancelled" if _this_chain().cancelled else "running"


def requeue(_job: ThisJob, _changes: Collection[Cause]) -> bool:
    """Return whether there is a next link, which starts if the launcher leaves with the right exit code.

    It has more memory if that is what was lacking, and keeps off a node that failed: see `pbs.avoid`.
    """
    return script.spec_of(os.environ).chain != script.NONE


def peak_gb(_job: ThisJob) -> None:
    """Return None: PBS measures now and then."""


def largest_memory_gb(site: Site) -> float | None:
    """Return the memory of the largest node that could run the site's jobs; None where PBS does not show its nodes."""
    found = largest_mb(spec_for(Path(), site, Request("ctmemory", "builtins:print", ())).qsub, read_nodes())
    return None if found is None else found / 1024


def last_code(code: int) -> int:
    """Return the code of a training that cannot go on in place of one after which the next link would."""
    return TrainingError.exit_code if code in HANDED_OVER or code in TASK_EXITS else code


def why_restarted(_job: ThisJob) -> Cause:
    """Return why the last start ended, as the first act of this one has judged it."""
    rows, link = _this_chain().rows(), os.environ["PBS_JOBID"]
    if len([row for row in rows if row["event"] == "start" and row["job_id"] == link]) > 1:
        return "preemption"  # or its node failed: PBS has run the same link again, and does not say why
    judged = next((row for row in rows if row["event"] == "judged" and row["job_id"] == link), {})
    if judged.get("cause") == KILLED and not judged.get("lacked_memory", True):
        return "killed"
    cause = chain.cause_of_start(rows, link)
    return (_STATES[cause][1] if cause else None) or "lost"


def note_progress(_job: ThisJob) -> None:
    """Have the chain forget earlier failures of links."""
    chain.note_progress()


def _this_chain() -> chain.Chain:
    return chain.Chain(Path(os.environ["SUBMITIT_FOLDER"]), os.environ[chain.JOB_ID])


def _job(job_id: str, info: Mapping[str, str], nodes: Callable[[], list[Node]]) -> Job:
    what, cause = _STATES[info["State"]]
    advice, stuck = info.get("Advice", ""), "Stuck" in info
    if what == "waiting" and info.get("Comment", "").startswith("Not Running"):
        options = [f"select={info.get('Select', '')}"]
        if (lacking := shortage(options, nodes())) is not None:
            advice, stuck = f"no node has it: {lacking}", True
        elif (away := all_away(options, nodes())) is not None:
            advice = f"the nodes that could run it are away: {away}"
    words = [info.get("Reason", ""), info.get("Comment", ""), advice]
    shown = [word for word in words if word] if what in ("waiting", "suspended") else words[:1]
    native = f"{info['State']} ({'; '.join(shown)})" if any(shown) else info["State"]
    name, node, is_orphan = info.get("Name", ""), info.get("Node", ""), "Orphan" in info
    return Job(job_id, name, what, native, cause, node, stuck, is_orphan=is_orphan)


def _with_id(job: Reference) -> Reference | None:
    """Return the job of this name with its id; a run that was removed may have had jobs of the same names before."""
    for link, attributes in client.named(job.name):
        asked = datetime.strptime(attributes["ctime"], "%a %b %d %H:%M:%S %Y").timestamp()
        if asked >= job.since - _SKEW_S:
            return replace(job, job_id=first_id_of(link, attributes))
    return None
