"""`contrails demo`: a synthetic dataset to try everything with."""

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--train", type=click.IntRange(1), default=80, show_default=True, help="Training records.")
@click.option("--validation", type=click.IntRange(0), default=16, show_default=True, help="Validation records.")
@click.option("--test", type=click.IntRange(0), default=16, show_default=True, help="Test records, without masks.")
@click.option("--size", type=click.IntRange(32), default=256, show_default=True, help="Side of a record in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def demo(out: Path, train: int, validation: int, test: int, size: int, seed: int) -> None:
    """Write GOES-like scenes with contrails to OUT, in the layout of the OpenContrails competition.

    Nine bands in kelvin, eight frames, several annotators who disagree; about half of the records are empty. The same
    values give the same files.

    \b
    Example:
      contrails demo data/demo/raw --size 128
    """
    from contrails.data.synth import Demo, make_demo

    make_demo(out, Demo(train, validation, test, size, seed))
    click.echo(f"{out}: {train} training, {validation} validation and {test} test records")
