"""A command shared by several jobs: one a shard, and one that comes when all have succeeded.

Packing a dataset file and predicting out of fold go this way. Everything lies in `.<name>.jobs` beside what is made,
like a run: frozen code, journal, submitit's files.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contrails.cluster.queue.command import command_request
from contrails.cluster.queue.freeze import freeze_code, imported_code
from contrails.cluster.queue.submission import reconcile, submit_job, submitting
from contrails.cluster.schedulers.base import Job, scheduler_of
from contrails.cluster.schedulers.sites import Site
from contrails.dataset.layout import shard_path
from contrails.errors import ClusterError
from contrails.runs.folder import Run


@dataclass(frozen=True)
class ShardJob:
    """A part of the work: what begins its job's name, the command's words, and whether it is there already."""

    what: str
    words: list[str]
    complete: bool = False


def submit_packing(raw: Path, out: Path, options: list[str], num_jobs: int, site: Site) -> dict[str, str]:
    """Submit what is missing of a dataset file, and return what happened to each part; raises as `submit_shards`."""
    shares = {}
    for index in range(1, num_jobs + 1):
        part = shard_path(out, index, num_jobs)
        words = ["prepare", str(raw.absolute()), str(out.absolute()), *options, "--shard", f"{index}/{num_jobs}"]
        shares[part.name] = ShardJob(f"p{index}", words, complete=part.exists() or out.exists())
    shares[out.name] = ShardJob("j0", ["data", "join", str(out.absolute())], complete=out.exists())
    return submit_shards(out, shares, site.model_copy(update={"num_gpus": 0}))


def submit_aggregation(folder: Path, words: list[str], num_jobs: int, site: Site) -> dict[str, str]:
    """Submit out-of-fold predictions in shares, and the ensemble after them; raises as `submit_shards`.

    Args:
        folder: of the ensemble.
        words: the command without --shard, with absolute paths.
        num_jobs: shares.
        site: where.
    """
    shares = {
        f"out of fold {index}/{num_jobs}": ShardJob(f"p{index}", [*words, "--shard", f"{index}/{num_jobs}"])
        for index in range(1, num_jobs + 1)
    }
    return submit_shards(folder, shares | {"ensemble": ShardJob("j0", words)}, site)


def submit_shards(made: Path, shares: Mapping[str, ShardJob], site: Site) -> dict[str, str]:
    """Submit a job for each share that is neither complete nor alive; the last one waits for all others.

    Raises:
        ClusterError: the site has no scheduler, or it refuses, or jobs of another version of the code are alive.
    """
    if not scheduler_of(site).CAPABILITIES.has_queue:
        raise ClusterError(f"--jobs needs a site with a scheduler, {site.name} is this machine; leave --jobs out")
    run = Run(made.absolute().with_name(f".{made.name}.jobs"))
    run.create_folder()
    outcome: dict[str, str] = {}
    submitted: dict[str, Path] = {}
    last = list(shares)[-1]
    with submitting(run):
        alive = _alive(run, site)
        if not alive and run.code.exists():  # of an earlier try, maybe with a fault that was mended since
            shutil.rmtree(run.code)
        if freeze_code(run) != imported_code():
            names = ", ".join(job.job_id for job in alive.values())
            raise ClusterError(
                f"the jobs {names} that make {made} run the code of an earlier version, found another one here; wait "
                "for their end, then give the same command again"
            )
        for name, share in shares.items():
            if share.complete:
                outcome[name] = "complete"
                continue
            job_id, folder = _submit(run, site, share, submitted if name == last else {}, alive)
            submitted[job_id] = folder
            waiting = [job.native for job in alive.values() if job.job_id == job_id and job.state == "waiting"]
            outcome[name] = ", ".join([f"job {job_id}", *waiting])
    return outcome


def _alive(run: Run, site: Site) -> dict[str, Job]:
    """Return the jobs that wait or run, by name."""
    return {name: job for name, job in reconcile(run, site).items() if job.state != "ended"}


def _submit(
    run: Run, site: Site, share: ShardJob, after: Mapping[str, Path], alive: dict[str, Job]
) -> tuple[str, Path]:
    """Return the id and submitit's folder of the job of a share, which is submitted unless it lives."""
    request = command_request(run, share.what, share.words, site.num_cpus, after=after)
    stem = request.name.rpartition("a")[0]
    living = [name for name in alive if name.rpartition("a")[0] == stem]
    if living:
        return alive[living[0]].job_id, run.job_folder(living[0])
    return submit_job(run, site, request), run.job_folder(request.name)
