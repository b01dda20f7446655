"""`contrails demo`: write a synthetic dataset in one of the three layouts."""

from pathlib import Path

import click

from contrails.cli.options import FilePath

_WHAT = {"goes": "records", "scenes": "scenes", "images-rle": "images"}


@click.command()
@click.argument("out", type=FilePath(file_okay=False))
@click.option("--layout", type=click.Choice(list(_WHAT)), default="goes", show_default=True, help="Layout of OUT.")
@click.option("--train", type=click.IntRange(1), default=80, show_default=True, help="Number of training records.")
@click.option(
    "--validation", type=click.IntRange(1), default=16, show_default=True, help="Number of validation records."
)
@click.option("--test", type=click.IntRange(1), default=16, show_default=True, help="Number of unlabelled records.")
@click.option("--size", type=click.IntRange(32), default=256, show_default=True, help="Side of a record, in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random scenes.")
def demo(out: Path, layout: str, train: int, validation: int, test: int, size: int, seed: int) -> None:
    """Write a synthetic dataset to OUT.

    \b
    goes        contrails in nine infrared bands and eight frames, with masks
                of several annotators, in the layout of the OpenContrails
                competition
    scenes      clouds in GeoTIFF files of several sizes, with file lists; the
                training scenes include the validation scenes
    images-rle  chest radiographs as PNG files, with tables of run-length
                encodings

    The same options give byte-identical files. An interrupted call continues when it is started again.

    \b
    Example:
      contrails demo data/demo/raw --size 128
      contrails demo data/clouds --layout scenes
    """
    from contrails.synthetic.goes import Parameters, make_dataset
    from contrails.synthetic.images import make_images, make_scenes

    makers = {"goes": make_dataset, "scenes": make_scenes, "images-rle": make_images}
    makers[layout](out, Parameters(train, validation, test, size, seed))
    sides = f"{size} x {size} pixels" + (" or more" if layout == "scenes" else "")
    click.echo(f"{out}: {train} train, {validation} validation and {test} test {_WHAT[layout]} of {sides}")
