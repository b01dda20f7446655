"""What contrails asks of a scheduler, whichever it is: submit, look, cancel, and hand a job over from inside.

A scheduler is a module that satisfies `Scheduler`: its text is rendered and parsed there, its states and causes go
through one table, and nothing above knows its commands or compares its name: what differs, `Capabilities` says.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from contrails.cluster.outcomes import Cause
from contrails.processes import Process

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

    from contrails.cluster.schedulers.sites import Site


@dataclass(frozen=True)
class Request:
    """A job to be: a module's function with paths and names, nothing that could grow stale in a pickle."""

    name: str
    function: str
    """As `module:name`: what is above may be named here, and is imported where the job is submitted."""
    arguments: tuple[Any, ...]
    folds: tuple[str, ...] = ()
    environment: dict[str, str] | None = None
    after: Mapping[str, Path] = field(default_factory=dict)
    """Ids of jobs that must have succeeded, with submitit's folder of each."""
    teardown: tuple[str, ...] = ()
    """Shell lines that run when the function has ended; `$code` is its exit code."""
    memory_gb: float | None = None
    exclude: tuple[str, ...] = ()

    def delayed(self) -> "DelayedSubmission":
        """Return what submitit pickles."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(resolve_name(self.function), *self.arguments)


@dataclass(frozen=True)
class Job:
    """What the scheduler says about a job; `cause` only where it has ended and the scheduler knows why."""

    job_id: str
    name: str
    state: Literal["waiting", "running", "suspended", "ended"]
    native: str
    """The scheduler's own word for it, with its reason and what to do about that, where there is something."""
    cause: Cause | None = None
    node: str = ""
    stuck: bool = False
    """Whether it waits, and asks for what it can never get: only another site profile helps."""
    never_ran: bool = False
    """Whether it has ended without ever having had a node: refused after all, or ended while it waited."""
    is_orphan: bool = False
    """Whether it waits for a job that has failed; where it has ended, it is submitted again once that one goes on."""


@dataclass(frozen=True)
class Reference:
    """What a job is looked up by and ended by: its name and, where it is known, its id, which must both agree.

    A scheduler that has lost its state gives ids a second time: an id alone may be that of somebody else's job.
    """

    name: str
    folder: Path
    """submitit's folder of the job."""
    since: float
    """When it was asked for, in seconds since the epoch; a run that was removed may have had a job of the same name."""
    job_id: str | None = None


@dataclass(frozen=True)
class ThisJob:
    """What a process inside of a job knows about it."""

    name: str
    job_id: str
    restart_count: int
    node: str
    devices: tuple[str, ...]
    memory_gb: float | None


@dataclass(frozen=True)
class Check:
    """One point of `contrails doctor`: whether it holds, what was found, and what to do if it does not."""

    name: str
    holds: bool
    found: str
    advice: str = ""


SCHEDULERS = {
    "local": "contrails.cluster.schedulers.local",
    "slurm": "contrails.cluster.schedulers.slurm",
    "pbs": "contrails.cluster.schedulers.pbs",
}
"""The module of each."""


@dataclass(frozen=True)
class Capabilities:
    """In what schedulers differ for those who use them."""

    has_queue: bool
    """Whether jobs wait in a queue, which others use too: it can be asked, may refuse a job, and lets jobs wait for
    each other."""
    runs_here: bool
    """Whether jobs run on the machine on which they are submitted, and share its slots and GPUs."""
    starts_again: bool
    """Whether a job whose folds have failed may start again, or be followed by another, by itself."""


Standing = Literal["running", "timeout", "lost", "requeued", "cancelled"]
"""How the scheduler takes the job that this process runs in; lost: its batch script was killed.

The first three may be requeued, the others not.
"""


class Scheduler(Protocol):
    """What a scheduler's module offers."""

    @property
    def CAPABILITIES(self) -> Capabilities:  # noqa: N802 - a constant of the module
        """What it can do."""

    def preview(self, folder: Path, site: "Site", request: Request) -> str:
        """Return the command that submits a job, in a comment, and its batch script; empty where there is none."""

    def check(self, site: "Site") -> Iterable[Check]:
        """Look whether queues, limits and nodes can satisfy the site; nothing is submitted."""

    def submit(
        self,
        folder: Path,
        site: "Site",
        request: Request,
        announce: Callable[[Path], None],
        accept: Callable[[str, Process | None], None],
    ) -> str:
        """Submit a job and return its id.

        Args:
            folder: where submitit keeps pickles, scripts and logs.
            site: what the job may use.
            request: the job.
            announce: called with the path of the pickle before the scheduler is asked.
            accept: called with the id as soon as the scheduler has answered, and with the process that is the job
                where it runs on this machine, None elsewhere.

        Raises:
            LimitReached: the scheduler refused, and will not once other jobs have ended.
            ClusterError: the scheduler refused, or its answer was lost.
        """

    def complete(self, folder: Path, pickle: Path, job_id: str) -> None:
        """Finish what a submission that was killed had left undone after the scheduler took the job."""

    def look(self, jobs: Collection[Reference]) -> dict[str, Job]:
        """Return what the scheduler knows of these jobs, by name; those that it has forgotten are left out.

        Raises:
            ClusterError: it does not answer.
        """

    def cancel(self, jobs: Collection[Reference]) -> None:
        """End jobs for good, whatever `look` says about them; one that is over or unknown is ended enough.

        Raises:
            ClusterError: the scheduler refuses or does not answer.
        """

    def pass_on(self, successors: Mapping[str, Collection[str]]) -> None:
        """Have jobs that wait for one of these, the keys, wait for the jobs in its place instead.

        Raises:
            ClusterError: the scheduler refuses or does not answer.
        """

    def interruptions(self) -> dict[str, Callable[[Reference], object]]:
        """Return what a drill may do to a running job: each of it may happen to any job."""

    def this_job(self) -> ThisJob:
        """Return the job that this process runs in."""

    def end_time(self, job: ThisJob) -> float | None:
        """Return when the job's time is over, in seconds since the epoch; None if the scheduler does not say."""

    def standing(self, job: ThisJob) -> Standing:
        """Return how the scheduler takes this job now."""

    def requeue(self, job: ThisJob, changes: Collection[Cause]) -> bool:
        """Have the job that this process runs in start again later; return whether it will.

        Args:
            job: this one.
            changes: "memory" for more of it, "node" for another one; whoever cannot do that with the same job says no.
        """

    def peak_gb(self, job: ThisJob) -> float | None:
        """Return the most memory that the processes of this job have used, which have ended; None if nobody knows.

        It is infinite where the scheduler says that they ended for memory.
        """

    def largest_memory_gb(self, site: "Site") -> float | None:
        """Return the memory of the largest node that the site's jobs can get; None where the scheduler does not say."""

    def last_code(self, code: int) -> int:
        """Return the exit code of a job that is not to start again, where `code` would say that it is."""

    def why_restarted(self, job: ThisJob) -> Cause:
        """Return why this job was started again after a start that left no word."""

    def note_progress(self, job: ThisJob) -> None:
        """Say that the job has got further than its earlier starts, where the scheduler counts those that fail."""


def scheduler_of(site: "Site") -> Scheduler:
    """Return the module of the site's scheduler."""
    return scheduler_called(site.scheduler)


def scheduler_called(name: str) -> Scheduler:
    """Return the module of one of `SCHEDULERS`."""
    return cast(Scheduler, import_module(SCHEDULERS[name]))
