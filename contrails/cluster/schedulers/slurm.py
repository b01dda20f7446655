"""Slurm: jobs through submitit, its state through squeue and sacct, and the way back into the queue from inside a job.

submitit names the files of a job and runs the pickled function under srun, which is what gets the scheduler's signals.
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
    """Ask Slurm whether partition, account, limits and nodes can satisfy the site.

    It takes jobs that are longer than their partition allows, and lets them wait for ever.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "test.sh"
        path.write_text(script(Path(name), site, Request("ctdoctor", "builtins:print", ())))
        *before, _ = command(path)
        line = [*before, "--test-only", str(path)]
        answer = subprocess.run(line, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    said = [line for line in answer.stderr.splitlines() if line.startswith("sbatch:")] or [answer.stderr.strip()]
    advice = f"change the profile of {site.name}; `sinfo` and `scontrol show partition` say what there is"
    yield Check("partition and limits", answer.returncode == 0, said[-1], advice)
    limit_s = parse_duration(_partition(site).get("MaxTime", ""))
    found = f"{site.walltime_min} min, the partition allows {'any' if limit_s is None else f'{limit_s / 60:.0f} min'}"
    yield Check("walltime", limit_s is None or 60 * site.walltime_min <= limit_s, found, "lower walltime_min")


def _partition(site: Site) -> dict[str, str]:
    """Return what Slurm says about the site's partition, or else the default one; empty if it does not say."""
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
    """Give the pickle the name under which the job looks for it, for a minute, and then gives up."""
    if pickle.exists():
        pickle.rename(job_pickle(folder, job_id))


def look(jobs: Collection[Reference]) -> dict[str, Job]:
    """Return what Slurm knows of these jobs: one call of squeue, and sacct only for those that it has forgotten."""
    found = matching(jobs, parse_squeue(_ask(*SQUEUE)))
    return found | _look_back([job for job in jobs if job.name not in found])


def _look_back(jobs: Collection[Reference]) -> dict[str, Job]:
    """Ask the accounting, which is not everywhere: then what squeue has forgotten is unknown."""
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
    """Signal or end a job by its name alone, which no other job of this user has: its id may be another's by now."""
    _ask("scancel", *options, f"--user={user_name()}", f"--name={job.name}")


def pass_on(successors: Mapping[str, Collection[str]]) -> None:
    """Have jobs that wait for one of these, the keys, wait for the jobs in its place instead."""
    for line in _ask("squeue", "--me", "--noheader", "--states=PENDING", "--format=%i|%E").splitlines():
        job_id, _, dependency = line.partition("|")
        if (changed := pass_on_dependency(dependency, successors)) is not None:
            _ask("scontrol", "update", f"JobId={job_id}", f"Dependency={changed}")


def interruptions() -> dict[str, Callable[[Reference], object]]:
    """Return what a drill may do to a running job."""
    return {
        # without --full scancel signals what srun started, and not the batch shell, whose teardown acts then
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
    )


def end_time(job: ThisJob) -> float | None:
    """Return when the job's time is over; an administrator may have changed it since the last call."""
    try:
        name, _, end = _ask("squeue", "--noheader", f"--jobs={job.job_id}", "--format=%j|%e").strip().partition("|")
    except ClusterError:
        return None
    return None if name != job.name or end in ("", "N/A") else datetime.fromisoformat(end).timestamp()


def standing(job: ThisJob) -> Standing:
    """Return whether Slurm lets this job run, has requeued it, or ends it for good.

    Slurm sends TERM for scancel, for preemption and for a time that is over, and a requeue brings back a job in any of
    these cases. Its state is COMPLETING in all of them; what tells them apart is that a preempted job still runs in its
    grace time or counts a restart already, and that the time was over or not.
    """
    try:
        return parse_standing(_show(job), job.restart_count)
    except ClusterError:
        return "running"  # the controller may answer again when it is asked to requeue


def _show(job: ThisJob) -> str:
    """Return what Slurm says about the job that this process runs in.

    Raises:
        ClusterError: it does not answer, or has lost the job and given its id to another one.
    """
    said = _ask("scontrol", "--oneliner", "show", "job", job.job_id)
    if f" JobName={job.name} " not in said:
        raise ClusterError(f"Slurm has lost the job {job.name}, and given its id {job.job_id} to another one")
    return said


def requeue(job: ThisJob, changes: Collection[Cause]) -> bool:
    """Have the job that this process runs in start again later; its memory and nodes can no longer be changed."""
    if changes:
        return False
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            _show(job)
            _ask("scontrol", "requeue", job.job_id)
            return True
        except ClusterError as error:
            if "pending execution" in str(error):  # somebody was faster: preemption, or an administrator
                return True
        if time.monotonic() > end or _answers():
            return False
        time.sleep(_RETRY_S)  # a controller that is restarted comes back


def _answers() -> bool:
    try:
        return "is UP" in _ask("scontrol", "ping")
    except ClusterError:
        return False


def peak_gb(job: ThisJob) -> float | None:
    """Return the most memory that the job's last step has used, once the accounting knows of its end."""
    end = time.monotonic() + _ACCOUNTED_S
    try:
        while (peak := parse_peak(_ask(*PEAK, f"--jobs={job.job_id}"))) is None and time.monotonic() < end:
            time.sleep(_PEAK_RETRY_S)
    except ClusterError:
        return None
    return peak


def largest_memory_gb(site: Site) -> float | None:
    """Return the memory of the largest node of the site's partition, or what that allows; None if Slurm is silent."""
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
    """Return the code as it is: Slurm starts no job again for its exit code."""
    return code


def why_restarted(_job: ThisJob) -> Cause:
    """Return why a start of the job left no word: Slurm took its node away, and started it again."""
    return "preemption"


def note_progress(_job: ThisJob) -> None:
    """Do nothing: Slurm counts no starts."""


def _ask(*arguments: str) -> str:
    """Run a command of Slurm and return what it prints.

    Raises:
        ClusterError: it is not there, fails, or does not answer.
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
