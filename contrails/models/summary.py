"""How large a network is: torchinfo's table, parameters, multiply-adds, and the memory that a training step needs."""

import warnings
from typing import Any

from torch import nn


def summary(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return torchinfo's table of a model, with input and output shapes, parameters and multiply-adds."""
    return str(_torchinfo(model, input_shape))


def _torchinfo(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    from torchinfo import summary as torchinfo_summary

    with warnings.catch_warnings():
        # torchinfo 1.8 reads TypedStorage, which torch calls deprecated
        warnings.simplefilter("ignore", UserWarning)
        return torchinfo_summary(
            model, input_size=input_shape, depth=3, verbose=0, col_names=("input_size", "output_size", "num_params")
        )
