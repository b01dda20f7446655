"""`contrails sites`: where folds can run."""

import json

import click
from rich.console import Console
from rich.table import Table

from contrails.cli.options import json_option
from contrails.cluster.sites import all_sites, default_site, resolve


@click.command()
@json_option
def sites(as_json: bool) -> None:
    """List the sites and what this machine would give five folds on each.

    \b
    Example:
      contrails sites
    """
    found = all_sites()
    rows = [resolve(site, 5).model_dump() | {"defined": where} for site, where in found.values()]
    if as_json:
        click.echo(json.dumps({"default": default_site(found), "sites": rows}))
        return
    table = Table()
    for heading in ("site", "scheduler", "device", "folds at a time", "threads a fold", "sync", "defined"):
        table.add_column(heading)
    for row in rows:
        name = f"{row['name']} (default)" if row["name"] == default_site(found) else row["name"]
        values = (
            row["device"],
            row["folds_at_a_time"],
            row["num_threads"],
            "yes" if row["sync"] else "no",
            row["defined"],
        )
        table.add_row(name, row["scheduler"], *(str(value) for value in values))
    Console().print(table)
