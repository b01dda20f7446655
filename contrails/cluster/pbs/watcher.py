"""What state each job is in: our own files first, then PBS, asked sparingly.

A result or a last word in the chain needs no question. For the rest, jobs are asked about 20 in a call, one round in
30 s at the most, however often and by whatever means a state is wanted. Absence is not an end: history is off by
default, and is purged.
"""

import time
from dataclasses import dataclass

from submitit.core.core import InfoWatcher
from submitit.core.utils import JobPaths

from contrails.cluster.pbs import client
from contrails.cluster.pbs.chain import Chain, current_id, links_of, over, successor_of
from contrails.cluster.pbs.states import (
    CANCELLED,
    COMPLETED,
    COMPLETING,
    LOST,
    OVER,
    PENDING,
    RUNNING,
    Verdict,
    read_verdict,
)

DELAY_S = 30.0
_ABSENT_BEFORE_LOST = 3
"""Answers without a job before it is LOST; with 30 s between them NFS has shown what another node wrote."""


@dataclass
class _Watched:
    """A job and what PBS last said about its current link; `asked` is the id of that link."""

    paths: JobPaths
    chain: Chain
    first: str
    asked: str
    server: str = ""
    verdict: Verdict | None = None
    absences: int = 0


class PbsInfoWatcher(InfoWatcher):
    """Shared by all jobs of a process; `unanswered` says why the last round left some as they were."""

    def __init__(self, delay_s: float = DELAY_S) -> None:
        super().__init__()
        self.delay_s = delay_s
        self._jobs: dict[str, _Watched] = {}
        self.unanswered: client.Unanswered | None = None

    def watch(self, job_id: str, paths: JobPaths) -> None:
        """Start to follow a job."""
        first = pbs_id(job_id)
        self._jobs.setdefault(job_id, _Watched(paths, Chain(paths.folder, job_id), first, first))

    def is_watched(self, job_id: str) -> bool:
        """Return whether the job is followed already."""
        return job_id in self._jobs

    def is_known(self, job_id: str) -> bool:
        """Return whether our files, or PBS when it was last asked, know what became of the job."""
        job = self._jobs[job_id]
        return _by_files(job) is not None or job.absences == 0

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Return the state of a job; `mode` "cache" asks nobody."""
        return self.get_info(job_id, mode)["State"]

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Return whether the job will not change any more."""
        return self.get_state(job_id, mode) in OVER

    def get_info(self, job_id: str, mode: str = "standard") -> dict[str, str]:
        """Return State, JobId (of the current link), and where there are any: Reason, Comment, Advice, Name, Node."""
        job = self._jobs[job_id]
        info = _by_files(job)
        if info is None:
            self.update_if_long_enough(mode)
            info = _by_files(job) or _by_scheduler(job)
        return {"JobId": job.asked} | {key: value for key, value in info.items() if value}

    def update_if_long_enough(self, mode: str) -> None:
        """Ask PBS about all jobs that are not over, unless it was asked a short while ago; "force" changes nothing."""
        if mode != "cache" and time.time() - self._last_status_check >= self.delay_s:
            self.update()

    def update(self) -> None:
        """Ask PBS about all jobs that are not over."""
        self._last_status_check, self.unanswered = time.time(), None
        waiting = [job for job in self._jobs.values() if _by_files(job) is None and not _is_final(job)]
        for start in range(0, len(waiting), client.MOST_IDS):
            batch = waiting[start : start + client.MOST_IDS]
            for job in batch:
                _follow(job)
            self._num_calls += 1
            try:
                answer = client.query([f"{job.asked}{job.server}" for job in batch])
            except client.Unanswered as error:
                self.unanswered = error
                continue  # what was known stays
            for job in batch:
                _note(job, answer.get(job.asked))
                _follow(job)

    def clear(self) -> None:
        """Forget what PBS said."""
        super().clear()
        for job in self._jobs.values():
            job.verdict, job.absences = None, 0


def pbs_id(job_id: str) -> str:
    """Return PBS's id of a job.

    >>> pbs_id("22[].host_3")
    '22[3].host'
    """
    array, separator, index = job_id.rpartition("_")
    return array.replace("[]", f"[{index}]") if separator and "[]" in array else job_id


def _by_files(job: _Watched) -> dict[str, str] | None:
    last_word = over(job.chain.rows())
    if last_word is not None:
        return {"State": last_word["state"], "Reason": last_word["reason"] or ""}
    if job.chain.cancelled and (job.verdict is None or job.verdict.state != RUNNING):
        return {"State": CANCELLED, "Reason": "cancelled"}
    return None


def _by_scheduler(job: _Watched) -> dict[str, str]:
    if job.absences >= _ABSENT_BEFORE_LOST:
        return {"State": LOST, "Reason": f"PBS does not know job {job.asked} (any more), and it left no result"}
    if job.verdict is None:
        has_started = current_id(job.chain.rows(), "") == job.asked
        return {"State": RUNNING if has_started else PENDING}
    state = job.verdict.state
    if job.paths.result_pickle.exists() and not job.verdict.over:
        state = COMPLETING
    verdict = job.verdict
    return {
        "State": state,
        "Comment": verdict.comment,
        "Advice": verdict.advice or "",
        "Name": verdict.name,
        "Node": verdict.node,
    }


def _is_final(job: _Watched) -> bool:
    return job.absences >= _ABSENT_BEFORE_LOST or (job.verdict is not None and job.verdict.over)


def _note(job: _Watched, attributes: dict[str, str] | None) -> None:
    if attributes is None:
        job.absences += 1
        return
    job.absences, job.verdict = 0, read_verdict(attributes)
    if attributes["job_state"] == "M":  # the queue is that of another server, which must be asked from now on
        _, at, server = attributes.get("queue", "").partition("@")
        job.server = at + server


def _follow(job: _Watched) -> None:
    """Turn to the next link if it has started, or if the current one is gone and was not deleted."""
    rows = job.chain.rows()
    links = links_of(rows, job.first)
    link = max(job.asked, current_id(rows, job.first), key=links.index)
    # whoever deletes a link means the job: its successor will see that, and leave
    ended = job.verdict is not None and job.verdict.over and job.verdict.state not in (COMPLETED, CANCELLED)
    if link == job.asked and (ended or job.absences >= _ABSENT_BEFORE_LOST):
        link = successor_of(rows, job.asked) or link
    if link != job.asked:
        job.asked, job.server, job.verdict, job.absences = link, "", None, 0
