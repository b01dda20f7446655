"""Checks of the GPU and its driver: whether torch has kernels for it, and which driver is loaded."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contrails.errors import NodeError

if TYPE_CHECKING:
    import torch

NO_KERNELS = "no kernel image is available"
"""Text of CUDA's error when a library has no code for the GPU."""

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([a-z]?)")
_DRIVER = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"Kernel Module\b.*?\s(\d+\.[\d.]+)")


def has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Return whether a library has code that a GPU can run.

    A kernel runs on GPUs of the same major capability and the same or a higher minor one. PTX, which the driver
    compiles, runs on these and all later GPUs. Suffix f restricts both to one family, which has the same major
    capability; suffix a restricts both to exactly one architecture.

    Args:
        capability: major and minor compute capability of the GPU.
        built_for: architectures of the library, as `torch.cuda.get_arch_list()` returns them.

    >>> has_kernels((8, 9), ["sm_75", "sm_86"])
    True
    """
    for architecture in built_for:
        match = _ARCHITECTURE.fullmatch(architecture)
        if match is None:
            continue
        kind, own, letter = match[1], (int(match[2]), int(match[3])), match[4]
        if own == capability:
            return True
        is_family = own[0] == capability[0] and letter in ("", "f")
        if own < capability and (is_family or (kind == "compute" and not letter)):
            return True
    return False


def require_kernels(device: "torch.device") -> None:
    """Check that torch has kernels for a GPU.

    Raises:
        NodeError: torch has no kernels for it.
    """
    import torch

    if torch.version.cuda is not None and not has_kernels(
        torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    ):
        raise without_kernels(device)


def without_kernels(device: "torch.device") -> NodeError:
    """Return the error for a GPU that torch, or another library, has no kernels for."""
    import torch

    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return NodeError(
        f"{name} has the compute capability sm_{major}{minor}, for which this torch has no kernels; it has them for "
        f"{', '.join(torch.cuda.get_arch_list())}; use another GPU (gpu_cap in [resources] of the site profile on "
        "PBS, gpu_type or constraint on Slurm), or install a torch that was built for this GPU"
    )


def driver_version() -> str | None:
    """Return the version of NVIDIA's kernel module, read from a file since nvidia-smi can hang; None without one."""
    try:
        found = _VERSION.search(_DRIVER.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None
