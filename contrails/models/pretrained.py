"""Pretrained encoder weights: a folder that is filled on a machine with internet access and only read by jobs.

The folder is `$CONTRAILS_WEIGHTS` or `~/.cache/contrails/weights`, with one safetensors file per encoder and weights
name, as downloaded from the Hugging Face hub. A run stores the SHA-256 of its file at creation. Finding a file does not
need torch.
"""

import logging
import os
import tempfile
from pathlib import Path

from contrails.errors import DataError
from contrails.files import sha256, storage
from contrails.models.names import find_encoder, is_file
from contrails.recipe.recipe import Recipe
from contrails.runs.config import WeightsFile
from contrails.user import home


def weights_folder() -> Path:
    """Return the folder of downloaded weights."""
    return Path(os.environ.get("CONTRAILS_WEIGHTS") or home() / ".cache" / "contrails" / "weights")


def find_pretrained(recipe: Recipe) -> WeightsFile | None:
    """Return the file of a recipe's pretrained weights with its digest, or None for random weights.

    Raises:
        DataError: there is no such file; the message has the command that downloads it.
    """
    section = recipe.model
    if section.pretrained is None:
        return None
    if is_file(section.pretrained):
        # unlike Path.expanduser, it does not raise for an unknown user
        path = Path(os.path.expanduser(section.pretrained)).absolute()  # noqa: PTH111
        remedy = "give the path of a safetensors file"
    else:
        path = weights_path(section.encoder, section.pretrained)
        asked = section.encoder if section.pretrained == "default" else f"{section.encoder} --set {section.pretrained}"
        remedy = f"run `contrails weights fetch {asked}` on a machine with internet access, such as a login node"
    if not path.is_file():
        raise DataError(
            f"model.pretrained = '{section.pretrained}': expected {path}, found no such file; {remedy}, "
            "or start from random weights with `-o model.pretrained=`"
        )
    return WeightsFile(path=path, sha256=sha256(path))


def weights_path(encoder: str, name: str) -> Path:
    """Return the path of the weights `name` of an encoder, whether or not they were downloaded."""
    known = find_encoder(encoder)
    chosen = known.pretrained[0] if name == "default" else name
    return weights_folder() / f"{encoder.partition('.')[0]}.{chosen}.safetensors"


def fetch(encoder: str, name: str) -> Path:
    """Download the weights `name` of an encoder atomically, unless the file exists; return its path.

    Raises:
        DataError: the hub does not answer, or does not have the weights.
    """
    path = weights_path(encoder, name)
    if path.is_file():
        return path
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity(logging.ERROR)  # no warning for each retry
    repository, revision = _repository(encoder, path.name.split(".", 1)[1].removesuffix(".safetensors"))
    with storage(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            made = huggingface_hub.hf_hub_download(repository, "model.safetensors", revision=revision, local_dir=folder)
        except (OSError, HfHubHTTPError) as error:
            raise DataError(
                f"{encoder}: expected its weights at {repository} of the Hugging Face hub, found "
                f"{type(error).__name__}: {error}; try again with internet access, or copy the file to {path}"
            ) from error
        Path(made).replace(path)
    return path


def _repository(encoder: str, name: str) -> tuple[str, str | None]:
    """Return the repository and the revision of weights on the hub."""
    from contrails.models.library import smp, timm

    if not encoder.startswith("tu-"):
        settings = smp.encoders.encoders[encoder]["pretrained_settings"][name]
        return settings["repo_id"], settings["revision"]
    config = timm.get_pretrained_cfg(f"{encoder.removeprefix('tu-').partition('.')[0]}.{name}")
    if config is None or not config.hf_hub_id:
        raise DataError(f"{encoder}: '{name}' is not on the Hugging Face hub; download it by hand and give its path")
    return config.hf_hub_id, None
