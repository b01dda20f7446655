"""Snapshots: the whole state of a fold on disk, complete or absent, verified before anything resumes from it.

The name carries step, attempt and the first 16 digits of the file's SHA-256, so one rename makes a snapshot and its
checksum visible together.
"""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from contrails.errors import RunError
from contrails.files import storage, write_atomic
from contrails.runs import Fold, SnapshotName

KEEP = 2
"""Snapshots that stay: a damaged newest one costs the steps since the one before, not the run."""

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
    """Return the newest complete snapshot, or None for a fold that has none yet.

    A damaged one is named in the log and the one before is used.

    Raises:
        RunError: there are snapshots and all of them are damaged: starting from zero must be the user's decision.
    """
    names = fold.all_snapshots()
    for name in names:
        with storage(name.path, "read"):
            payload = name.path.read_bytes()
        if hashlib.sha256(payload).hexdigest()[:16] == name.digest:
            content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            return name, content
        log.warning("%s is damaged (its SHA-256 is not the one in its name); going back to the one before", name.path)
    if names:
        raise RunError(
            f"all {len(names)} snapshots in {fold.snapshots} are damaged; restore one from a backup, "
            "or delete them to train this fold from the start"
        )
    return None


def prune_snapshots(fold: Fold) -> None:
    """Remove all but the newest; only the highest attempt may call this."""
    for name in fold.all_snapshots()[KEEP:]:
        with storage(name.path, "remove"):
            name.path.unlink(missing_ok=True)
