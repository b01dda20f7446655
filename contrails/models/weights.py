"""Weights files for inference: safetensors with metadata, loadable without this package.

The single metadata key `contrails` holds sorted JSON (recipe, epoch, scores, threshold; no times and no machine), so
that equal weights give byte-identical files. A safetensors file holds only tensors and cannot run code.
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
    """Write tensors with metadata, atomically."""
    save_tensors(path, tensors, {KEY: to_json(about)})


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    on_cpu: dict[str, torch.Tensor] = {}
    written = set()
    for name, tensor in tensors.items():
        on_cpu[name] = tensor.detach().cpu().contiguous()
        if on_cpu[name].data_ptr() in written:  # safetensors refuses shared memory, so shared weights are copied
            on_cpu[name] = on_cpu[name].clone()
        written.add(on_cpu[name].data_ptr())
    with atomic_path(path) as temporary:
        try:
            save_file(on_cpu, temporary, metadata)
        except safetensors.SafetensorError as error:  # tensors from torch are valid, so the disk is at fault
            raise OSError(str(error)) from error


@dataclass(frozen=True)
class Fitting:
    """The result of loading the tensors of another model, by name.

    `differing` tensors have another shape here (both shapes follow the name); `new` tensors exist only in this model
    and keep their values; `unused` tensors exist only in the other model.
    """

    loaded: list[str]
    differing: list[str]
    new: list[str]
    unused: list[str]

    def __str__(self) -> str:
        parts = {
            "tensors do not fit": self.differing,
            "are new in this model": self.new,
            "do not exist in this model": self.unused,
        }
        said = [f"{len(names)} {what}: {', '.join(names)}" for what, names in parts.items() if names]
        return "; ".join([f"{len(self.loaded)} tensors loaded", *said])


def load_fitting(model: nn.Module, tensors: dict[str, torch.Tensor]) -> Fitting:
    """Load the tensors whose name and shape exist in a model; return the names by outcome."""
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
    """Return the tensors and the metadata of a weights file.

    Raises:
        DataError: the file is no safetensors file, is truncated, or was not written by contrails.
    """
    with opened(path, "pt") as (file, about):
        # copies, as mapped tensors depend on the file
        return {name: file.get_tensor(name).clone() for name in file.keys()}, about  # noqa: SIM118 - no mapping


def stream_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor with its name, mapped from the file and valid until the next one; raises as `load_weights`."""
    with opened(path, "pt") as (file, _):
        for name in file.keys():  # noqa: SIM118 - no mapping
            yield name, file.get_tensor(name)
