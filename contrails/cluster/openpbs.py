"""OpenPBS and PBS Pro: jobs through our own submitit plugin (`contrails.cluster.pbs`), as chains of links.

A chain is one job here, with the id of its first link, and each further link, or PBS's own rerun, is a restart of it.
Whether there is a next link is decided by the exit code with which the launcher, or else the teardown, leaves.
"""

import functools
import os
import re
import shlex
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from contrails.cluster.kerberos import ticket_check
from contrails.cluster.pbs import chain, client, script
from contrails.cluster.pbs.clock import Clock
from contrails.cluster.pbs.limits import Node, all_away, largest_mb, parse_nodes, shortage
from contrails.cluster.pbs.search import first_id_of
from contrails.cluster.pbs.states import HANDED_OVER, KILLED, TASK_EXITS
from contrails.cluster.scheduler import Cause, Check, Job, Reference, Request, Standing, ThisJob
from contrails.cluster.sites import Site
from contrails.errors import ClusterError, TrainingError

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
"""Every state of the plugin (`contrails.cluster.pbs.states`)."""


def preview(folder: Path, site: Site, request: Request) -> str:
    """Return the command that submits a job, and its script."""
    from contrails.cluster.pbs import staging

    spec = _spec(folder, site, request)
    options = shlex.join(["qsub", *spec.qsub, f"{request.name}.sh"])
    return f"# {options}\n{staging.render(folder, spec, _parameters(site, request))}"


def check(site: Site) -> Iterator[Check]:
    """Look whether the server starts jobs and the queue takes them, a node can run one, and the user's ticket lasts."""
    yield from _server(site)
    select = _spec(Path(), site, Request("ctdoctor", print, ())).qsub
    yield _resources(site, select)
    lacking = shortage(select, _nodes())
    advice = f"ask for less in the profile of {site.name}; `pbsnodes -av` says what there is"
    yield Check("a node for the job", lacking is None, lacking or "there is one", advice)
    has_memory = site.memory_gb is not None
    found = f"{site.memory_gb} GB" if has_memory else "the server's default, often 400 MB"
    yield Check("memory of a job", has_memory, found, f"set memory_gb in the profile of {site.name}")
    if (ticket := ticket_check(datetime.now())) is not None:
        yield ticket


def _server(site: Site) -> Iterator[Check]:
    """Look at what the server and the queue say of themselves."""
    try:
        said = client.server()
    except ClusterError as error:
        yield Check("server", False, str(error), "ask support")
        return
    starts = said.get("scheduling") != "False"
    yield Check("server", starts, "it starts jobs" if starts else "scheduling is off: no job starts", "ask support")
    keeps = said.get("job_history_enable") == "True"
    found = f"kept for {said.get('job_history_duration', 'a while')}" if keeps else "off, as by default: PBS forgets "
    yield Check("job history", True, found + ("" if keeps else "a job when it ends, and why; the run's files say that"))
    queue = {}
    if (name := site.partition or said.get("default_queue")) is not None:
        try:
            queue = client.queue(name)
        except ClusterError as error:
            yield Check("queue", False, str(error), "see the queues with `qstat -Q`")
        else:
            takes = queue.get("enabled") == queue.get("started") == "True"
            found = f"{name} {'takes and runs jobs' if takes else 'is stopped or disabled'}"
            yield Check("queue", takes, found, "ask support")
    limits = re.findall(r"u:PBS_GENERIC=(\d+)", f"{said.get('max_queued')} {queue.get('max_queued')}")
    if limits:
        most = min(map(int, limits))
        found = f"{most} of a user, running and held ones counted; a fold has two, the next one is held"
        advice = f'with next_job = "at_warning" in the profile of {site.name} it has two when it goes on only'
        yield Check("limit of jobs", most > 1, found, advice)


def _resources(site: Site, options: Sequence[str]) -> Check:
    """Look whether the server knows what a job asks for: qsub refuses the rest."""
    names = [name for name in script.select_of(options) if name not in ("ncpus", "mem", "mpiprocs")]
    try:
        unknown = [name for name in names if not client.has_resource(name)]
    except ClusterError as error:
        return Check("resources", True, f"not known: {error}")
    if unknown:
        wrong = f"PBS knows no resource {', '.join(unknown)}: qsub would refuse the job"
        from_key = "num_gpus and [resources]" if "ngpus" in unknown else "[resources]"
        return Check("resources", False, wrong, f"change {from_key} in the profile of {site.name}; see `pbsnodes -av`")
    return Check("resources", True, ", ".join(["cores and memory", *names]))


def _nodes() -> list[Node]:
    """Return the nodes; none where PBS does not show them."""
    try:
        return parse_nodes(client.nodes())
    except ClusterError:
        return []


def submit(
    folder: Path, site: Site, request: Request, announce: Callable[[Path], None], accept: Callable[[str], None]
) -> str:
    """Submit a job and return its id; see `contrails.cluster.scheduler.Scheduler`."""
    from submitit.core.utils import DelayedSubmission

    from contrails.cluster.pbs import staging

    delayed = DelayedSubmission(request.function, *request.arguments)
    _require_shared(folder)
    staged = staging.stage(folder, [delayed], _parameters(site, request), _chain(site, request))
    if (lacking := shortage(staged.spec.qsub, _nodes())) is not None:
        raise ClusterError(f"no node can ever run the job {request.name}: {lacking}; ask for less, see `pbsnodes -av`")
    (pickle,) = staged.pickles
    announce(pickle)
    job_id = staged.submit(patience_s=_PATIENCE_S)
    accept(job_id)
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
    from contrails.cluster.pbs import staging

    staging.name_script(folder, pickle, job_id)
    staging.name_pickle(folder, pickle, job_id)


def look(jobs: Collection[Reference]) -> dict[str, Job]:
    """Return what PBS knows of jobs: about 20 of them in a call, and of the same ones once in 30 s.

    Without a history it knows nothing of a job that has ended: that is left out, and whether its next link is there
    was looked at.
    """
    from submitit.core.utils import JobPaths

    from contrails.cluster.pbs.job import PbsJob

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
    nodes = functools.cache(_nodes)
    return {
        job.name: _job(job_id, watcher.get_info(job_id, "cache"), nodes)
        for job_id, job in known.items()
        if watcher.is_known(job_id)
    }


def cancel(jobs: Collection[Reference]) -> None:
    """End jobs for good, with all their links, also those whose answer was lost or that PBS says nothing about."""
    from contrails.cluster.pbs import job as pbs_job

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
    """Do nothing: what waits for a job that has ended badly has started meanwhile, and found out."""


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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # PBS sends it to all processes of the job
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return "cancelled" if _this_chain().cancelled else "running"


def requeue(_job: ThisJob, _changes: Collection[Cause]) -> bool:
    """Return whether there is a next link, which starts if the launcher leaves with the right exit code.

    It has more memory if that is what was lacking. PBS knows no way to avoid a node.
    """
    return script.spec_of(os.environ).chain != script.NONE


def peak_gb(_job: ThisJob) -> None:
    """Return None: PBS measures now and then."""


def largest_memory_gb(site: Site) -> float | None:
    """Return the memory of the largest node that could run the site's jobs; None where PBS does not show its nodes."""
    found = largest_mb(_spec(Path(), site, Request("ctmemory", print, ())).qsub, _nodes())
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
    return Job(job_id, info.get("Name", ""), what, native, cause, info.get("Node", ""), stuck)


def _with_id(job: Reference) -> Reference | None:
    """Return the job of this name with its id; a run that was removed may have had jobs of the same names before."""
    for link, attributes in client.named(job.name):
        asked = datetime.strptime(attributes["ctime"], "%a %b %d %H:%M:%S %Y").timestamp()
        if asked >= job.since - _SKEW_S:
            return replace(job, job_id=first_id_of(link, attributes))
    return None


def _spec(folder: Path, site: Site, request: Request) -> script.Spec:
    return script.make_spec(_parameters(site, request), folder, _chain(site, request))


def _chain(site: Site, request: Request) -> str:
    """Return when the next link is submitted: contrails' own commands have none, PBS alone runs them again."""
    return site.next_job if request.folds else script.NONE


def _parameters(site: Site, request: Request) -> script.Parameters:
    """Return what the plugin is told about a job."""
    retries = site.retries
    return script.Parameters(
        name=request.name,
        timeout_min=site.walltime_min,
        mem_gb=request.memory_gb or site.memory_gb,
        cpus_per_task=site.num_cpus,
        gpus_per_node=site.num_gpus,
        queue=site.partition,
        account=site.account,
        resources=site.resources,
        setup=_setup(site, request),
        teardown=[*request.teardown, *_clean_up(site)],
        additional_parameters={f"-{name}": str(value) for name, value in site.scheduler_arguments.items()},
        after=[str(folder / job_id) for job_id, folder in request.after.items()],
        signal_delay_s=site.margin_s,
        budgets={
            "TIMEOUT": retries.walltime,
            "OUT_OF_MEMORY": retries.memory,
            "KILLED": retries.memory,
            "NODE_FAIL": retries.node,
            "LOST": retries.lost,
        },
    )


def _setup(site: Site, request: Request) -> list[str]:
    """Return the lines before the task; a job inherits nothing from the shell that submits it."""
    lines = [*site.prologue]
    if site.environment is not None:
        lines.append(f"source {shlex.quote(str(site.environment.absolute()))}")
    return lines + [
        f"export {name}={shlex.quote(value)}" for name, value in sorted((request.environment or {}).items())
    ]


def _clean_up(site: Site) -> list[str]:
    """Return the lines that empty the job's scratch folder; the folder itself is not ours to remove."""
    if "SCRATCHDIR" not in str(site.stage_dir):
        return []
    return ['if [ -d "$SCRATCHDIR" ]; then find "$SCRATCHDIR" -mindepth 1 -delete; fi']
