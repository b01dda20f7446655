"""`contrails logs`: what a fold's attempts wrote, across restarts."""

import time
from pathlib import Path

import click

from contrails.cluster.journal import last_submission
from contrails.cluster.overview import overview
from contrails.cluster.states import ALIVE
from contrails.errors import RunError
from contrails.runs import Fold, open_run

_POLL_S = 0.5
_LOOK_S = 15.0


@click.command()
@click.argument("run_name", metavar="RUN")
@click.option("--fold", default="0", show_default=True, help="Number of the fold, or 'all'.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, also by later attempts.")
@click.option("-n", "--lines", type=click.IntRange(1), default=40, show_default=True, help="Lines to begin with.")
def logs(run_name: str, fold: str, follow: bool, lines: int) -> None:
    """Print the log of a fold's newest attempt; where there is none yet, that of its job.

    \b
    Example:
      contrails logs default --fold 2 -f
    """
    chosen = open_run(run_name).fold(fold)
    if not chosen.path.is_dir():
        raise RunError(f"{run_name} has no fold {fold}; look with `contrails status {run_name}`")
    files = _files(chosen)
    for path in files:
        _print_end(path, lines)
    if follow:
        _follow(chosen, {path: path.stat().st_size for path in files})


def _files(fold: Fold) -> list[Path]:
    """Return the logs that there are: the newest attempt's, or else the job's."""
    attempts = fold.attempts()
    if attempts:
        found = [attempts[-1].stdout, attempts[-1].stderr]
    else:
        job = last_submission(fold.run, fold.key)
        found = [fold.run.submitit / f"{job.job_id}_0_log.{end}" for end in ("out", "err")] if job else []
    return [path for path in found if path.exists() and path.stat().st_size]


def _print_end(path: Path, lines: int) -> None:
    click.echo(f"==> {path} <==")
    click.echo("\n".join(path.read_text(errors="replace").splitlines()[-lines:]))


def _follow(fold: Fold, read: dict[Path, int]) -> None:
    """Print what is added, until nobody trains the fold any more."""
    looked = time.monotonic()
    while True:
        for path in _files(fold):
            if path not in read:
                click.echo(f"==> {path} <==")
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                click.echo(file.read().decode(errors="replace"), nl=False)
                read[path] = file.tell()
        if time.monotonic() - looked >= _LOOK_S or fold.done.exists():
            looked = time.monotonic()
            states = {row.fold: row.state for row in overview([fold.run])[fold.run]}
            if states[fold.key] not in ALIVE:
                click.echo(f"fold {fold.key}: {states[fold.key]}", err=True)
                return
        time.sleep(_POLL_S)
