"""Residency: the decision and its words, one copy for several processes, folds that come and go while it is made."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from contrails.dataset import residency
from contrails.dataset.residency import Memory, choose, copy_to_ram, open_resident, read_memory
from contrails.dataset.store import open_dataset
from contrails.errors import DataError, RecipeError, Stopped

GB = 10**9
PATH = Path("/data/train.h5")


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("mode", "size_gb", "available_gb", "limited", "on_network", "expected"),
    [
        ("auto", 5, 20, True, False, "mmap"),  # a local disk: one mapped copy for all
        ("auto", 5, 20, True, True, "ram"),  # memory of the job's own, and a server that can go away
        ("auto", 5, 20, False, True, "mmap"),  # memory shared with other jobs
        ("auto", 19.5, 20, True, True, "mmap"),  # nothing would be left for training
        ("auto", 50, 20, True, True, "mmap"),
        ("mmap", 50, 20, True, True, "mmap"),
        ("ram", 5, 20, False, False, "ram"),
    ],
)
def test_where_the_data_lie(
    mode: str, size_gb: float, available_gb: float, limited: bool, on_network: bool, expected: str
) -> None:
    memory = Memory(int(available_gb * GB), limited=limited)
    assert choose(PATH, mode, int(size_gb * GB), memory, on_network=on_network) == expected


def test_the_decision_is_told_with_its_numbers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        choose(PATH, "auto", 5 * GB, Memory(20 * GB, limited=True), on_network=False)
        assert "is mapped from the file" in caplog.text
        assert "(5.0 GB, this job may use 20.0 GB)" in caplog.text
        choose(PATH, "auto", 50 * GB, Memory(20 * GB, limited=True), on_network=False)
        assert (
            "larger than the memory (50.0 GB, this job may use 20.0 GB): batches are read from the disk" in caplog.text
        )


def test_too_large_a_copy_is_refused_with_the_key_to_change() -> None:
    with pytest.raises(
        RecipeError, match=r"data.residency = 'ram': /data/train.h5 does not fit \(5.0 GB, .* use 4.0 GB"
    ):
        choose(PATH, "ram", 5 * GB, Memory(4 * GB, limited=True), on_network=False)


def test_a_copy_in_ram_is_made_once_and_holds_the_file(tiny_data: Path) -> None:
    path, descriptor = tiny_data / "train.h5", os.memfd_create("test")
    try:
        first = open_resident(path, "ram", stage_dir=None, ram_fd=descriptor, poll=nothing)
        assert os.fstat(descriptor).st_size == path.stat().st_size
        written = os.fstat(descriptor).st_mtime_ns
        second = open_resident(path, "ram", stage_dir=None, ram_fd=descriptor, poll=nothing)
        assert os.fstat(descriptor).st_mtime_ns == written
    finally:
        os.close(descriptor)
    plain = open_dataset(path)
    for dataset in (first, second):
        assert dataset.path == path
        assert np.array_equal(dataset.bands, plain.bands)
        assert np.array_equal(dataset.votes, plain.votes)
        assert dataset.fingerprint == plain.fingerprint


def test_the_copy_that_another_fold_made_counts_as_room(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, descriptor = tiny_data / "train.h5", os.memfd_create("test")
    room = path.stat().st_size + residency._HEADROOM
    monkeypatch.setattr(residency, "read_memory", lambda _: Memory(room - os.fstat(descriptor).st_size, limited=True))
    try:
        for _ in range(2):
            open_resident(path, "ram", stage_dir=None, ram_fd=descriptor, poll=nothing)
        with pytest.raises(RecipeError, match="does not fit"):
            open_resident(path, "ram", stage_dir=None, ram_fd=None, poll=nothing)
    finally:
        os.close(descriptor)


def test_a_copy_survives_the_file(tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    path.write_bytes((tiny_data / "train.h5").read_bytes())
    dataset = open_resident(path, "ram", stage_dir=None, ram_fd=None, poll=nothing)
    os.truncate(path, 0)
    path.unlink()
    assert np.array_equal(dataset.bands, open_dataset(tiny_data / "train.h5").bands)


def test_a_stop_while_copying_leaves_what_the_next_fold_completes(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contrails.files._COPY_BLOCK", 10_000)
    path, descriptor, calls = tiny_data / "train.h5", os.memfd_create("test"), []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped("asked to")

    try:
        with pytest.raises(Stopped):
            copy_to_ram(path, descriptor, stop)
        assert 0 < os.fstat(descriptor).st_size < path.stat().st_size
        assert copy_to_ram(path, descriptor, nothing).read_bytes() == path.read_bytes()
    finally:
        os.close(descriptor)


def test_processes_of_a_job_share_one_copy(tiny_data: Path) -> None:
    """Killed while it copies, the first leaves the work to the others; all map the same pages."""
    code = (
        "import os, signal, sys; from pathlib import Path; import contrails.files; "
        "from contrails.dataset.residency import copy_to_ram\n"
        "def poll():\n"
        "    if sys.argv[3] == 'die': os.kill(os.getpid(), signal.SIGKILL)\n"
        "contrails.files._COPY_BLOCK = 10_000\n"
        "copy_to_ram(Path(sys.argv[1]), int(sys.argv[2]), poll)"
    )
    path, descriptor = tiny_data / "train.h5", os.memfd_create("test")
    try:
        for fate, expected in (("die", -9), ("live", 0), ("live", 0)):
            command = [sys.executable, "-c", code, str(path), str(descriptor), fate]
            assert subprocess.run(command, pass_fds=[descriptor], check=False).returncode == expected
        assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == path.read_bytes()
    finally:
        os.close(descriptor)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for mode in ("auto", "mmap", "ram"):
        with pytest.raises(DataError, match=r"expected a dataset file at .*none.h5, found none"):
            open_resident(tmp_path / "none.h5", mode, stage_dir=None, ram_fd=None, poll=nothing)


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_limits_of_control_groups_version_2(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write_group(proc, cgroup="0::/slurm/job_1\n")
    write_group(groups)
    stat = "anon 5\nfile 1000000000\n"
    write_group(groups / "slurm", memory__max="max\n", memory__current="9000000000\n", memory__stat=stat)
    assert not read_memory(None, proc, groups).limited
    job = groups / "slurm/job_1"
    write_group(job, memory__max="4000000000\n", memory__current="3000000000\n", memory__stat=stat)
    # what is left, and the cached gigabyte that can be given back
    assert read_memory(None, proc, groups) == Memory(2 * GB, limited=True)
    # files in RAM are counted among the cached ones and cannot
    write_group(job, memory__stat=f"{stat}shmem 400000000\n")
    assert read_memory(None, proc, groups) == Memory(int(1.6 * GB), limited=True)
    write_group(groups / "slurm", memory__max="3500000000\n", memory__current="3000000000\n", memory__stat=stat)
    assert read_memory(None, proc, groups) == Memory(int(1.5 * GB), limited=True)


def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write_group(proc, cgroup="5:devices:/x\n4:cpu,memory:/pbs/1.server\n0::/\n")
    write_group(
        groups / "memory/pbs/1.server",
        memory__limit_in_bytes="2000000000\n",
        memory__usage_in_bytes="500000000\n",
        memory__stat="total_cache 100000000\ntotal_shmem 30000000\n",
    )
    assert read_memory(None, proc, groups) == Memory(int(1.57 * GB), limited=True)
    unlimited = {"memory__limit_in_bytes": "9223372036854771712\n"}
    write_group(groups / "memory/pbs/1.server", **unlimited)
    assert not read_memory(None, proc, groups).limited


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write_group(proc, cgroup="0::/not/visible/here\n")
    write_group(groups, memory__max="3000000000\n", memory__current="0\n", memory__stat="file 0\n")
    assert read_memory(None, proc, groups) == Memory(3 * GB, limited=True)


def test_without_control_groups_the_free_memory_counts(tmp_path: Path) -> None:
    memory = read_memory(None, tmp_path, tmp_path)
    assert not memory.limited
    assert memory.available > 0


def test_the_memory_of_the_job_counts_where_no_control_group_holds_it(tmp_path: Path) -> None:
    node = read_memory(None, tmp_path, tmp_path)
    assert str(node) == f"this node has {node.available / GB:.1f} GB free, for all its jobs"
    job = read_memory(1.5, tmp_path, tmp_path)
    assert job.available < 1.5 * 1024**3
    assert str(job) == f"this job may use {job.available / GB:.1f} GB"
    assert not job.limited  # so nothing is copied to RAM for it
    assert read_memory(1e9, tmp_path, tmp_path).available <= psutil.virtual_memory().total


def test_local_disks_are_no_network_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not residency._on_network(tmp_path / "d.h5")

    class Mount:
        def __init__(self, mountpoint: Path, fstype: str) -> None:
            self.mountpoint, self.fstype = str(mountpoint), fstype

    mounts = [Mount(Path("/"), "ext4"), Mount(tmp_path, "nfs4"), Mount(tmp_path / "scratch", "xfs")]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: mounts)
    assert residency._on_network(tmp_path / "d.h5")
    (tmp_path / "scratch").mkdir()
    assert not residency._on_network(tmp_path / "scratch" / "d.h5")
