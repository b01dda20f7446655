"""A command split over several jobs: one job per shard, and a last one that starts when all have succeeded.

Packing a dataset file and predicting out of fold use it. The jobs' files are in `.<name>.jobs` beside the output, as
in a run folder: frozen code, journal, submitit's files.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contrails.cluster.queue.command import command_request
from contrails.cluster.queue.freeze import freeze_code, imported_code
from contrails.cluster.queue.submission import reconcile, submit_job, submitting
from contrails.cluster.schedulers.base import Job, scheduler_of
from contrails.cluster.schedulers.sites import Site, require_scheduler
from contrails.dataset.layout import shard_path
from contrails.errors import ClusterError
from contrails.runs.folder import Run


@dataclass(frozen=True)
class ShardJob:
    """One job: the beginning of its name, the words of its command, and whether its output already exists."""

    what: str
    words: list[str]
    complete: bool = False


def submit_packing(raw: Path, out: Path, options: list[str], num_jobs: int, site: Site) -> dict[str, str]:
    """Submit jobs for the missing shards of a dataset file; return the outcome of each; raises as `submit_shards`."""
    jobs = {}
    for index in range(1, num_jobs + 1):
        part = shard_path(out, index, num_jobs)
        words = ["prepare", str(raw.absolute()), str(out.absolute()), *options, "--shard", f"{index}/{num_jobs}"]
        jobs[part.name] = ShardJob(f"p{index}", words, complete=part.exists() or out.exists())
    jobs[out.name] = ShardJob("j0", ["data", "join", str(out.absolute())], complete=out.exists())
    return submit_shards(out, jobs, site.model_copy(update={"num_gpus": 0}))


def submit_aggregation(folder: Path, words: list[str], num_jobs: int, site: Site) -> dict[str, str]:
    """Submit jobs that predict out of fold, and one that makes the ensemble after them; raises as `submit_shards`.

    Args:
        folder: folder of the ensemble.
        words: the words of the command without --shard, with absolute paths.
        num_jobs: number of shards.
        site: site of the jobs.
    """
    jobs = {
        f"out of fold {index}/{num_jobs}": ShardJob(f"p{index}", [*words, "--shard", f"{index}/{num_jobs}"])
        for index in range(1, num_jobs + 1)
    }
    return submit_shards(folder, jobs | {"ensemble": ShardJob("j0", words)}, site)


def submit_shards(made: Path, jobs: Mapping[str, ShardJob], site: Site) -> dict[str, str]:
    """Submit a job for each shard that is neither complete nor queued or running; the last waits for all others.

    Raises:
        ClusterError: the site has no scheduler; it refuses; or jobs of another version of the code still exist.
        RecipeError: the site lacks a file that its profile names.
    """
    if not scheduler_of(site).CAPABILITIES.has_queue:
        raise ClusterError(f"--jobs needs a site with a scheduler, {site.name} is this machine; leave --jobs out")
    require_scheduler(site)
    site = site.with_files()
    run = Run(made.absolute().with_name(f".{made.name}.jobs"))
    run.create_folder()
    outcome: dict[str, str] = {}
    submitted: dict[str, Path] = {}
    last = list(jobs)[-1]
    with submitting(run):
        alive = _alive(run, site)
        if not alive and run.code.exists():  # left by an earlier try, perhaps with a bug that was fixed since
            shutil.rmtree(run.code)
        if freeze_code(run) != imported_code():
            names = ", ".join(job.job_id for job in alive.values())
            raise ClusterError(
                f"expected the jobs {names} that make {made} to run this version of the code, found another version; "
                "wait until they end, then run the same command again"
            )
        for name, shard in jobs.items():
            if shard.complete:
                outcome[name] = "complete"
                continue
            job_id, folder = _submit(run, site, shard, submitted if name == last else {}, alive)
            submitted[job_id] = folder
            waiting = [job.native for job in alive.values() if job.job_id == job_id and job.state == "waiting"]
            outcome[name] = ", ".join([f"job {job_id}", *waiting])
    return outcome


def _alive(run: Run, site: Site) -> dict[str, Job]:
    """Return the jobs that are queued or running, by name."""
    return {name: job for name, job in reconcile(run, site).items() if job.state != "ended"}


def _submit(
    run: Run, site: Site, shard: ShardJob, after: Mapping[str, Path], alive: dict[str, Job]
) -> tuple[str, Path]:
    """Submit the job of a shard unless it exists; return its id and submitit's folder."""
    request = command_request(run, shard.what, shard.words, site.num_cpus, after=after)
    stem = request.name.rpartition("a")[0]
    living = [name for name in alive if name.rpartition("a")[0] == stem]
    if living:
        return alive[living[0]].job_id, run.job_folder(living[0])
    return submit_job(run, site, request), run.job_folder(request.name)
