"""Progress of long work on standard error: a rich bar on a terminal, otherwise a plain line every few seconds.

Work of less than a second shows nothing.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_APPEARS_S = 1.0
"""Seconds until progress is shown."""

_PLAIN_INTERVAL_S = 5.0

Advance = Callable[[int], None]
"""Called with the number of units finished since the last call."""


def tell(line: str) -> None:
    """Write a line to standard error; ignore a closed stream or a full disk, which must not end the work."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def bar(description: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Show how much of `total` is finished; `done` units were finished before this process started."""
    if sys.stderr.isatty():
        # imported here: jobs have no terminal, and rich is 60 files more to open when they start
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        started = time.monotonic()
        progress = Progress(*columns, console=Console(stderr=True))
        task = progress.add_task(description, total=total, completed=done, rate="")

        def advance(units: int) -> None:
            finished = progress.tasks[task].completed + units
            rate = (finished - done) / max(time.monotonic() - started, 1e-6)
            progress.update(task, advance=units, rate=f"{rate:.1f}/s")

        # in a thread, because the first unit of work may take longer than the delay
        timer = threading.Timer(_APPEARS_S, progress.start)
        timer.start()
        try:
            yield advance
        finally:
            timer.cancel()
            timer.join()
            progress.stop()
    else:
        line = _PlainLine(description, total, done)
        yield line.advance
        line.end()


class _PlainLine:
    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.finished = description, total, done
        self._first, self._started = done, time.monotonic()
        self._printed = self._started

    def advance(self, units: int) -> None:
        self.finished += units
        if self.finished < self.total and time.monotonic() - self._printed >= _PLAIN_INTERVAL_S:
            self.print()

    def end(self) -> None:
        if time.monotonic() - self._started >= _APPEARS_S:
            self.print()

    def print(self) -> None:
        self._printed = time.monotonic()
        rate = (self.finished - self._first) / max(self._printed - self._started, 1e-6)
        left = f", {(self.total - self.finished) / rate:.0f} s left" if rate and self.finished < self.total else ""
        tell(f"{self.description}: {self.finished}/{self.total} ({rate:.1f}/s{left})")
