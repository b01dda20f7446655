"""Copies of small arrays to the device that do not make the CPU wait for a GPU."""

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an array as a tensor on a device; it may share the array's memory on the CPU.

    A copy to a GPU from ordinary memory waits until the GPU has finished what it was given before; one from pinned
    memory does not, and torch keeps that memory until the copy has been made.
    """
    tensor = torch.from_numpy(array) if dtype is None else torch.from_numpy(array).to(dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
