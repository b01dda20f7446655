"""The metrics of a fold over all its attempts, read from their files.

The rows of all attempts are joined by step, up to the step that `done.json` or the newest snapshot covers; later steps
may be trained again. If several attempts have a step, the row of the highest attempt is used.
"""

import sys
from typing import Any

from contrails.files import read_json_lines
from contrails.runs.folder import Fold


def fold_metrics(fold: Fold, *, newest: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a fold by step; the training and validation rows of one step are merged.

    With `newest`, include the rows after the last snapshot, which may be trained again.
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
    """Return the last step that is saved, so that no kill can undo it; 0 for a fold without a snapshot."""
    done = fold.read_done()
    if done is not None:
        return int(done["step"])
    snapshots = fold.all_snapshots()
    return snapshots[0].step if snapshots else 0
