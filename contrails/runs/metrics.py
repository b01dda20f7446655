"""A fold's metrics over all its attempts, read from their files.

The rows of all attempts are joined by step, up to the step that `done.json` or the newest snapshot covers: what lies
beyond may be trained again. Where several attempts hold a step, the highest one's row is taken.
"""

import sys
from typing import Any

from contrails.files import read_json_lines
from contrails.runs.folder import Fold


def fold_metrics(fold: Fold, *, newest: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a fold that count, by step; those of training and validation at one step are merged.

    With `newest` also those beyond the last snapshot, which may be trained again.
    """
    covered = sys.maxsize if newest else covered_step(fold)
    rows: dict[int, dict[str, Any]] = {}
    for attempt in fold.attempts():
        for row in read_json_lines(attempt.metrics):
            step = row.get("step")
            if isinstance(step, int) and step <= covered:
                rows[step] = rows.get(step, {}) | row
    return [rows[step] for step in sorted(rows)]


def covered_step(fold: Fold) -> int:
    """Return the last step that no kill can take away; 0 for a fold without a snapshot."""
    done = fold.read_done()
    if done is not None:
        return int(done["step"])
    snapshots = fold.all_snapshots()
    return snapshots[0].step if snapshots else 0
