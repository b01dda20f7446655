"""The walltime clock of a job: how much time it has left. PBS sends no warning, so the job must check the clock.

A callable that stops between two of its own steps does not need submitit's `checkpoint()`:

    clock = Clock.of_this_job()
    while not done:
        step()
        if clock.is_near_end():
            save()
            sys.exit(75)  # go on in the next link
"""

import os
import time
from collections.abc import Mapping

from contrails.errors import ClusterError
from contrails.submitit_pbs import client
from contrails.submitit_pbs.script import SPEC, STARTED, parse_walltime, spec_of


class Clock:
    """Time until PBS ends a job.

    Args:
        job_id: id of the running job.
        started: its start, in seconds since the epoch.
        walltime_s: its walltime at submission.
        margin_s: seconds before the walltime at which the job shall save and leave.
    """

    def __init__(self, job_id: str, started: float, walltime_s: float, margin_s: float) -> None:
        self._job_id, self._walltime_s, self._margin_s = job_id, walltime_s, margin_s
        # from here on the monotonic clock is used, which nobody can set
        self._start = time.monotonic() - max(0.0, time.time() - started)
        self._ends = False

    @classmethod
    def of_this_job(cls, environment: Mapping[str, str] = os.environ) -> "Clock":
        """Return the clock of the job that this process belongs to.

        Raises:
            ClusterError: it belongs to no job of this plugin.
        """
        if SPEC not in environment:
            raise ClusterError(
                f"no walltime clock: {SPEC} is not set, so this process is not in a job of submitit's executor 'pbs'; "
                "submit it with submitit.AutoExecutor(folder, cluster='pbs')"
            )
        spec = spec_of(environment)
        return cls(environment["PBS_JOBID"], float(environment[STARTED]), spec.walltime_s, spec.margin_s)

    def seconds_left(self) -> float:
        """Return the seconds until the walltime ends, without asking PBS."""
        return self._start + self._walltime_s - time.monotonic()

    def ask(self) -> float:
        """Ask PBS for the walltime, which `qextend` or an operator may have changed; return the seconds left."""
        self._walltime_s = self._limit_now()
        return self.seconds_left()

    def is_near_end(self) -> bool:
        """Return whether it is time to save and leave.

        It asks PBS for the walltime before it returns True for the first time.
        """
        if self._ends or self.seconds_left() > self._margin_s:
            return self._ends
        self._ends = self.ask() <= self._margin_s
        return self._ends

    def _limit_now(self) -> float:
        try:
            # a server that hangs must not use up the time for saving
            attributes = client.query([self._job_id], timeout_s=self._margin_s / 4).get(self._job_id, {})
        except ClusterError:
            return self._walltime_s  # no answer: assume that it is unchanged
        limit = attributes.get("Resource_List.walltime")
        return self._walltime_s if limit is None else parse_walltime(limit)
