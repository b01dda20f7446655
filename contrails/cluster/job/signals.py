"""What a launcher does with signals: collect them for its children, or ignore them."""

import signal
from collections import deque

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals of schedulers, forwarded to the children; Ctrl-C needs no forwarding, a terminal sends it to all of them."""


def catch_signals() -> deque[int]:
    """Install handlers that only append signals to the returned deque, so that none ends this process."""
    asked: deque[int] = deque()
    for number in FORWARDED:
        signal.signal(number, lambda received, _frame: asked.append(received))
    # not SIG_IGN, which the children would inherit
    signal.signal(signal.SIGINT, lambda _received, _frame: None)
    return asked


def ignore_signals() -> None:
    """Ignore the scheduler's signals from now on: a requeue sends TERM to all processes of the job."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
