"""The state of each job: from our own files first, then from PBS with as few queries as possible.

A job with a result, a tombstone or a recorded end needs no query. The others are queried in batches of about 20, at
most once in 30 s, however often and in whatever mode a state is requested. The interval is shorter when a link has just
recorded its end, since only PBS knows what follows. If PBS does not answer, the last known states stay. If its answer
lacks a job, the current link is gone, and the next link is looked for, which PBS releases at that moment. If there is
none, the job is LOST, unless one of its own files, which may appear late on NFS, says how it ended.
"""

import math
import time
from dataclasses import dataclass

from submitit.core.core import InfoWatcher
from submitit.core.utils import JobPaths

from contrails.submitit_pbs import client
from contrails.submitit_pbs.chain import Chain, current_id, end_without_next, links_of, made_way, over
from contrails.submitit_pbs.script import name_in
from contrails.submitit_pbs.search import agrees, next_link, pbs_id
from contrails.submitit_pbs.states import (
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
_SOON_S = 2.0
_JUST_S = 20.0
"""Seconds of faster queries after a link has recorded its end, until PBS knows it too."""
_ABSENT_BEFORE_LOST = 3
"""Number of answers without a job after which it is LOST; at 30 s intervals, NFS shows files of other nodes by then."""


@dataclass
class _Watched:
    """A job and PBS's last answer about its current link; `asked` is its id, `before` that of the previous link."""

    paths: JobPaths
    chain: Chain
    first: str
    asked: str
    known_name: str | None = None
    before: str = ""
    verdict_before: Verdict | None = None
    server: str = ""
    verdict: Verdict | None = None
    absences: int = 0
    num_ends: int = 0
    ended_at: float = -math.inf
    """When the newest end in the chain was noticed, on the monotonic clock."""

    def note_ends(self) -> None:
        """Check whether a link has recorded its end since the last call."""
        num_ends = sum(row["event"] == "ended" for row in self.chain.rows())
        if num_ends > self.num_ends:
            self.num_ends, self.ended_at = num_ends, time.monotonic()

    @property
    def has_just_ended(self) -> bool:
        """Whether a link recorded its end a short while ago, as of the last `note_ends`."""
        return time.monotonic() - self.ended_at < _JUST_S

    @property
    def name(self) -> str | None:
        """The name of all links of the job; None while the job has no script yet."""
        if self.known_name is None:
            self.known_name = name_in(self.paths.submission_file)
        return self.known_name


class PbsInfoWatcher(InfoWatcher):
    """Shared by all jobs of a process; `unanswered` is the error of the last round, if PBS did not answer."""

    def __init__(self, delay_s: float = DELAY_S) -> None:
        super().__init__()
        self.delay_s = delay_s
        self._jobs: dict[str, _Watched] = {}
        self.unanswered: client.Unanswered | None = None

    def watch(self, job_id: str, paths: JobPaths, name: str | None = None) -> bool:
        """Follow a job, whose name is read from its script if not given; return whether it was not followed before."""
        known = self._jobs.get(job_id)
        if known is not None and name in (None, known.name):
            return False
        # also if the name differs: a server that has lost its state has reused the id
        first = pbs_id(job_id)
        self._jobs[job_id] = _Watched(paths, Chain(paths.folder, job_id), first, first, name)
        return True

    def is_known(self, job_id: str) -> bool:
        """Return whether our files, or PBS's last answer, tell about the job."""
        job = self._jobs[job_id]
        return _by_files(job) is not None or job.absences == 0

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Return the state of a job; the mode "cache" makes no query."""
        return self.get_info(job_id, mode)["State"]

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Return whether the job is in a final state."""
        return self.get_state(job_id, mode) in OVER

    def get_info(self, job_id: str, mode: str = "standard") -> dict[str, str]:
        """Return State and JobId (of the current link), and other known properties of a job.

        These are Reason, Comment, Advice, Name, Node and Select; Stuck if it will never start by itself; Result
        ("none") if it has ended without a result; and Orphan if a job that had to succeed first has not.
        """
        job = self._jobs[job_id]
        info = _by_files(job)
        if info is None:
            job.note_ends()
            self.update_if_long_enough(mode, min(_SOON_S, self.delay_s) if job.has_just_ended else self.delay_s)
            info = _by_files(job) or _by_scheduler(job)
        return {"JobId": job.asked} | {key: value for key, value in info.items() if value}

    def update_if_long_enough(self, mode: str, delay_s: float | None = None) -> None:
        """Query PBS about all jobs that are not over, at most once per interval, even in the mode "force"."""
        delay_s = self.delay_s if delay_s is None else delay_s
        if mode != "cache" and time.time() - self._last_status_check >= delay_s:
            self.update()

    def update(self) -> None:
        """Query PBS about all jobs that are not over."""
        self._last_status_check, self.unanswered = time.time(), None
        waiting = [job for job in self._jobs.values() if _by_files(job) is None and not _is_final(job)]
        for job in waiting:
            _turn_to(job, _newest_started(job))
        try:
            while waiting:
                self._num_calls += 1
                answer = client.query([f"{job.asked}{job.server}" for job in waiting])
                for job in waiting:
                    _note(job, answer.get(job.asked))
                waiting = [job for job in waiting if _has_ended(job) and _turn_to(job, _next(job))]
        except client.Unanswered as error:
            self.unanswered = error  # the last known states stay

    def clear(self) -> None:
        """Forget PBS's answers."""
        super().clear()
        for job in self._jobs.values():
            job.verdict, job.absences = None, 0


def _by_files(job: _Watched) -> dict[str, str] | None:
    rows = job.chain.rows()
    last_word = over(rows)
    if last_word is not None:
        result = "none" if last_word.get("has_result") is False else ""
        orphan = "yes" if last_word.get("is_orphan") else ""
        return {"State": last_word["state"], "Reason": last_word["reason"] or "", "Result": result, "Orphan": orphan}
    if job.chain.cancelled:  # even if a process still saves
        return {"State": CANCELLED, "Reason": "cancelled", "Result": "none"}
    if job.verdict is not None and job.verdict.state == CANCELLED:
        return None
    end = end_without_next(rows, job.asked) if _has_ended(job) else None
    return None if end is None else {"State": end[0], "Reason": end[1], "Result": "none"}


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
        "Select": verdict.select,
        "Stuck": "yes" if verdict.stuck else "",
    }


def _is_final(job: _Watched) -> bool:
    return job.absences >= _ABSENT_BEFORE_LOST or (job.verdict is not None and job.verdict.over)


def _note(job: _Watched, attributes: dict[str, str] | None) -> None:
    if attributes is None or not agrees(job.name, attributes):
        job.absences += 1
        if job.verdict_before is not None and job.verdict_before.state == CANCELLED:  # no next link records the end
            job.absences, job.verdict = 0, job.verdict_before
        return
    job.absences, job.verdict = 0, read_verdict(attributes)
    if job.before and attributes.get("depend", "").startswith(f"afternotok:{job.before}@"):
        # a held link is released when the link before ends, but never when that is deleted from the queue
        job.verdict = Verdict(CANCELLED, f"job {job.before} was deleted while it waited", name=job.verdict.name)
    if attributes["job_state"] == "M":  # moved to another server, which must be asked from now on
        _, at, server = attributes.get("queue", "").partition("@")
        job.server = at + server


def _has_ended(job: _Watched) -> bool:
    """Return whether the current link is gone or over, so that another one may continue."""
    if job.absences > 0 or job.verdict is None:
        return job.absences > 0
    if job.verdict.state == COMPLETED:
        return made_way(job.chain.rows(), job.asked)
    return job.verdict.over  # even if it was deleted: the next link still starts, and records the end


def _newest_started(job: _Watched) -> str:
    rows = job.chain.rows()
    links = links_of(rows, job.first)
    started = current_id(rows, job.first)
    return started if job.asked not in links or links.index(started) > links.index(job.asked) else job.asked


def _next(job: _Watched) -> str | None:
    return next_link(job.chain.rows(), job.asked, job.first, job.name)


def _turn_to(job: _Watched, link: str | None) -> bool:
    """Follow another link from now on; return False if it is the same one."""
    if link in (None, job.asked):
        return False
    job.before, job.verdict_before = job.asked, job.verdict
    job.asked, job.server, job.verdict, job.absences = str(link), "", None, 0
    return True
