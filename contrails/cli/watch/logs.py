"""`contrails logs`: print the output of a fold's attempts, across restarts."""

import shlex
import time
from pathlib import Path

import click

from contrails.cli.complete import complete_runs
from contrails.cluster.queue.journal import last_submission
from contrails.cluster.status.fold_state import ALIVE, DAMAGED
from contrails.cluster.status.overview import overview
from contrails.errors import RunError
from contrails.runs.folder import Attempt, Fold, open_run

_POLL_S = 0.5
_LOOK_S = 15.0


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=complete_runs)
@click.option("--fold", default="0", show_default=True, help="Number of the fold, or 'all'.")
@click.option("-f", "--follow", is_flag=True, help="Keep printing new output, also of later attempts.")
@click.option(
    "-n", "--lines", type=click.IntRange(1), default=40, show_default=True, help="Number of last lines to print first."
)
def logs(run_name: str, fold: str, follow: bool, lines: int) -> None:
    """Print the log of a fold's newest attempt.

    If no attempt has written anything yet, prints the log of the fold's job.

    \b
    Example:
      contrails logs default --fold 2 -f
    """
    chosen = open_run(run_name).fold(fold)
    if not chosen.path.is_dir():
        raise RunError(f"{run_name} has no fold {fold}; list its folds with `contrails status {shlex.quote(run_name)}`")
    first = max((attempt.number for attempt in chosen.attempts() if _outputs(attempt)), default=1)
    files = _files(chosen, first)
    for path in files:
        _print_end(path, lines)
    if not files and not follow:
        click.echo(_why_none(chosen), err=True)
    if follow:
        _follow(chosen, first, {path: path.stat().st_size for path in files})


def _why_none(fold: Fold) -> str:
    """Return the reason why there is no log, with the next step."""
    look = f"look at it with `contrails status {fold.run.typed}`"
    attempts = fold.attempts()
    if attempts and not any(attempt.stdout.exists() or attempt.stderr.exists() for attempt in attempts):
        return (
            f"fold {fold.key} has no log: it was trained in the foreground, and its output went to the terminal; {look}"
        )
    return f"fold {fold.key} has written nothing yet; {look}"


def _files(fold: Fold, first: int) -> list[Path]:
    """Return the existing logs of the attempts from `first` on; without attempts, those of the fold's job."""
    attempts = [attempt for attempt in fold.attempts() if attempt.number >= first]
    if not attempts and (job := last_submission(fold.run, fold.key)) is not None:
        return _written(*(job.log(fold.run, stream) for stream in ("out", "err")))
    return [path for attempt in attempts for path in _outputs(attempt)]


def _outputs(attempt: Attempt) -> list[Path]:
    return _written(attempt.stdout, attempt.stderr)


def _written(*paths: Path) -> list[Path]:
    return [path for path in paths if path.exists() and path.stat().st_size]


def _print_end(path: Path, lines: int) -> None:
    click.echo(f"==> {path} <==")
    click.echo("\n".join(path.read_text(errors="replace").splitlines()[-lines:]))


def _follow(fold: Fold, first: int, read: dict[Path, int]) -> None:
    """Print what the attempts from `first` on write, until the fold is neither queued nor running."""
    state, looked = "waiting", time.monotonic()
    while True:
        if time.monotonic() - looked >= _LOOK_S or fold.done.exists():
            looked = time.monotonic()
            state = next((row.state for row in overview([fold.run])[fold.run] if row.fold == fold.key), DAMAGED)
        for path in _files(fold, first):  # after the state was read, so that the last output is not missed
            if path not in read:
                click.echo(f"==> {path} <==")
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                click.echo(file.read().decode(errors="replace"), nl=False)
                read[path] = file.tell()
        if state not in ALIVE:
            click.echo(f"fold {fold.key}: {state}", err=True)
            return
        time.sleep(_POLL_S)
