"""The journal of a run: what was asked of a scheduler, written before and after it is done."""

import time
from typing import Any

from contrails.files import append_json_line, read_json_lines
from contrails.runs import Run


def record(run: Run, event: str, **details: Any) -> None:
    """Append an event, flushed to the disk before this returns."""
    append_json_line(run.journal, {"event": event, "time": time.time(), **details}, durable=True)


def last_submission(run: Run, fold: str) -> dict[str, Any] | None:
    """Return the newest submission of a fold, or None if it was never submitted."""
    rows = [row for row in read_json_lines(run.journal) if row.get("event") == "submitted" and row.get("fold") == fold]
    return rows[-1] if rows else None
