"""`contrails sites`: where folds can run."""

import json

import click
from rich.console import Console
from rich.table import Table

from contrails.cli.options import json_option
from contrails.cluster.sites import Site, all_sites, default_site, resolve


@click.command()
@json_option
def sites(as_json: bool) -> None:
    """List the sites, what each gives five folds, and which one this machine takes where none is named.

    \b
    Example:
      contrails sites
    """
    found = all_sites()
    default = default_site(found)
    resolved = [(resolve(site, 5), where) for site, where in found.values()]
    if as_json:
        rows = [site.model_dump(mode="json") | {"defined": where} for site, where in resolved]
        click.echo(json.dumps({"default": default, "sites": rows}))
        return
    table = Table()
    for heading in ("site", "scheduler", "a job has", "a fold has", "defined"):
        table.add_column(heading, overflow="fold")
    for site, where in resolved:
        name = f"{site.name} (default)" if site.name == default else site.name
        table.add_row(name, site.scheduler, _job(site), f"{site.device}, {_count(site.num_threads, 'thread')}", where)
    Console().print(table)


def _job(site: Site) -> str:
    if site.scheduler == "local":
        return f"this machine: {_count(site.folds_at_a_time, 'fold')} at a time"
    parts = [f"{site.num_cpus} CPU", f"{site.walltime_min} min"]
    parts += [f"{site.num_gpus} GPU"] if site.num_gpus else []
    parts += [f"{site.memory_gb:g} GB"] if site.memory_gb else []
    return f"{site.partition or 'default partition'}: {', '.join(parts)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
