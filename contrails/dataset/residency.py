"""Residency of the data while a job trains: mapped from the file, or a private copy of the job in RAM.

A mapped file is in the page cache once per node, for any number of folds and jobs, and is read ahead in the background.
A private copy is an anonymous file in RAM that all folds of one job map. It cannot be evicted and does not depend on a
file server, but every job needs memory for its own copy.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from contrails.dataset.stage import stage
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import RecipeError
from contrails.files import copy_blocks, storage
from contrails.locks import locked

_GB = 1e9
_HEADROOM = 1 * 1024**3
"""Bytes that must stay free for the training beside a private copy."""

_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "fuse", "afs", "9p", "pvfs", "panfs", "wekafs")
"""Prefixes of the names of network file systems: mapped pages are lost if the server fails."""

_DESCRIPTORS = Path("/proc/self/fd")

log = logging.getLogger(__name__)
Poll = Callable[[], None]


@dataclass(frozen=True)
class Memory:
    """The memory that this process may still use, in bytes.

    `limited` says that its control group has a limit, `granted` that the scheduler gave the job a fixed amount; without
    either it is the free memory of the whole node.
    """

    available: int
    limited: bool
    granted: bool = False

    def __str__(self) -> str:
        whose = "this job may use {}" if self.limited or self.granted else "this node has {} free, for all its jobs"
        return whose.format(f"{self.available / _GB:.1f} GB")


def open_resident(
    path: Path,
    mode: Literal["auto", "mmap", "ram"],
    *,
    stage_dir: Path | None,
    ram_fd: int | None,
    poll: Poll,
    job_memory_gb: float | None = None,
) -> Dataset:
    """Open a dataset file for training, with the residency `mode`.

    Args:
        path: the dataset file.
        mode: the recipe's data.residency.
        stage_dir: node-local folder for a copy of the file, which is then mapped.
        ram_fd: descriptor of the anonymous file that the folds of a job share; None to make one.
        poll: called while bytes are copied; may raise to stop.
        job_memory_gb: memory of the job in GB of 2^30 bytes; None without a job, or if unknown.

    Raises:
        RecipeError: the mode is "ram" and the copy does not fit into the memory.
    """
    dataset, size, memory = open_dataset(path), path.stat().st_size, read_memory(job_memory_gb)
    if ram_fd is not None:  # bytes that another fold of the job has already copied need no further memory
        memory = replace(memory, available=memory.available + os.fstat(ram_fd).st_size)
    if choose(path, mode, size, memory, on_network=stage_dir is None and _on_network(path)) == "ram":
        descriptor = _anonymous_file() if ram_fd is None else ram_fd
        with storage(path, "copy to RAM"):
            copy = copy_to_ram(path, descriptor, poll)
        return open_dataset(path, copy)
    if stage_dir is not None and (copy := stage(path, stage_dir, poll)) != path:
        dataset = replace(open_dataset(copy), path=path, copy=copy)  # array offsets in the copy can differ
    if size <= memory.available:
        threading.Thread(target=_read_ahead, args=(dataset.mapped,), name="read-ahead", daemon=True).start()
    return dataset


def choose(path: Path, mode: str, size: int, memory: Memory, *, on_network: bool) -> Literal["mmap", "ram"]:
    """Decide between a mapped file and a private copy, and log the decision.

    `auto` copies if the file is on network storage and fits into the memory limit of this job's control group.
    Otherwise one mapped copy per node costs less memory and is as fast.

    Raises:
        RecipeError: the mode is "ram" and the copy does not fit.
    """
    fits = size + _HEADROOM <= memory.available
    numbers = f"{size / _GB:.1f} GB, {memory}"
    if mode == "ram" and not fits:
        raise RecipeError(
            f"data.residency = 'ram': {path} does not fit ({numbers}, of which {_HEADROOM / _GB:.1f} GB must stay "
            "free); set data.residency to 'mmap', ask for more memory, or prepare fewer --bands and --frames"
        )
    if mode == "ram" or (mode == "auto" and on_network and memory.limited and fits):
        log.info("the dataset is copied to RAM, once for all folds of this job (%s)", numbers)
        return "ram"
    if size > memory.available:
        log.warning(
            "the dataset is mapped from %s and is larger than the memory (%s): batches are read from the disk; ask for "
            "more memory, or prepare fewer --bands and --frames",
            *(path, numbers),
        )
    else:
        log.info("the dataset is mapped from the file, once for all folds on this node (%s)", numbers)
    return "mmap"


def copy_to_ram(path: Path, descriptor: int, poll: Poll) -> Path:
    """Copy the file to the anonymous file if no other fold of the job has; return a path that opens the copy."""
    if not hasattr(os, "memfd_create"):
        raise RecipeError("data.residency = 'ram' needs Linux; set data.residency to 'mmap'")
    copy = _DESCRIPTORS / str(descriptor)
    with locked(copy, poll), copy.open("r+b") as ram, path.open("rb") as source:
        # bytes are appended, so a smaller size means that the process that copied was killed
        if os.fstat(ram.fileno()).st_size != os.fstat(source.fileno()).st_size:
            ram.truncate(0)
            copy_blocks(source, ram, poll)
    return copy


def discard_copy(dataset: Dataset) -> None:
    """Remove a damaged copy of a dataset, so that it is copied again; a copy in RAM ends with its job."""
    if dataset.copy is not None and dataset.copy.parent != _DESCRIPTORS:
        with storage(dataset.copy, "remove"):
            dataset.copy.unlink(missing_ok=True)


def read_memory(
    job_memory_gb: float | None = None, proc: Path = Path("/proc/self"), cgroups: Path = Path("/sys/fs/cgroup")
) -> Memory:
    """Return the free memory: the least of this node, the control groups of this process, and its job."""
    left = [free_bytes for free_bytes in _group_memory(proc, cgroups) if free_bytes is not None]
    limited, granted = bool(left), job_memory_gb is not None
    if job_memory_gb is not None:  # not every scheduler enforces it by the limit of a control group
        left.append(max(0, int(job_memory_gb * 1024**3) - psutil.Process().memory_info().rss))
    return Memory(min([psutil.virtual_memory().available, *left]), limited=limited, granted=granted)


def _group_memory(proc: Path, cgroups: Path) -> Iterator[int | None]:
    """Yield the free memory of each control group of this process (v2 or v1), None for groups without a limit.

    Cached file pages count as free, because the kernel can evict them. It lists pages of files in RAM (shmem) as
    cached too, but cannot evict them, so they are subtracted.
    """
    try:
        lines = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    except FileNotFoundError:
        return
    for _, controllers, name in lines:
        if controllers == "":
            root, names = cgroups, ("memory.max", "memory.current", "file", "shmem")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")
        else:
            continue
        inner = root / name.strip("/")
        # in a container the path can be missing below `root`, which is then the group of this process
        for group in (inner, *inner.parents) if inner.is_dir() else (root,):
            if group == root.parent:
                break
            yield _left(group, *names)


def _left(group: Path, limit_name: str, used_name: str, cached_name: str, in_ram_name: str) -> int | None:
    try:
        limit, used = (group / limit_name).read_text().strip(), int((group / used_name).read_text())
        found = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(found[cached_name]) - int(found.get(in_ram_name, 0))
    except (FileNotFoundError, KeyError):
        return None
    if limit == "max" or int(limit) >= psutil.virtual_memory().total:
        return None
    return max(0, int(limit) - used + cached)


def _on_network(path: Path) -> bool:
    """Return whether a file is on network storage, by the type of its file system."""
    parents = {str(parent) for parent in (path.resolve(), *path.resolve().parents)}
    mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in parents]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype.lower().startswith(_NETWORK)


def _anonymous_file() -> int:
    return os.memfd_create("dataset") if hasattr(os, "memfd_create") else -1


def _read_ahead(path: Path) -> None:
    """Read the file into the page cache sequentially, which is the fastest order for disks and file servers."""
    # an error is reported where the data are used
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        block = bytearray(8 << 20)
        while file.readinto(block):
            pass
