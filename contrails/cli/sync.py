"""`contrails sync`: metrics to Weights & Biases, from the login node or beside a job."""

import signal
from functools import partial

import click

from contrails.cluster.states import ALIVE, fold_state
from contrails.errors import RunError
from contrails.runs import Fold, open_run


@click.command()
@click.argument("run_name", metavar="RUN")
@click.option("--fold", help="One fold only.")
@click.option("--follow", is_flag=True, help="Keep up to date until the folds end.")
def sync(run_name: str, fold: str | None, follow: bool) -> None:
    """Send the metrics of RUN to Weights & Biases: one W&B run a fold, grouped by run.

    Only rows that a snapshot covers are sent, each once. Without a key they go into offline files in the fold's
    folder, which `wandb sync` sends from a machine that has one.

    \b
    Example:
      contrails sync default
    """
    from contrails.tracking.projection import follow_fold, has_key, sync_fold

    run = open_run(run_name)
    folds = [run.fold(fold)] if fold is not None else run.folds()
    if not any(each.path.is_dir() for each in folds):
        raise RunError(f"{run.name} has no fold {fold or 'yet'}; look with `contrails status {run.name}`")
    if not has_key():
        click.echo("no W&B key (WANDB_API_KEY or `wandb login`): writing offline files", err=True)
    if follow:
        # a scheduler signals all processes of the job that this one runs beside; it sends what is left, then ends
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
    for each in folds:
        rows = sum(follow_fold(each, partial(_ended, each))) if follow else sync_fold(each)
        click.echo(f"fold {each.key}: {rows} rows {'sent' if has_key() else 'written'}")


def _ended(fold: Fold) -> bool:
    # "not submitted": a training in the foreground that starts this process just before its own first attempt
    return fold_state(fold).state not in ALIVE | {"not submitted"}
