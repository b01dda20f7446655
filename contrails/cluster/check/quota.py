"""The space that the user's quota leaves: from `lfs quota` on Lustre, from `quota` elsewhere; often neither exists."""

import os
import subprocess
from pathlib import Path

import psutil

from contrails.user import user_name


def quota_left_gb(path: Path) -> float | None:
    """Return the GB that the user's quota leaves at a path; None if there is no quota or no command to read it."""
    said = _run("lfs", "quota", "-q", "-u", user_name(), str(path))
    left = parse_quota(said, None)
    return left if left is not None else parse_quota(_run("quota", "-w", "-p"), _device(path))


def parse_quota(text: str, device: str | None) -> float | None:
    """Return the space left in GB, from lines with a file system and its KiB used, quota and limit.

    >>> parse_quota("/dev/sda1 1000000* 900000 2000000 0 7 0 0 0", "/dev/sda1")
    1.024
    """
    for line in text.splitlines():
        words = line.split()
        numbers = [word.rstrip("*") for word in words[1:4]]
        if len(numbers) == 3 and all(map(str.isdecimal, numbers)) and device in (None, words[0]):
            used, quota, limit = map(int, numbers)
            if limit or quota:
                return max(0, (limit or quota) - used) * 1024 / 1e9
    return None


def _device(path: Path) -> str:
    """Return the device that is mounted at a path."""
    mounted = {Path(part.mountpoint): part.device for part in psutil.disk_partitions(all=True)}
    return next((mounted[folder] for folder in (path, *path.parents) if folder in mounted), "")


def _run(*command: str) -> str:
    environment = dict(os.environ) | {"LC_ALL": "C"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return ""
    return done.stdout  # not the exit code: quota also fails when a quota is exceeded
