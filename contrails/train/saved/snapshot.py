"""Snapshots: the whole state of a fold on disk, written atomically and verified before a fold resumes from it.

The name holds the step, the attempt and the first 16 digits of the file's SHA-256, so that one rename publishes both
the snapshot and its checksum. A thread writes while training continues.
"""

import hashlib
import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from contrails.errors import RunError
from contrails.files import storage, write_atomic
from contrails.runs.folder import Fold, SnapshotName
from contrails.train.saved.finite import require_finite
from contrails.train.saved.host import HostCopies

KEEP = 2
"""Number of snapshots kept: if the newest is damaged, the fold resumes from the previous one."""

log = logging.getLogger(__name__)


def save_snapshot(fold: Fold, attempt: int, content: dict[str, Any]) -> Path:
    """Write the state at `content["step"]` and return its path."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    path = fold.snapshot(content["step"], attempt, hashlib.sha256(payload).hexdigest())
    write_atomic(path, payload)
    return path


def load_snapshot(fold: Fold) -> tuple[SnapshotName, dict[str, Any]] | None:
    """Return the newest intact snapshot, or None for a fold without snapshots.

    A damaged snapshot is logged, and the previous one is used.

    Raises:
        RunError: all snapshots are damaged; only the user may decide to start from the beginning.
    """
    names = fold.all_snapshots()
    for name in names:
        with storage(name.path, "read"):
            payload = name.path.read_bytes()
        if hashlib.sha256(payload).hexdigest()[:16] == name.digest:
            content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            return name, content
        log.warning("%s is damaged (its SHA-256 is not the one in its name); using the previous snapshot", name.path)
    if names:
        raise RunError(
            f"expected an intact snapshot in {fold.snapshots}, found {len(names)} that are damaged; restore one from a "
            "backup, or delete them to train this fold from the start"
        )
    return None


def prune_snapshots(fold: Fold) -> None:
    """Remove old snapshots and all distrusted ones; only the highest attempt may call this."""
    for path in (*(name.path for name in fold.all_snapshots()[KEEP:]), *fold.distrusted_snapshots()):
        with storage(path, "remove"):
            path.unlink(missing_ok=True)


def remove_leftovers(fold: Fold) -> None:
    """Remove temporary files of killed attempts; a superseded process that still writes one then fails, as intended."""
    for folder in (fold.snapshots, fold.weights):
        for path in folder.glob(".*.tmp"):
            with storage(path, "remove"):
                path.unlink(missing_ok=True)


class SnapshotWriter:
    """Writes the snapshots of one attempt from a thread, one after another.

    `before` runs in the thread before each write and may raise to prevent it; `after` runs when the write is complete
    and gets the state. `seconds` is the duration of the last write.
    """

    def __init__(
        self, fold: Fold, attempt: int, before: Callable[[], None], after: Callable[[dict[str, Any]], None]
    ) -> None:
        self._fold, self._attempt, self._before, self._after = fold, attempt, before, after
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._running: Future[None] | None = None
        self._copies = HostCopies()
        self.seconds = 0.0

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._running is not None and not self._running.done()

    @property
    def finished(self) -> bool:
        """Whether a write has ended and `wait` was not called yet."""
        return self._running is not None and self._running.done()

    def start(self, content: dict[str, Any]) -> None:
        """Copy a state to host memory and start to write it; `wait` must have been called for the previous one."""
        assert self._running is None
        self._running = self._pool.submit(self._write, *self._copies.copy(content))

    def wait(self) -> bool:
        """Wait for the current write; return whether there was one.

        Raises:
            NotFiniteError: the state is not finite; nothing was written.
            RunError: another attempt has taken over.
            StorageError: the snapshot could not be written; earlier ones are unchanged.
        """
        running, self._running = self._running, None
        if running is None:
            return False
        running.result()
        return True

    def _write(self, content: dict[str, Any], wait_for_copy: Callable[[], None]) -> None:
        started = time.monotonic()
        wait_for_copy()
        require_finite(content)
        # `before` checks for a newer attempt and flushes the metrics; pruning comes last, so that a kill loses nothing
        self._before()
        save_snapshot(self._fold, self._attempt, content)
        self._after(content)
        prune_snapshots(self._fold)
        self.seconds = time.monotonic() - started
