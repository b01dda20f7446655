"""`contrails drill`: prove that interruptions do not change the result of a training."""

import json
import secrets
import shutil
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import click

from contrails.cli.complete import complete_sites
from contrails.cli.options import json_option
from contrails.cli.tables import Column, print_table
from contrails.errors import TrainingError
from contrails.files import storage
from contrails.runs.folder import new_run_path, runs_root

_LAST_WORDS_S = 20.0


_HEADINGS = ("times", "steps lost, most", "seconds to a new step, median")


@click.command()
@click.option("--site", "site_name", shell_complete=complete_sites, help="Site to train at; default: this machine.")
@click.option(
    "--kills",
    type=click.IntRange(1),
    default=9,
    show_default=True,
    help="Number of interruptions, of each kind in turn.",
)
@click.option("--seed", type=int, help="Seed of the moments of the interruptions; default: random, and printed.")
@click.option("--keep", is_flag=True, help="Keep the data and the runs; default: removed if the results are equal.")
@json_option
def drill(site_name: str | None, kills: int, seed: int | None, keep: bool, as_json: bool) -> None:
    """Kill a small training repeatedly and compare its results.

    A small model is trained twice: once undisturbed, and once interrupted at random moments. The weights must be
    byte-identical; otherwise the exit code is 8 and the runs are kept. On this machine, processes are killed, about
    6 seconds per kill. With --site, jobs are submitted and interrupted in every way that the scheduler offers (signal,
    kill, requeue); each interruption then takes as long as the queue.

    \b
    Example:
      contrails drill --kills 20
      contrails drill --site mycluster --kills 6
    """
    from contrails.cluster.check.drill import drill as run_drill
    from contrails.cluster.check.drill import make_data
    from contrails.cluster.schedulers.sites import THIS_MACHINE, find_site

    site, seed = find_site(site_name or THIS_MACHINE), secrets.randbelow(10**6) if seed is None else seed
    name = f"drill-{secrets.token_hex(3)}"
    data = runs_root() / f".{name}"
    make_data(data)
    click.echo(f"{name}: {kills} kills, --seed {seed}", err=True)
    outcome = run_drill(site, name, data, kills, seed)
    if outcome.equal and not keep:
        for path in (data, new_run_path(f"{name}-undisturbed"), new_run_path(f"{name}-killed")):
            _remove(path)
    if as_json:
        click.echo(json.dumps(asdict(outcome) | {"seed": seed}))
    else:
        rows = []
        for way in sorted({kill.way for kill in outcome.kills}):
            of = [kill for kill in outcome.kills if kill.way == way]
            seconds = statistics.median(kill.seconds_lost for kill in of)
            rows.append([way, str(len(of)), str(max(kill.steps_lost for kill in of)), f"{seconds:.1f}"])
        columns = [Column("interrupted by"), *(Column(heading, right=True) for heading in _HEADINGS)]
        print_table(columns, rows, f"{outcome.steps} steps, undisturbed in {outcome.undisturbed_s:.0f} s")
        click.echo(f"survived {len(outcome.kills)} kills; bits equal: {'yes' if outcome.equal else 'NO'}")
    if not outcome.equal:
        raise TrainingError(
            f"expected the interrupted training to end with the same bits, found others; compare "
            f"{runs_root() / name}-undisturbed with {name}-killed"
        )


def _remove(path: Path) -> None:
    """Remove a folder; retry for some seconds, since the last job may still write to it."""
    end = time.monotonic() + _LAST_WORDS_S
    while path.exists():
        with storage(path, "remove"):
            shutil.rmtree(path, ignore_errors=time.monotonic() < end)
