"""Identity of processes across hosts and reboots, and two ways to control child processes: signal them when their
parent ends, and block signals while they start."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SAME_START_S = 5.0


@dataclass(frozen=True)
class Process:
    """A process on a host; its start time distinguishes it from a later process with the same pid.

    `pid_uptime` is the host's uptime in seconds when the process started, which setting the clock does not change.
    """

    pid: int
    pid_uptime: float
    host: str
    boot_id: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields under the names that `process_in` reads."""
        return asdict(self)

    def is_of_this_host(self) -> bool:
        """Return whether the process ran on this host, so that it can be checked here."""
        return self.host == socket.gethostname()

    def is_dead(self) -> bool:
        """Return whether the process has certainly ended; False if it ran on another host."""
        if not self.is_of_this_host():
            return False
        if self.boot_id != boot_id():
            return True
        try:
            process = psutil.Process(self.pid)
            is_later = abs(_uptime_at_start(process) - self.pid_uptime) > _SAME_START_S
            return is_later or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def process_of(pid: int) -> Process:
    """Return the identity of a process of this host."""
    try:
        uptime = _uptime_at_start(psutil.Process(pid))
    except psutil.NoSuchProcess:  # it has already ended
        uptime = 0.0
    return Process(pid, uptime, socket.gethostname(), boot_id())


def process_in(row: Mapping[str, Any]) -> Process | None:
    """Return the process that a JSON object describes, or None."""
    fields = [row.get(name) for name in ("pid", "pid_uptime", "host", "boot_id")]
    return None if None in fields else Process(*fields)  # type: ignore[arg-type]


def boot_id() -> str:
    """Return the id of this host's current boot."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if path.exists():
        return path.read_text().strip()
    # macOS changes its boot time when the clock is set, so the session's UUID is used
    named = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False)
    return named.stdout.strip()


def end_with(parent_pid: int, number: signal.Signals) -> None:
    """Ask the kernel to send this process a signal when its parent ends.

    "Parent" is the thread that started this process (prctl(2)), so the parent must start it from a thread that lives
    as long as the parent itself.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number))
    if os.getppid() != parent_pid:  # the parent ended before prctl was called
        os.kill(os.getpid(), number)


@contextmanager
def held_back(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Block signals in this process during the body, and in processes started by the body until they unblock them.

    Ctrl-C in a terminal reaches every process of its group; a child that is still importing would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _uptime_at_start(process: psutil.Process) -> float:
    """Return the host's uptime in seconds when a process started.

    psutil counts it from the boot on Linux only. On other systems this returns the start as the time of day, which
    does not change for a process either.
    """
    booted = psutil.boot_time() if psutil.LINUX else 0.0
    return process.create_time() - booted
