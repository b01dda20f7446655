"""`contrails train`: train one fold in the foreground, for debugging."""

import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import click

from contrails.cli.complete import complete_sites
from contrails.cli.options import name_option, overrides_option, read_recipe, recipe_argument
from contrails.files import storage
from contrails.runs.folder import new_run_path

_FEW_RECORDS = ("train.accumulate=1",)  # with so few records, pieces could have one record, on which batch norm fails
_DEBUG = (
    *("data.limit=8", "train.epochs=2", "train.log_every=1", *_FEW_RECORDS),
    *("train.steps=", "train.warmup_epochs=", "train.warmup_steps="),
)
_LAUNCH = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT]); "
    "from contrails.cluster.job.launch import main; main()"
)
"""Starts the launcher. SIGINT is blocked at first; it is unblocked, and ends the process until it is handled."""


@click.command()
@recipe_argument
@click.option("--fold", default="0", show_default=True, help="Fold to train, or 'all' for every record not held out.")
@name_option
@click.option(
    "--site", "site_name", shell_complete=complete_sites, help="Site profile for this machine; see `contrails sites`."
)
@overrides_option
@click.option("--debug", is_flag=True, help="Print the model and train 2 epochs on 8 records, as run NAME-debug.")
@click.option(
    "--overfit",
    type=click.IntRange(1),
    metavar="N",
    help="Train and validate on the same N records, as run NAME-overfit.",
)
def train(
    path: Path | None,
    fold: str,
    name: str | None,
    site_name: str | None,
    overrides: tuple[str, ...],
    debug: bool,
    overfit: int | None,
) -> None:
    """Train one fold of RECIPE in the foreground.

    RECIPE defaults to jobs/default.toml. Ctrl-C writes a snapshot and ends; the same command continues from it, except
    that --debug and --overfit start again.

    \b
    Example:
      contrails train --fold 0 --debug
      contrails train jobs/default.toml --overfit 3 -o train.epochs=100
    """
    from contrails.cluster.queue import own_code
    from contrails.cluster.queue.freeze import job_environment
    from contrails.cluster.schedulers.sites import THIS_MACHINE, find_site
    from contrails.cluster.submit.create import choose_folds, create_run

    if debug and overfit:
        raise click.UsageError("give --debug or --overfit, not both")
    extra = _DEBUG if debug else (f"data.overfit={overfit}", *_FEW_RECORDS) if overfit else ()
    chosen, recipe = read_recipe(path, (*extra, *overrides))
    keys = choose_folds(recipe, None, fold)
    if len(keys) != 1:
        raise click.UsageError(
            f"--fold {fold}: expected one fold; to train several, run `contrails submit --fold {shlex.quote(fold)}`"
        )
    base, site = name or chosen.stem, find_site(site_name or THIS_MACHINE)
    if extra:
        base = f"{base}-{'debug' if debug else 'overfit'}"
        _remove(new_run_path(base))
    run, config = create_run(recipe, site, base, keys)
    if not own_code.is_imported(config):
        own_code.become(run, config, ["train", own_code.own_recipe(run), "--name", run.name, "--fold", keys[0]])
    run.fold(keys[0]).path.mkdir(parents=True, exist_ok=True)
    click.echo(f"run folder: {run.path}", err=True)
    arguments = ["-c", _LAUNCH, str(run.path), keys[0], *(["--summary"] if debug else [])]
    # exec, not a child: the launcher runs from the frozen code, and Ctrl-C reaches only it and the training
    sys.stdout.flush()
    environment = dict(os.environ) | job_environment(run, config.compute.num_threads)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606


def _remove(path: Path) -> None:
    """Remove an earlier debug run."""
    with storage(path, "remove"):
        if path.exists():
            shutil.rmtree(path)
