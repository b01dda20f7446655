"""Weights for inference: one safetensors file with what it is inside, loadable without this package.

One metadata key, `contrails`, holds sorted JSON (recipe, epoch, scores, threshold; no times, no machine), so that equal
weights are equal files. safetensors holds tensors only: nothing in such a file can run code.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import nn

from contrails.errors import DataError
from contrails.files import storage, to_json, write_atomic

_KEY = "contrails"


def save_weights(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write tensors and what they are, complete or not at all."""
    save_tensors(path, tensors, {_KEY: to_json(about)})


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, complete or not at all."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save_bytes(on_cpu, metadata))


def load_fitting(model: nn.Module, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Load the tensors that a model has under the same name and with the same shape.

    Returns:
        A line for each one that the model lacks or has in another shape, and for each of the model's own that is not
        given: it keeps its value.
    """
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(fitting, strict=False)
    there, here = ({name: tuple(t.shape) for name, t in some.items()} for some in (tensors, own))
    left_out = sorted((there.keys() | here.keys()) - fitting.keys())
    return [f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here" for name in left_out]


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and what they are.

    Raises:
        DataError: the file is no safetensors file, is cut short, or was not written by contrails.
    """
    with storage(path, "read"):
        content = path.read_bytes()
    try:
        tensors = load_bytes(content)
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        about: dict[str, Any] = json.loads(metadata[_KEY])
    except safetensors.SafetensorError as error:
        raise DataError(f"{path} is not a complete safetensors file ({error}); train or copy it again") from error
    except KeyError as error:
        raise DataError(f"{path} has no metadata '{_KEY}': it was not written by contrails") from error
    return tensors, about
