"""How much memory code takes, in a process of its own."""

import subprocess
import sys
from pathlib import Path


def grown(code: str) -> int:
    """Return the number that code prints last in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])


def resident(what: str) -> int:
    """Return the bytes in memory now (VmRSS) or at most so far (VmHWM); what is mapped from files counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))
