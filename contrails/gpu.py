"""What a GPU can run, and under which driver: what decides whether a node can train, and whether it does so alike."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contrails.errors import NodeError

if TYPE_CHECKING:
    import torch

NO_KERNELS = "no kernel image is available"
"""What CUDA says where a GPU runs no code of a library."""

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([a-z]?)")
_DRIVER = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"Kernel Module\b.*?\s(\d+\.[\d.]+)")


def has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Return whether a library has code that a GPU can run.

    A kernel runs on GPUs of its own major capability with the same or a higher minor one; PTX, which the driver
    translates, on the same and all later ones. With the letter f both run on that family alone, which shares the major
    capability, and with the letter a on no other architecture.

    Args:
        capability: of the GPU, major and minor.
        built_for: architectures, as `torch.cuda.get_arch_list()` gives them.

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
    """Check that torch has code that a GPU can run.

    Raises:
        NodeError: it has none.
    """
    import torch

    if torch.version.cuda is not None and not has_kernels(
        torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    ):
        raise without_kernels(device)


def without_kernels(device: "torch.device") -> NodeError:
    """Return the error of a GPU that runs no code of this torch, or of a library beside it."""
    import torch

    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return NodeError(
        f"{name} has the capability sm_{major}{minor}, for which there are no kernels: this torch has those for "
        f"{', '.join(torch.cuda.get_arch_list())}; take another GPU (gpu_cap in [resources] of the site's profile on "
        "PBS, gpu_type or constraint on Slurm), or install a torch that was built for this one"
    )


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver as its kernel module gives it, which cannot hang; None without one."""
    try:
        found = _VERSION.search(_DRIVER.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None
