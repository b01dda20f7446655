"""Weights for inference: one safetensors file with what it is inside, loadable without this package.

One metadata key, `contrails`, holds sorted JSON (recipe, epoch, scores, threshold; no times, no machine), so that equal
weights are equal files. safetensors holds tensors only: nothing in such a file can run code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from contrails.files import atomic_path, to_json
from contrails.models.about import KEY, opened


def save_weights(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write tensors and what they are, complete or not at all."""
    save_tensors(path, tensors, {KEY: to_json(about)})


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, complete or not at all."""
    on_cpu: dict[str, torch.Tensor] = {}
    written = set()
    for name, tensor in tensors.items():
        on_cpu[name] = tensor.detach().cpu().contiguous()
        if on_cpu[name].data_ptr() in written:  # layers that share their weights: each name has its own in the file
            on_cpu[name] = on_cpu[name].clone()
        written.add(on_cpu[name].data_ptr())
    with atomic_path(path) as temporary:
        try:
            save_file(on_cpu, temporary, metadata)
        except safetensors.SafetensorError as error:  # of what torch gives it, the disk alone can be wrong
            raise OSError(str(error)) from error


@dataclass(frozen=True)
class Fitting:
    """What became of the tensors of another model: names of those that were loaded, and of those that were not.

    `differing` have another shape here, both of which stand behind the name; `new` ones keep their value, as the other
    model has none of that name; `unused` ones are the other model's alone.
    """

    loaded: list[str]
    differing: list[str]
    new: list[str]
    unused: list[str]

    def __str__(self) -> str:
        parts = {
            "tensors do not fit": self.differing,
            "are of layers that are new": self.new,
            "are of layers that this model does not have": self.unused,
        }
        said = [f"{len(names)} {what}: {', '.join(names)}" for what, names in parts.items() if names]
        return "; ".join([f"{len(self.loaded)} tensors loaded", *said])


def load_fitting(model: nn.Module, tensors: dict[str, torch.Tensor]) -> Fitting:
    """Load the tensors that a model has under the same name and with the same shape; return what became of each."""
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(fitting, strict=False)
    differing = sorted((tensors.keys() & own.keys()) - fitting.keys())
    return Fitting(
        sorted(fitting),
        [f"{name} {tuple(tensors[name].shape)} there, {tuple(own[name].shape)} here" for name in differing],
        sorted(own.keys() - tensors.keys()),
        sorted(tensors.keys() - own.keys()),
    )


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and what they are.

    Raises:
        DataError: the file is no safetensors file, is cut short, or was not written by contrails.
    """
    with opened(path, "pt") as (file, about):
        # a copy: what is mapped would vanish with the file
        return {name: file.get_tensor(name).clone() for name in file.keys()}, about  # noqa: SIM118 - no mapping


def stream_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor, mapped from the file and valid until the next one; raises as `load_weights` does."""
    with opened(path, "pt") as (file, _):
        for name in file.keys():  # noqa: SIM118 - no mapping
            yield name, file.get_tensor(name)
