"""Who lives: a process by its number, its start and the boot of its host; and what a process hands on to those that it
starts: its end, and signals that they cannot handle yet."""

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
    """A process of some host: its start tells it from a later one with the same number.

    `pid_uptime` is how many seconds the host was up when it started, whatever its clock was set to since.
    """

    pid: int
    pid_uptime: float
    host: str
    boot_id: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields under the names that `process_in` reads."""
        return asdict(self)

    def is_of_this_host(self) -> bool:
        """Return whether it can be looked for here."""
        return self.host == socket.gethostname()

    def is_dead(self) -> bool:
        """Return whether it is known to be over: of this host, and no longer running, or from before its last boot."""
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
    """Return a process of this host."""
    try:
        uptime = _uptime_at_start(psutil.Process(pid))
    except psutil.NoSuchProcess:  # it is over already
        uptime = 0.0
    return Process(pid, uptime, socket.gethostname(), boot_id())


def process_in(row: Mapping[str, Any]) -> Process | None:
    """Return the process that a JSON object names; None where it names none."""
    fields = [row.get(name) for name in ("pid", "pid_uptime", "host", "boot_id")]
    return None if None in fields else Process(*fields)  # type: ignore[arg-type]


def boot_id() -> str:
    """Return what names this boot of this machine."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if path.exists():
        return path.read_text().strip()
    # macOS moves the time of its boot when its clock is set
    named = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False)
    return named.stdout.strip()


def end_with(parent_pid: int, number: signal.Signals) -> None:
    """Have this process get a signal when its parent ends, however that ends.

    The kernel means the thread that started this process; parents that use this have no other that starts any.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number))
    if os.getppid() != parent_pid:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)


@contextmanager
def held_back(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Hold signals back, here for a moment, and in a process that is started meanwhile until it lets them through.

    Ctrl-C in a terminal reaches every process: one that still imports would end with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _uptime_at_start(process: psutil.Process) -> float:
    """Return how many seconds the host was up when a process started.

    Only Linux counts from its boot; elsewhere it is the time of day, which a process keeps.
    """
    booted = psutil.boot_time() if psutil.LINUX else 0.0
    return process.create_time() - booted
