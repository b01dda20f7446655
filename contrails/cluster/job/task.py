"""The process that trains one fold: a child of the launcher, which imports the run's frozen code.

`python -m contrails.cluster.job.task RUN FOLD JOB`, where JOB is a `JobContext` as JSON.
"""

import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from contrails.cluster.environment import shared_python
from contrails.cluster.outcomes import next_step
from contrails.cluster.queue.freeze import require_frozen
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ContrailsError, Stopped
from contrails.processes import end_with
from contrails.progress import tell
from contrails.recipe.reading import parse
from contrails.runs.folder import Fold, Run
from contrails.train.context import JobContext


def main() -> None:
    """Train a fold; the exit code is that of the error."""
    run, fold_key, job = Run(Path(sys.argv[1])), sys.argv[2], JobContext.from_json(sys.argv[3])
    # until training installs its handler, Ctrl-C ends this process without a traceback from the imports
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # the launcher has blocked it
    # if the launcher dies, the training saves its position and stops: the scheduler then regards the job as ended, so
    # no process would watch a fold that trains on, stop it, or record its end
    if job.launcher_pid is not None:
        end_with(job.launcher_pid, signal.SIGTERM)
    try:
        run_task(run.fold(fold_key), job)
    except ContrailsError as error:
        what = f"; {next_step('lost', run)}" if isinstance(error, Stopped) else ""
        tell(f"error: {error}{what}")
        sys.exit(error.exit_code)


def run_task(fold: Fold, job: JobContext) -> None:
    """Train a fold in this process, which must import the run's frozen code."""
    toml = fold.run.toml
    config = fold.run.read_config()
    site = parse(Site, config.site, str(toml))
    require_frozen(fold.run, config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # torch is imported here, after the checks
    from contrails.train.fold import train_fold

    if site.sync and not fold.done.exists():
        _start_sync(fold)
    stage_dir = site.own_stage_dir()
    train_fold(fold, replace(job, stage_dir=None if stage_dir is None else str(stage_dir)))


def _start_sync(fold: Fold) -> None:
    """Start `contrails sync --follow` in a session of its own, so that its failure does not affect training."""
    # not an unpacked Python: the node may remove that at the end of the job, while this still sends
    command = [shared_python(), "-m", "contrails", "sync", str(fold.run.path), "--fold", fold.key, "--follow"]
    with fold.sync_log.open("ab") as log_file:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True)


if __name__ == "__main__":
    main()
