"""`contrails sites`: list the sites where folds can run."""

import json
from dataclasses import replace

import click

from contrails.cli.options import json_option
from contrails.cli.tables import Column, print_table
from contrails.cluster.schedulers.base import scheduler_of
from contrails.cluster.schedulers.sites import Profile, Site, all_sites, default_site, resolve
from contrails.errors import NodeError

_COLUMNS = (
    *(Column("site", whole=True), Column("scheduler"), Column("a job has"), Column("a fold has", 1)),
    Column("defined", 2),
)


@click.command()
@json_option
def sites(as_json: bool) -> None:
    """List the sites where folds can run.

    Shows what each site gives to five folds, and which site is the default on this machine.

    \b
    Example:
      contrails sites
    """
    found = {name: _resolved(profile) for name, profile in all_sites().items()}
    default = default_site(found)
    if as_json:
        rows = [
            {"name": name, "defined": profile.where}
            | ({"problem": profile.problem} if profile.site is None else profile.site.model_dump(mode="json"))
            for name, profile in found.items()
        ]
        click.echo(json.dumps({"default": default, "sites": rows}))
        return
    print_table(_COLUMNS, [_row(name, profile, is_default=name == default) for name, profile in found.items()])
    for name, profile in found.items():
        if profile.site is None:
            click.echo(f"{name}: {profile.problem}")


def _row(name: str, profile: Profile, *, is_default: bool) -> list[str]:
    site, shown = profile.site, f"{name} (default)" if is_default else name
    if site is None:
        return [shown, profile.scheduler or "", "not usable, see below", "", profile.where]
    return [shown, site.scheduler, _job(site), f"{site.device}, {_count(site.num_threads, 'thread')}", profile.where]


def _resolved(profile: Profile) -> Profile:
    """Return the profile resolved for five folds on this machine, or with the problem that makes it unusable."""
    if profile.site is None:
        return profile
    try:
        return replace(profile, site=resolve(profile.site, 5))
    except NodeError as error:
        return replace(profile, site=None, problem=str(error))


def _job(site: Site) -> str:
    if scheduler_of(site).CAPABILITIES.runs_here:
        at_a_time = _count(site.folds_at_a_time, "fold") if site.folds_at_a_time else "a fold per GPU"
        return f"this machine: {at_a_time} at a time"
    parts = [f"{site.num_cpus} CPU", f"{site.walltime_min} min"]
    parts += [f"{site.num_gpus} GPU"] if site.num_gpus else []
    parts += [f"{site.memory_gb:g} GB"] if site.memory_gb else []
    return f"{site.partition or 'default partition'}: {', '.join(parts)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
