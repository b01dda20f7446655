"""A disk that is full: a file system of a few megabytes in RAM, for tests that may mount one."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted file system; `leave` fills it but for some KiB, `clear` gives the room back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / ".ballast"

    def leave(self, kib: int) -> None:
        """Fill the disk, but for so many KiB."""
        self.clear()
        status = os.statvfs(self.path)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - 1024 * kib)

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def files(self) -> set[str]:
        """Return what lies on the disk, by names below it."""
        found = {str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir()}
        return found - {self._ballast.name}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 32 MB with nothing on it, where this user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(path)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no command mount: a small disk cannot be had")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)
