"""`contrails demo`: a synthetic dataset in the competition's layout."""

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--train", type=click.IntRange(1), default=80, show_default=True, help="Labelled records to train on.")
@click.option("--validation", type=click.IntRange(1), default=16, show_default=True, help="Records with the truth.")
@click.option("--test", type=click.IntRange(1), default=16, show_default=True, help="Records without a label.")
@click.option("--size", type=click.IntRange(32), default=256, show_default=True, help="Side of a record in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other scenes.")
def demo(out: Path, train: int, validation: int, test: int, size: int, seed: int) -> None:
    """Write a synthetic dataset of contrail scenes to OUT.

    It has the layout of the OpenContrails competition: nine infrared bands, eight frames, masks of several annotators.
    The same options give the same bytes. Killed and started again, it goes on where it was.

    \b
    Example:
      contrails demo data/demo/raw --size 128
    """
    from contrails.data.synth import Parameters, make_dataset

    make_dataset(out, Parameters(train, validation, test, size, seed))
    click.echo(f"{out}: {train} train, {validation} validation and {test} test records of {size} x {size} pixels")
