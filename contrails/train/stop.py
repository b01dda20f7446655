"""The stop flag: signals and the walltime set it, and the loop reads it between steps, writes a snapshot and ends.

A signal handler can run in the middle of a training step, so it must not write a snapshot itself.
"""

import math
import os
import signal
import time
from pathlib import Path
from types import FrameType

from contrails.files import read_hint

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
_REREAD_S = 5.0


class StopFlag:
    """Why training is to stop: `reason` is the name of a signal or "walltime"; None until a stop is asked for.

    `clock` is a JSON file `{"end": s}` that the job's launcher updates: the end of the walltime on the monotonic clock
    of this host, which is the same in all processes and cannot be set. The file is read again every few seconds,
    because a scheduler can extend the walltime.
    """

    def __init__(self, clock: str | None = None) -> None:
        self.reason: str | None = None
        self._clock = Path(clock) if clock is not None else None
        self._end, self._read = math.inf, -math.inf

    def install(self) -> None:
        """Handle the signals of schedulers and Ctrl-C and unblock them; a second Ctrl-C ends the process at once."""
        for number in SIGNALS:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def asked(self, needed_s: float = 0.0) -> bool:
        """Return whether to stop: a signal came, or less than `needed_s` of the walltime is left."""
        if self.reason is None and self._seconds_left() < needed_s:
            self.reason = "walltime"
        return self.reason is not None

    def _seconds_left(self) -> float:
        now = time.monotonic()
        if self._clock is not None and now - self._read >= _REREAD_S:
            self._read = now
            self._end = read_hint(self._clock).get("end", self._end)
        return self._end - now

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == signal.Signals.SIGINT.name:
            os._exit(128 + number)
        self.reason = signal.Signals(number).name
