"""`contrails doctor`: whether folds can run at a site, and what to do where they cannot."""

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
    "--site", "site_name", shell_complete=complete_sites, help="Which site; default: the one that this machine takes."
)
@click.option("--recipe", type=FilePath(), help="Check the memory for its dataset, too.")
@click.option("--job", is_flag=True, help="Check a compute node as well, by a tiny job.")
@click.option("--node", is_flag=True, help="Check this machine as one that trains, and nothing else.")
@json_option
def doctor(site_name: str | None, recipe: Path | None, job: bool, node: bool, as_json: bool) -> None:
    """Check the scheduler, the environment and the GPU of a site.

    Its limits, files and clock are checked too, and the W&B server.

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
        raise NodeError(f"{', '.join(failed)}: see above")
    if failed:
        sys.exit(NodeError.exit_code)
