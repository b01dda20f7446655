"""Operations and tensors in half precision, found wherever they are."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HALVES = (torch.bfloat16, torch.float16)

in_half = pytest.mark.parametrize("dtype", HALVES, ids=["bf16", "fp16"])


def tensors(content: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(content) if isinstance(value, torch.Tensor)]


class InHalf(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation that takes or returns a tensor in half precision, in the gradient too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(tensor.dtype in HALVES for tensor in tensors((args, kwargs, result))):
            self.seen.append(str(func))
        return result
