"""OpenPBS and PBS Pro: jobs through our own submitit plugin (`contrails.submitit_pbs`), as chains of PBS jobs.

A chain counts as one job with the id of its first link. Each further link, and each rerun by PBS, is a restart of it.
The exit code of the launcher, or of the teardown, decides whether there is a next link.
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
from contrails.cluster.schedulers import containers
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
"""All states of the plugin (`contrails.submitit_pbs.states`)."""


def preview(folder: Path, site: Site, request: Request) -> str:
    """Return the command that submits a job, and its script."""
    from contrails.submitit_pbs import staging

    spec = spec_for(folder, site, request)
    options = shlex.join(["qsub", *spec.qsub, f"{request.name}.sh"])
    return (
        f"# {options}\n{staging.render(folder, spec, parameters_for(site, request), containers.python(site, request))}"
    )


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
    staged = staging.stage(
        folder,
        [delayed],
        parameters_for(site, request),
        chain_of(site, request),
        python=containers.python(site, request),
    )
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
    """Refuse a path under /home if /storage exists: /home then is another folder on each machine."""
    if folder.is_relative_to("/home") and Path("/storage").is_dir():
        raise ClusterError(
            f"{folder}: expected a path under /storage, which is the same on all machines; go there, or "
            "`export CONTRAILS_RUNS=/storage/<city>/home/$USER/runs`"
        )


def complete(folder: Path, pickle: Path, job_id: str) -> None:
    """Rename the files of a job to the names that its links look for."""
    from contrails.submitit_pbs import staging

    staging.name_script(folder, pickle, job_id)
    staging.name_pickle(folder, pickle, job_id)


def look(jobs: Collection[Reference]) -> dict[str, Job]:
    """Return what PBS knows of jobs; one call asks for about 20 jobs, and for each job at most once in 30 s.

    Without a history, PBS forgets jobs that have ended. Such a job is left out, after a look for its next link.
    """
    from submitit.core.utils import JobPaths

    from contrails.submitit_pbs.job import PbsJob

    found = (job if job.job_id is not None else _with_id(job) for job in jobs)
    known = {
        str(job.job_id): job for job in sorted(filter(None, found), key=lambda job: job.since)
    }  # PBS may reuse an id: the newest job of an id wins
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
    """End jobs for good with all their links, including those without an answer or unknown to PBS."""
    from contrails.submitit_pbs import job as pbs_job

    failed: ClusterError | None = None
    for job in jobs:
        try:
            if (known := job if job.job_id is not None else _with_id(job)) is not None:
                pbs_job.cancel(job.folder, str(known.job_id), job.name)
        except ClusterError as error:  # still cancel the others
            failed = error
    if failed is not None:
        raise failed


def pass_on(_successors: Mapping[str, Collection[str]]) -> None:
    """Do nothing: a job that waits for one that failed has noticed it and left; see `Job.is_orphan`."""


def interruptions() -> dict[str, Callable[[Reference], object]]:
    """Return the ways in which a drill may interrupt a job.

    TERM is not one of them, since it would mean qdel; nor USR2, which kills the job's shell.
    """
    return {"SIGKILL of the whole job": lambda job: client.kill(_running_link(job))}


def _running_link(job: Reference) -> str:
    """Return the id of the running link; all links of a job have its name."""
    running = [link for link, attributes in client.named(job.name) if attributes["job_state"] == "R"]
    if not running:
        raise ClusterError(f"expected a running link of the job {job.name}, found none; see `qstat -u $USER`")
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
    """Return when this link's time ends; `qextend` or an operator may have changed it since the last call."""
    return time.time() + Clock.of_this_job().ask()


def standing(_job: ThisJob) -> Standing:
    """Return whether the job was cancelled with contrails.

    What a TERM meant is only known to the next link, when PBS says how this one ended; after qdel, that link exits.
    """
    return "cancelled" if _this_chain().cancelled else "running"


def requeue(_job: ThisJob, _changes: Collection[Cause]) -> bool:
    """Return whether there is a next link; the exit code of the launcher decides whether it starts.

    It gets more memory if memory was lacking, and avoids a failed node: see `contrails.submitit_pbs.avoid`.
    """
    return script.spec_of(os.environ).chain != script.NONE


def peak_gb(_job: ThisJob) -> None:
    """Return None: PBS samples the memory too rarely."""


def largest_memory_gb(site: Site) -> float | None:
    """Return the memory of the largest node that could run the site's jobs; None if PBS does not list its nodes."""
    found = largest_mb(spec_for(Path(), site, Request("ctmemory", "builtins:print", ())).qsub, read_nodes())
    return None if found is None else found / 1024


def last_code(code: int) -> int:
    """Replace an exit code for which the next link would start by that of a training error."""
    return TrainingError.exit_code if code in HANDED_OVER or code in TASK_EXITS else code


def why_restarted(_job: ThisJob) -> Cause:
    """Return why the last start ended, as this start recorded it at its beginning."""
    rows, link = _this_chain().rows(), os.environ["PBS_JOBID"]
    if len([row for row in rows if row["event"] == "start" and row["job_id"] == link]) > 1:
        return "preemption"  # or a failed node: PBS ran the same link again and does not say why
    judged = next((row for row in rows if row["event"] == "judged" and row["job_id"] == link), {})
    if judged.get("cause") == KILLED and not judged.get("lacked_memory", True):
        return "killed"
    cause = chain.cause_of_start(rows, link)
    return (_STATES[cause][1] if cause else None) or "lost"


def note_progress(_job: ThisJob) -> None:
    """Make the chain forget earlier failures of its links."""
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
            advice = f"the nodes that could run it are down or offline: {away}"
    words = [info.get("Reason", ""), info.get("Comment", ""), advice]
    shown = [word for word in words if word] if what in ("waiting", "suspended") else words[:1]
    native = f"{info['State']} ({'; '.join(shown)})" if any(shown) else info["State"]
    name, node, is_orphan = info.get("Name", ""), info.get("Node", ""), "Orphan" in info
    return Job(job_id, name, what, native, cause, node, stuck, is_orphan=is_orphan)


def _with_id(job: Reference) -> Reference | None:
    """Return the job of this name with its id; ignore older jobs, which may belong to a removed run."""
    for link, attributes in client.named(job.name):
        asked = datetime.strptime(attributes["ctime"], "%a %b %d %H:%M:%S %Y").timestamp()
        if asked >= job.since - _SKEW_S:
            return replace(job, job_id=first_id_of(link, attributes))
    return None
