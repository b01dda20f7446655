"""The interface of a scheduler: submit, look up and cancel jobs, and hand a job over from inside.

A scheduler is a module that satisfies `Scheduler`. It renders and parses the scheduler's text, and maps its states and
causes through one table. Code above it uses none of the scheduler's commands and never compares its name;
`Capabilities` says how schedulers differ.
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
    """A job to submit: a function by name, with paths and names as arguments, so that its pickle cannot be outdated."""

    name: str
    function: str
    """As `module:name`; it may name a module of a higher layer, and is imported when the job is submitted."""
    arguments: tuple[Any, ...]
    folds: tuple[str, ...] = ()
    environment: dict[str, str] | None = None
    after: Mapping[str, Path] = field(default_factory=dict)
    """Ids of jobs that must have succeeded, with submitit's folder of each."""
    teardown: tuple[str, ...] = ()
    """Shell lines that run after the function has ended; `$code` is its exit code, `"${python[@]}"` starts Python."""
    paths: tuple[Path, ...] = ()
    """Files and folders that it reads and writes."""
    memory_gb: float | None = None
    exclude: tuple[str, ...] = ()

    def delayed(self) -> "DelayedSubmission":
        """Return the object that submitit pickles."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(resolve_name(self.function), *self.arguments)


@dataclass(frozen=True)
class Job:
    """The scheduler's answer about a job; `cause` is set only if it has ended and the scheduler knows why."""

    job_id: str
    name: str
    state: Literal["waiting", "running", "suspended", "ended"]
    native: str
    """The scheduler's own name of the state, with its reason and what to do about it, if anything."""
    cause: Cause | None = None
    node: str = ""
    stuck: bool = False
    """Whether it waits for something that it can never get, so that only another site profile helps."""
    never_ran: bool = False
    """Whether it ended without ever having a node: it was refused later, or ended while it waited."""
    is_orphan: bool = False
    """Whether the job that it waits for has failed; if it has ended, it is submitted again when that job goes on."""


@dataclass(frozen=True)
class Reference:
    """What identifies a job to the scheduler: its name and, if known, its id, which must both match.

    A scheduler that has lost its state reuses ids, so an id alone may be that of another user's job.
    """

    name: str
    folder: Path
    """submitit's folder of the job."""
    since: float
    """When it was requested, in seconds since the epoch; a removed run may have had a job of the same name."""
    job_id: str | None = None


@dataclass(frozen=True)
class ThisJob:
    """The job that a process runs in, as that process sees it."""

    name: str
    job_id: str
    restart_count: int
    node: str
    devices: tuple[str, ...]
    memory_gb: float | None
    node_index: int = 0
    """Which of the job's nodes the process runs on; the job's launcher runs on 0."""
    address: str = "127.0.0.1"
    """Address of node 0 for the other nodes."""


@dataclass(frozen=True)
class Check:
    """One check of `contrails doctor`: whether it holds, what was found, and what to do if it does not."""

    name: str
    holds: bool
    found: str
    advice: str = ""


SCHEDULERS = {
    "local": "contrails.cluster.schedulers.local",
    "slurm": "contrails.cluster.schedulers.slurm",
    "pbs": "contrails.cluster.schedulers.pbs",
}
"""The module of each scheduler."""


@dataclass(frozen=True)
class Capabilities:
    """How schedulers differ for the code that uses them."""

    has_queue: bool
    """Whether jobs wait in a queue shared with others; it can be asked, may refuse a job, and supports dependencies."""
    runs_here: bool
    """Whether jobs run on the machine where they are submitted, and share its slots and GPUs."""
    starts_again: bool
    """Whether a job whose folds have failed may be started again, or followed by another, automatically."""


Standing = Literal["running", "timeout", "lost", "requeued", "cancelled"]
"""How the scheduler sees the job that this process runs in; "lost" means that its batch script was killed.

A job that is running, timed out or lost may be requeued, the others not.
"""


class Scheduler(Protocol):
    """The functions that a scheduler's module provides."""

    @property
    def CAPABILITIES(self) -> Capabilities:  # noqa: N802 - a constant of the module
        """What the scheduler can do."""

    def preview(self, folder: Path, site: "Site", request: Request) -> str:
        """Return the command that submits a job, as a comment, and its batch script; empty if there is none."""

    def check(self, site: "Site") -> Iterable[Check]:
        """Check whether queues, limits and nodes can satisfy the site, without submitting anything."""

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
            folder: folder for submitit's pickles, scripts and logs.
            site: the site profile.
            request: the job.
            announce: called with the path of the pickle before the scheduler is asked.
            accept: called with the job's id as soon as the scheduler has answered; also with the job's process if it
                runs on this machine, else None.

        Raises:
            LimitReached: the scheduler refused for a limit; it accepts the job once others have ended.
            ClusterError: the scheduler refused, or its answer was lost.
        """

    def complete(self, folder: Path, pickle: Path, job_id: str) -> None:
        """Finish a submission that was killed after the scheduler had accepted the job."""

    def look(self, jobs: Collection[Reference]) -> dict[str, Job]:
        """Return what the scheduler knows of these jobs, by name, without those that it has forgotten.

        Raises:
            ClusterError: the scheduler does not answer.
        """

    def cancel(self, jobs: Collection[Reference]) -> None:
        """End jobs for good, whatever `look` returns for them; ignore one that is over or unknown.

        Raises:
            ClusterError: the scheduler refuses or does not answer.
        """

    def pass_on(self, successors: Mapping[str, Collection[str]]) -> None:
        """Make jobs that wait for one of the keys wait for the jobs of its value instead.

        Raises:
            ClusterError: the scheduler refuses or does not answer.
        """

    def interruptions(self) -> dict[str, Callable[[Reference], object]]:
        """Return the ways in which a drill may interrupt a running job; each of them can happen to any job."""

    def this_job(self) -> ThisJob:
        """Return the job that this process runs in."""

    def end_time(self, job: ThisJob) -> float | None:
        """Return when the job's time ends, in seconds since the epoch; None if the scheduler does not say."""

    def standing(self, job: ThisJob) -> Standing:
        """Return how the scheduler sees this job now."""

    def requeue(self, job: ThisJob, changes: Collection[Cause]) -> bool:
        """Make the job that this process runs in start again later; return whether it will.

        Args:
            job: this job.
            changes: "memory" for more memory, "node" for another node; a scheduler that cannot change the same job
                returns False.
        """

    def peak_gb(self, job: ThisJob) -> float | None:
        """Return the peak memory in GB of this job's ended processes; None if it is unknown.

        It is infinite if the scheduler says that they were killed for memory.
        """

    def largest_memory_gb(self, site: "Site") -> float | None:
        """Return the memory in GB of the largest node that the site's jobs can get; None if it is unknown."""

    def last_code(self, code: int) -> int:
        """Return `code`, or another exit code if the scheduler would start the job again for `code`."""

    def why_restarted(self, job: ThisJob) -> Cause:
        """Return why this job was started again after a start that recorded no end."""

    def note_progress(self, job: ThisJob) -> None:
        """Report that the job has made progress, if the scheduler counts failed starts."""


def scheduler_of(site: "Site") -> Scheduler:
    """Return the module of the site's scheduler."""
    return scheduler_called(site.scheduler)


def scheduler_called(name: str) -> Scheduler:
    """Return the module of one of `SCHEDULERS`."""
    return cast(Scheduler, import_module(SCHEDULERS[name]))
