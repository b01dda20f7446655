"""Slurm: jobs through submitit, their state through squeue and sacct, and requeueing from inside a job.

submitit names the files of a job and runs the pickled function under srun, which receives the scheduler's signals.
"""

import os
import shlex
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from contrails.cluster.outcomes import Cause
from contrails.cluster.schedulers.base import Capabilities, Check, Job, Reference, Request, Standing, ThisJob
from contrails.cluster.schedulers.sites import Site
from contrails.cluster.schedulers.slurm_script import command, executor_of, script
from contrails.cluster.schedulers.slurm_text import (
    PEAK,
    SACCT,
    SQUEUE,
    matching,
    parse_duration,
    parse_partition,
    parse_peak,
    parse_sacct,
    parse_squeue,
    parse_standing,
    pass_on_dependency,
)
from contrails.errors import ClusterError, LimitReached
from contrails.files import fsync
from contrails.processes import Process
from contrails.runs.folder import job_pickle
from contrails.user import user_name

CAPABILITIES = Capabilities(has_queue=True, runs_here=False, starts_again=True)

_TIMEOUT_S = 60
_PATIENCE_S = 300
_RETRY_S = 5
_SKEW_S = 60
_ACCOUNTED_S = 10
_PEAK_RETRY_S = 0.5


def preview(folder: Path, site: Site, request: Request) -> str:
    """Return the command that submits a job, and its script."""
    return f"# {shlex.join(command(folder / f'{request.name}.sh'))}\n{script(folder, site, request)}"


def check(site: Site) -> Iterator[Check]:
    """Check whether partition, account, limits and nodes can satisfy the site.

    The walltime is checked separately: Slurm accepts jobs longer than the partition allows, and never starts them.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "test.sh"
        path.write_text(script(Path(name), site, Request("ctdoctor", "builtins:print", ())))
        *before, _ = command(path)
        line = [*before, "--test-only", str(path)]
        answer = subprocess.run(line, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    said = [line for line in answer.stderr.splitlines() if line.startswith("sbatch:")] or [answer.stderr.strip()]
    advice = f"change the profile of {site.name}; see `sinfo` and `scontrol show partition`"
    yield Check("partition and limits", answer.returncode == 0, said[-1], advice)
    limit_s = parse_duration(_partition(site).get("MaxTime", ""))
    found = f"{site.walltime_min} min, the partition allows {'any' if limit_s is None else f'{limit_s / 60:.0f} min'}"
    yield Check("walltime", limit_s is None or 60 * site.walltime_min <= limit_s, found, "lower walltime_min")


def _partition(site: Site) -> dict[str, str]:
    """Return the attributes of the site's partition, or of the default one; empty if Slurm does not answer."""
    try:
        return parse_partition(_ask("scontrol", "--oneliner", "show", "partition"), site.partition)
    except ClusterError:
        return {}


def submit(
    folder: Path,
    site: Site,
    request: Request,
    announce: Callable[[Path], None],
    accept: Callable[[str, Process | None], None],
) -> str:
    """Submit a job and return its id; see `contrails.cluster.schedulers.base.Scheduler`."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = executor_of(folder, site, request)
    pickle = folder / f"{uuid.uuid4().hex}.pkl"
    delayed = request.delayed()
    delayed.set_timeout(site.walltime_min, 0)
    delayed.dump(pickle)
    fsync(pickle)
    announce(pickle)
    try:
        job = executor._submit_command(executor._submitit_command_str)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = _said_by(error)
        kind = LimitReached if "MaxSubmit" in said else ClusterError  # as in AssocMaxSubmitJobLimit
        raise kind(f"sbatch did not take the job {request.name}: {said}") from error
    job_id: str = job.job_id
    accept(job_id, None)
    complete(folder, pickle, job_id)
    return job_id


def complete(folder: Path, pickle: Path, job_id: str) -> None:
    """Rename the pickle to the name that the job waits for; the job gives up after a minute."""
    if pickle.exists():
        pickle.rename(job_pickle(folder, job_id))


def look(jobs: Collection[Reference]) -> dict[str, Job]:
    """Return what Slurm knows of these jobs: from one call of squeue, and sacct for those that squeue has forgotten."""
    found = matching(jobs, parse_squeue(_ask(*SQUEUE)))
    return found | _look_back([job for job in jobs if job.name not in found])


def _look_back(jobs: Collection[Reference]) -> dict[str, Job]:
    """Return jobs from the accounting; empty if the cluster has none, so that they are unknown."""
    ids = sorted(job.job_id for job in jobs if job.job_id is not None)
    unsettled = [job for job in jobs if job.job_id is None]
    found: dict[str, Job] = {}
    try:
        if ids:
            found |= matching(jobs, parse_sacct(_ask(*SACCT, f"--jobs={','.join(ids)}")))
        if unsettled:
            since = datetime.fromtimestamp(min(job.since for job in unsettled) - _SKEW_S).isoformat(timespec="seconds")
            names = ",".join(sorted(job.name for job in unsettled))
            found |= matching(unsettled, parse_sacct(_ask(*SACCT, f"--name={names}", f"--starttime={since}")))
    except ClusterError:
        return found
    return found


def cancel(jobs: Collection[Reference]) -> None:
    """End jobs for good."""
    for job in jobs:
        _scancel(job)


def _scancel(job: Reference, *options: str) -> None:
    """Signal or end a job by its name, which is unique among the user's jobs; its id may have been reused."""
    _ask("scancel", *options, f"--user={user_name()}", f"--name={job.name}")


def pass_on(successors: Mapping[str, Collection[str]]) -> None:
    """Make jobs that wait for one of the keys wait for the jobs of its value instead."""
    for line in _ask("squeue", "--me", "--noheader", "--states=PENDING", "--format=%i|%E").splitlines():
        job_id, _, dependency = line.partition("|")
        if (changed := pass_on_dependency(dependency, successors)) is not None:
            _ask("scontrol", "update", f"JobId={job_id}", f"Dependency={changed}")


def interruptions() -> dict[str, Callable[[Reference], object]]:
    """Return the ways in which a drill may interrupt a running job."""
    return {
        # without --full, scancel signals what srun started but not the batch shell, so that its teardown runs
        "SIGKILL": lambda job: _scancel(job, "--signal=KILL"),
        "SIGKILL of the whole job": lambda job: _scancel(job, "--signal=KILL", "--full"),
        "SIGTERM": lambda job: _scancel(job, "--signal=TERM"),
        "SIGUSR2": lambda job: _scancel(job, "--signal=USR2"),
        "requeue": lambda job: _ask("scontrol", "requeue", str(job.job_id)),
    }


def this_job() -> ThisJob:
    """Return the job that this process runs in."""
    get = os.environ.get
    memory_mb = int(get("SLURM_MEM_PER_NODE") or int(get("SLURM_MEM_PER_CPU", 0)) * int(get("SLURM_CPUS_ON_NODE", 0)))
    return ThisJob(
        name=os.environ["SLURM_JOB_NAME"],
        job_id=os.environ["SLURM_JOB_ID"],
        restart_count=int(get("SLURM_RESTART_COUNT") or 0),
        node=get("SLURMD_NODENAME", ""),
        devices=tuple(device for device in get("CUDA_VISIBLE_DEVICES", "").split(",") if device),
        memory_gb=memory_mb / 1024 or None,
        node_index=int(get("SLURM_NODEID") or 0),
        address=get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
    )


def end_time(job: ThisJob) -> float | None:
    """Return when the job's time ends; an administrator may have changed it since the last call."""
    try:
        name, _, end = _ask("squeue", "--noheader", f"--jobs={job.job_id}", "--format=%j|%e").strip().partition("|")
    except ClusterError:
        return None
    return None if name != job.name or end in ("", "N/A") else datetime.fromisoformat(end).timestamp()


def standing(job: ThisJob) -> Standing:
    """Return whether Slurm lets this job run, has requeued it, or ends it for good.

    Slurm sends TERM for scancel, preemption and timeout, and a requeue restarts the job in each case. The state is
    COMPLETING in all three. They differ as follows: a preempted job still runs in its grace time, or its number of
    restarts has increased; after a timeout, the time limit has passed.
    """
    try:
        return parse_standing(_show(job), job.restart_count)
    except ClusterError:
        return "running"  # the controller may answer again by the time it is asked to requeue


def _show(job: ThisJob) -> str:
    """Return the attributes of the job that this process runs in.

    Raises:
        ClusterError: Slurm does not answer, or has lost the job and reused its id.
    """
    said = _ask("scontrol", "--oneliner", "show", "job", job.job_id)
    if f" JobName={job.name} " not in said:
        raise ClusterError(f"Slurm has lost the job {job.name} and given its id {job.job_id} to another job")
    return said


def requeue(job: ThisJob, changes: Collection[Cause]) -> bool:
    """Requeue the job that this process runs in; memory and nodes of a Slurm job cannot be changed by then."""
    if changes:
        return False
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            _show(job)
            _ask("scontrol", "requeue", job.job_id)
            return True
        except ClusterError as error:
            if "pending execution" in str(error):  # already requeued, by preemption or an administrator
                return True
        if time.monotonic() > end or _answers():
            return False
        time.sleep(_RETRY_S)  # the controller may be restarting


def _answers() -> bool:
    try:
        return "is UP" in _ask("scontrol", "ping")
    except ClusterError:
        return False


def peak_gb(job: ThisJob) -> float | None:
    """Return the peak memory in GB of the job's last step; waits some seconds until the accounting has it."""
    end = time.monotonic() + _ACCOUNTED_S
    try:
        while (peak := parse_peak(_ask(*PEAK, f"--jobs={job.job_id}"))) is None and time.monotonic() < end:
            time.sleep(_PEAK_RETRY_S)
    except ClusterError:
        return None
    return peak


def largest_memory_gb(site: Site) -> float | None:
    """Return the memory of the largest node of the partition, at most its limit; None if Slurm does not answer."""
    partition = _partition(site)
    try:
        listed = _ask("sinfo", "--noheader", "--Node", "--format=%m", f"--partition={partition['PartitionName']}")
    except (ClusterError, KeyError):
        return None
    largest_mb = max((int(size.rstrip("+")) for size in listed.split()), default=0)
    if (allowed := partition.get("MaxMemPerNode", "")).isdecimal():
        largest_mb = min(largest_mb, int(allowed))
    return largest_mb / 1024 or None


def last_code(code: int) -> int:
    """Return the code unchanged: Slurm does not start a job again for its exit code."""
    return code


def why_restarted(_job: ThisJob) -> Cause:
    """Return "preemption": a start that recorded no end was taken off its node by Slurm and started again."""
    return "preemption"


def note_progress(_job: ThisJob) -> None:
    """Do nothing: Slurm does not count failed starts."""


def _ask(*arguments: str) -> str:
    """Return the output of a Slurm command.

    Raises:
        ClusterError: the command is missing, fails, or does not answer in time.
    """
    try:
        answer = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise ClusterError(
            f"{arguments[0]} is not on the PATH of this machine; use a login node of the cluster, or --site local"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{arguments[0]} did not answer within {_TIMEOUT_S} s; try again later") from error
    if answer.returncode:
        raise ClusterError(f"{shlex.join(arguments[:3])}: {answer.stderr.strip() or answer.stdout.strip()}")
    return answer.stdout


def _said_by(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("sbatch:")]
    return "; ".join(said or lines[-1:] or [type(error).__name__])
