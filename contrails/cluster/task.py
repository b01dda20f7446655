"""What a job runs: one fold of a run, from its frozen code.

submitit pickles `run_fold` by name with a folder and a fold, nothing else; everything else is read from the run folder
when the job starts. `python -m contrails.cluster.task RUN FOLD` does the same in the foreground.
"""

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contrails.cluster.freeze import require_frozen
from contrails.cluster.sites import Site
from contrails.config import RunConfig, parse, read_toml
from contrails.errors import ContrailsError
from contrails.files import storage
from contrails.runs import Fold, Run

log = logging.getLogger(__name__)


def run_fold(run_path: str, fold_key: str) -> None:
    """Train a fold in a job: wait for a place on this machine, then train with the output in the attempt's logs."""
    # submitit lets TERM pass by; until training handles it, it ends the job
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run = Run(Path(run_path))
    config = parse(RunConfig, read_toml(run.toml, "a run"), str(run.toml))
    site = parse(Site, config.site, str(run.toml))
    with _place(run, site) as place:
        if config.compute.device == "cuda":
            os.environ["CUDA_VISIBLE_DEVICES"] = str(place)
        job = {"scheduler": site.scheduler, "job_id": os.environ.get("SUBMITIT_LOCAL_JOB_ID"), "redirect": True}
        train(run.fold(fold_key), config, site, job)


def train(fold: Fold, config: RunConfig, site: Site, job: dict[str, Any]) -> None:
    """Train a fold in this process, which must import the run's frozen code."""
    require_frozen(fold.run, config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # torch is imported here, after a place was found: a waiting job costs 30 MB
    from contrails.train.fold import train_fold

    if site.sync and not fold.done.exists():
        _start_sync(fold)
    train_fold(fold, {"restart_count": 0, "stage_dir": site.stage_dir} | job)


@contextmanager
def _place(run: Run, site: Site) -> Iterator[int]:
    """Hold one of the machine's places; the kernel frees it when the process ends, however it ends."""
    folder = run.path.parent / ".places"
    with storage(folder, "create"):
        folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for place in range(site.folds_at_a_time):
            with (folder / f"{socket.gethostname()}-{place}.lock").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield place
                return
        time.sleep(0.5)


def _start_sync(fold: Fold) -> None:
    """Start `contrails sync --follow` in a session of its own: nothing that happens to it touches training."""
    command = [sys.executable, "-m", "contrails", "sync", str(fold.run.path), "--fold", fold.key, "--follow"]
    with (fold.path / "sync.log").open("ab") as log_file:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True)


def main() -> None:
    """Train a fold in the foreground; the exit code is that of the error."""
    run, fold_key = Run(Path(sys.argv[1])), sys.argv[2]
    try:
        config = parse(RunConfig, read_toml(run.toml, "a run"), str(run.toml))
        site = parse(Site, config.site, str(run.toml))
        train(run.fold(fold_key), config, site, {"scheduler": None, "job_id": None, "summary": "--summary" in sys.argv})
    except ContrailsError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
