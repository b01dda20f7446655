"""`contrails weights`: download pretrained encoder weights for jobs without internet access."""

import json
from pathlib import Path
from typing import Any

import click

from contrails.cli.options import json_option


@click.group()
def weights() -> None:
    """Download and list pretrained encoder weights."""


@weights.command()
@click.argument("name")
@click.option(
    "--set", "which", default="default", help="Name of the weights, such as imagenet; default: the encoder's first."
)
def fetch(name: str, which: str) -> None:
    """Download the pretrained weights of NAME.

    NAME is an encoder, or the path of a recipe, whose model.pretrained is downloaded.

    \b
    Example:
      contrails weights fetch tu-resnest26d
      contrails weights fetch resnet18 --set ssl
      contrails weights fetch jobs/resnest26d.toml
    """
    from contrails.errors import RecipeError, choices
    from contrails.files import sha256
    from contrails.models.names import find_encoder, is_file
    from contrails.models.pretrained import fetch as download
    from contrails.recipe.recipe import load_recipe

    if name.endswith(".toml"):
        section = load_recipe(Path(name)).model
        if section.pretrained is None or is_file(section.pretrained):
            click.echo(f"{name}: model.pretrained = {section.pretrained!r}: nothing to fetch")
            return
        name, which = section.encoder, section.pretrained
    offered = find_encoder(name).pretrained
    if not offered or which not in ("default", *offered):
        raise RecipeError(f"encoder {name} has no pretrained weights '{which}'; {choices(which, offered)}")
    path = download(name, which)
    click.echo(f"{path}  {sha256(path)}")


@weights.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the downloaded weights with size and SHA-256.

    \b
    Example:
      contrails weights list
    """
    from contrails.files import sha256
    from contrails.models.pretrained import weights_folder

    found: list[dict[str, Any]] = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(weights_folder().glob("*.safetensors"))
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for entry in found:
        click.echo(f"{entry['name']}  {entry['bytes'] / 1e6:.1f} MB  {entry['sha256']}")
    if not found:
        click.echo(f"no weights in {weights_folder()}; fetch some with `contrails weights fetch ENCODER`")
