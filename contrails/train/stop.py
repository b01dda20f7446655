"""The wish to stop: signals set a flag, the loop reads it between steps and saves.

A handler runs between any two bytecodes of a training step, so it must not save anything itself.
"""

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopFlag:
    """`reason` names the signal that asked for a stop, None while there was none."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def install(self) -> None:
        """Handle the signals of schedulers and of Ctrl-C; a second Ctrl-C leaves at once."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            os._exit(128 + number)
        self.reason = signal.Signals(number).name
