"""The size of a network: a table of its layers, parameters, multiply-adds, and the memory of a training step."""

import warnings
from typing import Any

import torch
from torch import nn

from contrails.recipe.recipe import Recipe

_DEPTH = 3
_NAME, _SHAPE, _NUMBER = 44, 20, 14
"""Widths of the columns of the table, 80 in total with spaces."""


def summary(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return a table of a model's layers with the shapes of their outputs and their parameters, 80 columns wide."""
    found = _torchinfo(model, input_shape)
    rows, shown = [("layer", "output", "parameters")], set[int]()
    for layer in found.summary_list:  # a layer that runs several times is listed several times
        if layer.depth <= _DEPTH and layer.layer_id not in shown:
            shown.add(layer.layer_id)
            name = f"{layer.var_name}: {layer.class_name}" if layer.depth else layer.class_name
            shape = ", ".join(map(str, layer.output_size or ()))
            count = sum(parameter.numel() for parameter in layer.module.parameters())
            rows.append(("  " * layer.depth + name, shape, f"{count:,}" if count else ""))
    # not torchinfo's total, which counts layers that run several times more than once
    total = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"{_cut(name, _NAME)} {_cut(shape, _SHAPE)} {number:>{_NUMBER}}" for name, shape, number in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in [*lines, lines[1], f"parameters: {total:,}"])


def _cut(text: str, width: int) -> str:
    return f"{text if len(text) <= width else f'{text[: width - 3]}...':<{width}}"


def size_of(model: nn.Module, recipe: Recipe, record_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the parameters, the multiply-adds per record and the estimated bytes of a training step.

    A model on the device "meta" is measured without allocating its tensors and without computing. The bytes are those
    of weights, gradients, optimiser state, weight averages, and the tensors that the forward pass of a piece keeps for
    the backward pass, without the workspace of kernels.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    train = recipe.train
    copies = 2 + (2 if train.optimizer == "adamw" else 1) + bool(train.ema_decay) + bool(train.swa_epochs)
    piece = -(-train.batch_size // train.accumulate)
    return {
        "input": list(record_shape),
        "parameters": parameters,
        "macs": int(_torchinfo(model, (1, *record_shape)).total_mult_adds),
        "memory_bytes": 4 * copies * parameters + piece * _kept_bytes(model, record_shape, train.precision),
    }


def _kept_bytes(model: nn.Module, record_shape: tuple[int, ...], precision: str) -> int:
    """Return the bytes per record that the forward pass keeps for the backward pass; each tensor counts once."""
    kept: dict[int, int] = {}
    # identified by storage objects, as all data on the device "meta" have address 0
    own = [parameter.untyped_storage() for parameter in model.parameters()]
    numbers = {id(storage) for storage in own}
    alive = []  # keeps the storages alive, so that no id is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        stored = tensor.untyped_storage()
        if id(stored) not in numbers:
            alive.append(stored)
            # autocast does not support "meta", so numbers that it would keep in half precision are counted as two bytes
            halved = precision != "fp32" and tensor.dtype == torch.float32
            kept[id(stored)] = stored.nbytes() // (2 if halved else 1)
        return tensor

    # two records, as batch norm needs them; halved below
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(torch.zeros(2, *record_shape, device=next(model.parameters()).device))
    return sum(kept.values()) // 2


def _torchinfo(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    from torchinfo import summary as torchinfo_summary

    with warnings.catch_warnings():
        # torchinfo 1.8 reads TypedStorage, which torch calls deprecated
        warnings.simplefilter("ignore", UserWarning)
        return torchinfo_summary(
            model,
            input_size=input_shape,
            depth=_DEPTH,
            verbose=0,
            device=next(model.parameters()).device,
        )
