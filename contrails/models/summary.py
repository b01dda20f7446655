"""How large a network is: torchinfo's table, parameters, multiply-adds, and the memory that a training step needs."""

import warnings
from typing import Any

import torch
from torch import nn

from contrails.config import Recipe


def summary(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return torchinfo's table of a model, with input and output shapes, parameters and multiply-adds."""
    from torchinfo.enums import Units

    table = str(_torchinfo(model, input_shape))
    for unit in Units:  # torchinfo 1.8 prints the name of the constant
        table = table.replace(f"Units.{unit.name}", unit.value)
    return table


def size_of(model: nn.Module, recipe: Recipe, record_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return parameters, multiply-adds of a record and bytes of a training step, as far as its tensors tell.

    A model on the device "meta" is counted without its memory and its arithmetic.

    The bytes are those of weights, gradients, the optimiser, averages of weights, and what the forward pass of a piece
    of a batch keeps for the backward pass; kernels' own workspace comes on top.
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
    """Return the bytes a record that the forward pass keeps for the backward pass, each tensor counted once."""
    kept: dict[int, int] = {}
    # the storage itself, as all data of the device "meta" lie at address 0
    own = [parameter.untyped_storage() for parameter in model.parameters()]
    numbers = {id(storage) for storage in own}
    alive = []  # so that no number is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        stored = tensor.untyped_storage()
        if id(stored) not in numbers:
            alive.append(stored)
            # autocast knows no device "meta": what it would keep in two bytes is counted so
            halved = precision != "fp32" and tensor.dtype == torch.float32
            kept[id(stored)] = stored.nbytes() // (2 if halved else 1)
        return tensor

    # batch norm needs two records
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
            depth=3,
            verbose=0,
            col_names=("input_size", "output_size", "num_params"),
            device=next(model.parameters()).device,
        )
