"""A dataset packed by several jobs: one a shard, and one that joins them when all have succeeded.

Everything lies in `.<name>.jobs` beside the dataset file, made like a run: frozen code, journal, submitit's files.
"""

import shutil
from pathlib import Path

from contrails.cluster.command import command_request
from contrails.cluster.freeze import freeze_code
from contrails.cluster.sites import Site
from contrails.cluster.submission import reconcile, submit_job, submitting
from contrails.data.layout import shard_path
from contrails.errors import ClusterError
from contrails.runs import Run


def submit_shards(raw: Path, out: Path, options: list[str], num_jobs: int, site: Site) -> dict[str, str]:
    """Submit what is missing of a dataset file, and return what happened to each part.

    Raises:
        ClusterError: the site has no scheduler, or it refuses.
    """
    if site.scheduler == "local":
        raise ClusterError(f"--jobs needs a site with a scheduler, {site.name} is this machine; leave --jobs out")
    site = site.model_copy(update={"num_gpus": 0})
    run = Run(out.absolute().with_name(f".{out.name}.jobs"))
    run.create_folder()
    outcome, ids = {}, []
    with submitting(run):
        alive = _alive(run, site)
        if not alive and run.code.exists():  # of an earlier try, maybe with a fault that was mended since
            shutil.rmtree(run.code)
        freeze_code(run)
        for index in range(1, num_jobs + 1):
            part = shard_path(out, index, num_jobs)
            words = ["prepare", str(raw.absolute()), str(out.absolute()), *options, "--shard", f"{index}/{num_jobs}"]
            if part.exists() or out.exists():
                outcome[part.name] = "complete"
                continue
            ids.append(_submit(run, site, f"p{index}", words, [], alive))
            outcome[part.name] = f"job {ids[-1]}"
        join = ["data", "join", str(out.absolute())]
        outcome[out.name] = "complete" if out.exists() else f"job {_submit(run, site, 'j0', join, ids, alive)}"
    return outcome


def _alive(run: Run, site: Site) -> dict[str, str]:
    """Return the id of each job that waits or runs, by its name."""
    return {job.name: job_id for job_id, job in reconcile(run, site).items() if job.state != "ended"}


def _submit(run: Run, site: Site, what: str, words: list[str], after: list[str], alive: dict[str, str]) -> str:
    waits_for = dict.fromkeys(after, run.submitit)
    request = command_request(run, what, words, site.num_cpus, after=waits_for)
    stem = request.name.rpartition("a")[0]
    living = [job_id for name, job_id in alive.items() if name.rpartition("a")[0] == stem]
    return living[0] if living else submit_job(run, site, request)
