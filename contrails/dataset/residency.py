"""Where the data lie while a job trains: mapped from the file, or in RAM as a private copy of the job.

A mapped file is held once a node, in the page cache, whatever number of folds and jobs see it; it is read ahead in the
background. A private copy is an anonymous file in RAM that all folds of one job map; it cannot be evicted, and it
survives a file server that goes away, but every job pays for its own.
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
"""Bytes that a private copy leaves free for the training itself."""

_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "fuse", "afs", "9p", "pvfs", "panfs", "wekafs")
"""How the names of file systems begin whose mapped pages can vanish with a server."""

_DESCRIPTORS = Path("/proc/self/fd")

log = logging.getLogger(__name__)
Poll = Callable[[], None]


@dataclass(frozen=True)
class Memory:
    """Bytes that this process may still use.

    `limited` says that its control group sets a limit of its own, `granted` that the scheduler gave the job so much;
    without either they are what the whole node has free.
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
    """Open a dataset file for training, where `mode` says.

    Args:
        path: the dataset file.
        mode: the recipe's data.residency.
        stage_dir: node-local folder for a copy of the file, which is then mapped.
        ram_fd: empty anonymous file that the folds of a job share, None to make one.
        poll: called while bytes are copied; may raise to stop.
        job_memory_gb: what the scheduler gave the job, in GB of 2^30 bytes; None where there is none, or nobody knows.

    Raises:
        RecipeError: a private copy was asked for and does not fit into the memory.
    """
    dataset, size, memory = open_dataset(path), path.stat().st_size, read_memory(job_memory_gb)
    if ram_fd is not None:  # what another fold of the job has copied is not needed a second time
        memory = replace(memory, available=memory.available + os.fstat(ram_fd).st_size)
    if choose(path, mode, size, memory, on_network=stage_dir is None and _on_network(path)) == "ram":
        descriptor = _anonymous_file() if ram_fd is None else ram_fd
        with storage(path, "copy to RAM"):
            copy = copy_to_ram(path, descriptor, poll)
        return open_dataset(path, copy)
    if stage_dir is not None and (copy := stage(path, stage_dir, poll)) != path:
        dataset = replace(open_dataset(copy), path=path, copy=copy)  # equal content may lie at other places
    if size <= memory.available:
        threading.Thread(target=_read_ahead, args=(dataset.mapped,), name="read-ahead", daemon=True).start()
    return dataset


def choose(path: Path, mode: str, size: int, memory: Memory, *, on_network: bool) -> Literal["mmap", "ram"]:
    """Decide between a mapped file and a private copy, and say so in the log.

    `auto` copies where the file lies on network storage and the memory that the scheduler set aside for this job holds
    it; elsewhere one mapped copy a node is cheaper and as fast.

    Raises:
        RecipeError: `ram` was asked for and does not fit.
    """
    fits = size + _HEADROOM <= memory.available
    numbers = f"{size / _GB:.1f} GB, {memory}"
    if mode == "ram" and not fits:
        raise RecipeError(
            f"data.residency = 'ram': {path} does not fit ({numbers}, of which {_HEADROOM / _GB:.1f} GB stay free); "
            "set data.residency to 'mmap', ask for more memory, or prepare fewer --bands and --frames"
        )
    if mode == "ram" or (mode == "auto" and on_network and memory.limited and fits):
        log.info("the dataset is copied to RAM, once for all folds of this job (%s)", numbers)
        return "ram"
    if size > memory.available:
        log.warning(
            "the dataset stays mapped from %s and is larger than the memory (%s): batches come from the disk; ask for "
            "more memory, or prepare fewer --bands and --frames",
            *(path, numbers),
        )
    else:
        log.info("the dataset stays mapped from the file, once for all folds on this node (%s)", numbers)
    return "mmap"


def copy_to_ram(path: Path, descriptor: int, poll: Poll) -> Path:
    """Fill the anonymous file once, whoever of the job's folds comes first; return a path that opens it."""
    if not hasattr(os, "memfd_create"):
        raise RecipeError("data.residency = 'ram' needs Linux; set data.residency to 'mmap'")
    copy = _DESCRIPTORS / str(descriptor)
    with locked(copy, poll), copy.open("r+b") as ram, path.open("rb") as source:
        # bytes are appended, so the size tells a whole copy from one whose writer was killed
        if os.fstat(ram.fileno()).st_size != os.fstat(source.fileno()).st_size:
            ram.truncate(0)
            copy_blocks(source, ram, poll)
    return copy


def discard_copy(dataset: Dataset) -> None:
    """Remove a damaged copy of a dataset, so that it is made anew; what is in RAM ends with its job."""
    if dataset.copy is not None and dataset.copy.parent != _DESCRIPTORS:
        with storage(dataset.copy, "remove"):
            dataset.copy.unlink(missing_ok=True)


def read_memory(
    job_memory_gb: float | None = None, proc: Path = Path("/proc/self"), cgroups: Path = Path("/sys/fs/cgroup")
) -> Memory:
    """Return the memory that is free on this node, in every control group that this process is in, and in its job."""
    left = [free_bytes for free_bytes in _group_memory(proc, cgroups) if free_bytes is not None]
    limited, granted = bool(left), job_memory_gb is not None
    if job_memory_gb is not None:  # not every scheduler makes it a limit of the group
        left.append(max(0, int(job_memory_gb * 1024**3) - psutil.Process().memory_info().rss))
    return Memory(min([psutil.virtual_memory().available, *left]), limited=limited, granted=granted)


def _group_memory(proc: Path, cgroups: Path) -> Iterator[int | None]:
    """Yield what each control group with a limit leaves, version 2 or 1.

    Cached file pages can be given back, those of files in RAM cannot, though they are counted among them.
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
        # a container may see its own group as the root
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
    """Return whether a file lies on network storage, by the name of its file system."""
    parents = {str(parent) for parent in (path.resolve(), *path.resolve().parents)}
    mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in parents]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype.lower().startswith(_NETWORK)


def _anonymous_file() -> int:
    return os.memfd_create("dataset") if hasattr(os, "memfd_create") else -1


def _read_ahead(path: Path) -> None:
    """Bring the file into the page cache in order, which disks and file servers do faster than in any other."""
    # what cannot be read here is reported where it is used
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        block = bytearray(8 << 20)
        while file.readinto(block):
            pass
