"""How long the starts of a fold took before their first step, from the files of its attempts."""

from collections.abc import Sequence
from statistics import median

from contrails.cluster.queue.journal import Submission
from contrails.cluster.status.usage import spans
from contrails.runs.folder import Fold
from contrails.train.start import PHASES

START_PHASES = ("queue", *PHASES)
"""The phases of a start, in order."""


def start_of(fold: Fold, jobs: Sequence[Submission] | None = None) -> dict[str, float]:
    """Return the median seconds per phase of the starts of a fold, over the attempts that wrote them.

    `queue` is the time from the submission, or from the end of the attempt before it in the same job, until the
    launcher began. Waits for a slot of this machine or for an earlier attempt are included.
    """
    found: dict[str, list[float]] = {}
    for span in spans(fold, jobs):
        phases = dict(span.start_s)
        if phases and span.queued is not None:
            own = sum(phases.get(name, 0.0) for name in ("launcher", "environment", "imports"))
            phases = {"queue": max(0.0, span.started - span.queued - own)} | phases
        for name, seconds in phases.items():
            found.setdefault(name, []).append(seconds)
    return {name: round(median(found[name]), 3) for name in START_PHASES if name in found}
