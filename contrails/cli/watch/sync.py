"""`contrails sync`: send metrics and aggregations to Weights & Biases, from the login node or beside a job."""

import signal

import click

from contrails.cli.complete import complete_runs
from contrails.cluster.status.fold_state import ALIVE, fold_state
from contrails.errors import RunError, TrackingError
from contrails.runs.folder import Fold, Run, open_run


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=complete_runs)
@click.option("--fold", help="Number of the only fold to send, without aggregations; default: all folds.")
@click.option("--follow", is_flag=True, help="Send new rows until the folds end, then exit.")
@click.option("--rebuild", is_flag=True, help="Make new W&B runs for those that were deleted or cannot be continued.")
def sync(run_name: str, fold: str | None, follow: bool, rebuild: bool) -> None:
    """Send RUN to Weights & Biases.

    Makes one W&B run per fold and one per aggregation, in one group per run. Sends each row once, as soon as a
    snapshot covers it. Without a W&B key, or with WANDB_MODE=offline, writes offline files into the fold's folder;
    `wandb sync` sends them from a machine that has a key.

    Run --follow on the login node: `nohup contrails sync RUN --follow &`. With `sync = true` in the site profile,
    each fold starts one inside its job. It ends with the job (under Slurm with the job step); the next one, or this
    command at any time, sends what is left.

    \b
    Example:
      contrails sync default
      contrails sync default --follow
    """
    from contrails.tracking.account import find_account

    if follow and rebuild:
        raise click.UsageError("--follow and --rebuild: rebuild first, then follow")
    run = open_run(run_name)
    folds = [run.fold(fold)] if fold is not None else run.folds()
    if not any(each.path.is_dir() for each in folds):
        raise RunError(f"{run.name} has no fold {fold or 'yet'}; list its folds with `contrails status {run.typed}`")
    if not find_account().online:
        click.echo(
            "no W&B key (WANDB_API_KEY or `wandb login`), or WANDB_MODE=offline: writing offline files", err=True
        )
    if follow:
        # a scheduler signals all processes of a job; this one ignores that, and sends the last rows after the training
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        _follow(run, folds)
    _send(run, folds, aggregations=fold is None, rebuild=rebuild)


def _follow(run: Run, folds: list[Fold]) -> None:
    from contrails.tracking.projection import follow

    told: dict[str, str] = {}
    for sent in follow(run, folds, _ended):
        name = sent.item.name
        if sent.said:
            click.echo(f"{name}: {sent.said}", err=True)
        if sent.error is not None and told.get(name) != sent.error:
            click.echo(f"warning: {name}: {sent.error}", err=True)
            told[name] = sent.error
        elif sent.rows:
            click.echo(f"{name}: {sent.rows} rows")
            told.pop(name, None)


def _send(run: Run, folds: list[Fold], *, aggregations: bool, rebuild: bool) -> None:
    """Send folds and aggregations; a failed one does not stop the others."""
    from contrails.tracking.plan import items_of
    from contrails.tracking.projection import Projection

    problems = []
    with Projection(run) as projection:
        for sent in projection.send(items_of(run, folds, aggregations=aggregations), rebuild=rebuild):
            if sent.error is not None:
                problems.append(f"{sent.item.name}: {sent.error}")
                continue
            if sent.said:
                click.echo(f"{sent.item.name}: {sent.said}", err=True)
            new = f"{sent.rows} rows" if sent.item.fold else "scores and samples"
            click.echo(f"{sent.item.name}: {new if sent.rows else 'nothing new'}")
    if problems:
        raise TrackingError("\n".join(problems))


def _ended(fold: Fold) -> bool:
    # "not submitted": a training in the foreground starts this process just before its first attempt
    return fold_state(fold).state not in ALIVE | {"not submitted"}
