"""A process that must not outlive the one that started it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent_pid: int, number: signal.Signals) -> None:
    """Have this process get a signal when its parent ends, however that ends.

    The kernel means the thread that started this process; parents that use this have no other that starts any.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number))
    if os.getppid() != parent_pid:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)
