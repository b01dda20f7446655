"""`contrails doctor`: check whether folds can run at a site, and say how to fix what fails."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from contrails.cli.complete import complete_sites
from contrails.cli.options import FilePath, json_option
from contrails.errors import NodeError


@click.command()
@click.option(
    "--site", "site_name", shell_complete=complete_sites, help="Site to check; default: as `contrails sites` shows."
)
@click.option("--recipe", type=FilePath(), help="Also check that a job has enough memory for this recipe's dataset.")
@click.option("--job", is_flag=True, help="Also check a compute node, with a small job.")
@click.option("--node", is_flag=True, help="Check only this machine, as a node that trains.")
@json_option
def doctor(site_name: str | None, recipe: Path | None, job: bool, node: bool, as_json: bool) -> None:
    """Check the scheduler, the environment and the GPU of a site.

    Also checks the site's limits, files and clock, and the W&B server. Exit code 9 means that a check failed.

    \b
    Example:
      contrails doctor --site mycluster --job
    """
    from contrails.cluster.check.doctor import check_by_job, check_node, check_site
    from contrails.cluster.schedulers.base import Check, scheduler_of
    from contrails.cluster.schedulers.sites import find_site
    from contrails.recipe.recipe import load_recipe
    from contrails.runs.folder import Run, runs_root
    from contrails.tracking.check import check_wandb

    site = find_site(site_name)
    checks: list[Check] = []
    if not node:
        checks += check_site(site, runs_root(), load_recipe(recipe) if recipe else None)
        checks.append(check_wandb())
    if node or scheduler_of(site).CAPABILITIES.runs_here:
        checks += check_node(site, runs_root())
    if job:
        checks += check_by_job(site, Run(runs_root() / ".doctor"))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            click.echo(f"{'ok  ' if check.holds else 'FAIL'} {check.name}: {check.found}")
            if not check.holds:
                click.echo(f"     {check.advice}")
    failed = [check.name for check in checks if not check.holds]
    if failed and not as_json:
        raise NodeError(f"these checks failed: {', '.join(failed)}; follow the advice below each of them")
    if failed:
        sys.exit(NodeError.exit_code)
