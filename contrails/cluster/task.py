"""What trains one fold: a process of its own, a child of the launcher, from the run's frozen code.

`python -m contrails.cluster.task RUN FOLD JOB`, where JOB is JSON: what `train_fold` is told about the job, and
`launcher_pid`, the process that started this one.
"""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from contrails.cluster.ends import next_step
from contrails.cluster.freeze import require_frozen
from contrails.cluster.sites import Site
from contrails.errors import ContrailsError, Stopped
from contrails.parent import end_with
from contrails.progress import tell
from contrails.runs import Fold, Run
from contrails.sections.reading import parse


def main() -> None:
    """Train a fold; the exit code is that of the error."""
    run, fold_key, job = Run(Path(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
    # until training handles it, Ctrl-C just ends this process, without a traceback of what was being imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # the launcher has held it back
    # it saves its position then and stops: a scheduler that kills the launcher takes the job for ended, and nobody
    # would see, stop or account for a fold that trains on
    end_with(job["launcher_pid"], signal.SIGTERM)
    try:
        train(run.fold(fold_key), job)
    except ContrailsError as error:
        what = f"; {next_step('lost', run)}" if isinstance(error, Stopped) else ""
        tell(f"error: {error}{what}")
        sys.exit(error.exit_code)


def train(fold: Fold, job: dict[str, Any]) -> None:
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
    train_fold(fold, {"restart_count": 0, "stage_dir": site.own_stage_dir()} | job)


def _start_sync(fold: Fold) -> None:
    """Start `contrails sync --follow` in a session of its own: nothing that happens to it touches training."""
    command = [sys.executable, "-m", "contrails", "sync", str(fold.run.path), "--fold", fold.key, "--follow"]
    with (fold.path / "sync.log").open("ab") as log_file:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True)


if __name__ == "__main__":
    main()
