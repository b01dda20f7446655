"""The GPUs that the user may use here: those that the driver lists, restricted by CUDA_VISIBLE_DEVICES.

It works without torch. A device is identified by its UUID, which is unambiguous whatever order CUDA numbers GPUs in.
"""

import os
import re
import subprocess
from dataclasses import dataclass, replace

from contrails.errors import NodeError

_GPU = re.compile(r"GPU (\d+): (.*) \(UUID: (GPU-[^)]+)\)")
_INSTANCE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")
_NOTHING = {"", "-1", "NoDevFiles"}
"""Values of CUDA_VISIBLE_DEVICES that hide every GPU; the last one is Slurm's."""


@dataclass(frozen=True)
class Gpu:
    """A GPU in the output of `nvidia-smi -L`, with the UUIDs of its MIG instances if it is divided."""

    number: int
    kind: str
    uuid: str
    instances: tuple[str, ...] = ()


def listed_gpus() -> list[Gpu]:
    """Return the GPUs that the driver lists; empty without a driver."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return []
    found = list[Gpu]()
    for line in answer.stdout.splitlines() if answer.returncode == 0 else ():
        if match := _GPU.match(line):
            found.append(Gpu(int(match[1]), match[2], match[3]))
        elif (match := _INSTANCE.match(line)) and found:
            found[-1] = replace(found[-1], instances=(*found[-1].instances, match[1]))
    return found


def visible_devices() -> tuple[str, ...]:
    """Return the UUIDs of the GPUs and MIG instances that this process may use, in the order of CUDA_VISIBLE_DEVICES.

    Raises:
        NodeError: an entry of that variable is not a GPU of this machine, appears twice, or is ambiguous.
    """
    gpus, wanted = listed_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not gpus:
        return tuple(device for gpu in gpus for device in gpu.instances or (gpu.uuid,))
    if wanted.strip() in _NOTHING:
        return ()
    entries = [entry.strip() for entry in wanted.split(",")]
    if "-1" in entries:  # CUDA ignores what follows
        entries = entries[: entries.index("-1")]
    found = [_device(entry, gpus) for entry in entries]
    if len(set(found)) < len(found):
        raise _wrong("a GPU is listed twice", gpus)
    return tuple(found)


def uuid_of(entry: str) -> str:
    """Return the UUID of a GPU or MIG instance for an entry of CUDA_VISIBLE_DEVICES.

    Raises:
        NodeError: the entry is not a GPU of this machine, or is ambiguous.
    """
    return entry if entry.startswith(("GPU-", "MIG-")) else _device(entry, listed_gpus())


def memory_mib(uuid: str) -> int | None:
    """Return the memory of a GPU in MiB; None for a MIG instance, or if the driver does not answer."""
    if not uuid.startswith("GPU-"):
        return None
    command = ["nvidia-smi", f"--id={uuid}", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return None
    return int(answer) if answer.isdecimal() else None


def require_devices(count: int) -> tuple[str, ...]:
    """Return `visible_devices`, after checking that there are enough of them.

    Raises:
        NodeError: there are fewer GPUs than the `count` that a fold needs.
    """
    found = visible_devices()
    if len(found) < count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "the driver lists no others" if hidden is None else f"CUDA_VISIBLE_DEVICES='{hidden}' leaves no others"
        raise NodeError(
            f"expected {count} GPU{'s' * (count > 1)} for a fold, found {', '.join(found) or 'none'}: {why}; "
            "see `nvidia-smi -L`, or choose device = 'cpu' in the site profile for a new run"
        )
    return found


def _device(entry: str, gpus: list[Gpu]) -> str:
    """Return the UUID for a number, a UUID or the beginning of a UUID."""
    matches = [gpu for gpu in gpus if str(gpu.number) == entry or (entry.startswith("GPU-") and entry in gpu.uuid)]
    instances = [name for gpu in gpus for name in gpu.instances if entry.startswith("MIG-") and name.startswith(entry)]
    if len(matches) + len(instances) != 1:
        raise _wrong(f"'{entry}' is {'several' if matches or instances else 'none'} of this machine's GPUs", gpus)
    if instances:
        return instances[0]
    (gpu,) = matches
    if gpu.instances:
        raise _wrong(f"'{entry}' is divided (MIG): give its instances", gpus)
    is_counted_by_speed = os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({gpu.kind for gpu in gpus}) > 1
    if entry.isdecimal() and is_counted_by_speed:
        raise _wrong(
            f"CUDA numbers GPUs of different types by speed, so '{entry}' may be another GPU than in nvidia-smi; "
            "give UUIDs, or `export CUDA_DEVICE_ORDER=PCI_BUS_ID`",
            gpus,
        )
    return gpu.uuid


def _wrong(what: str, gpus: list[Gpu]) -> NodeError:
    known = "; ".join(f"{gpu.number} = {', '.join(gpu.instances) or gpu.uuid} ({gpu.kind})" for gpu in gpus)
    return NodeError(f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}: {what}; known: {known}")
