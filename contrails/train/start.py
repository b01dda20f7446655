"""How long an attempt takes until its first step is done, by phase.

The figures are written to `state.json` of the attempt, and `contrails usage RUN` shows them.
"""

import time
from collections.abc import Mapping

PHASES = ("launcher", "environment", "imports", "staging", "open", "first_step")
"""In order: the launcher's own start; unpacking the environment on the node; the imports of the training process;
opening the dataset file, or copying it to the node or to RAM; the rest until the loop (other files, model, snapshot);
the first step."""


class StartClock:
    """Seconds per phase, from the moment at which the launcher started this process.

    Args:
        started_at: that moment, in seconds since the epoch; None if there was no launcher, so that the imports are not
            known.
        before: seconds of the phases before it.
    """

    def __init__(self, started_at: float | None = None, before: Mapping[str, float] | None = None) -> None:
        self._seconds = dict(before or {})
        self._since = time.time() if started_at is None else started_at
        if started_at is not None:
            self.passed("imports")

    def skip(self) -> None:
        """Leave out the time since the last phase: a wait for an earlier attempt is no part of the start."""
        self._since = time.time()

    def passed(self, phase: str, seconds: float | None = None) -> dict[str, float]:
        """Record the end of a phase, unless it is recorded already; return the seconds of all phases so far.

        Args:
            phase: one of `PHASES`.
            seconds: what it took; by default the time since the last phase.
        """
        if phase not in self._seconds:
            now = time.time()
            took = max(0.0, now - self._since if seconds is None else seconds)
            self._since = now if seconds is None else self._since + took
            self._seconds[phase] = round(took, 3)
        return dict(self._seconds)
