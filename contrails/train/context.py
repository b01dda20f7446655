"""What a fold's process is told about the job that it runs in, from the launcher to the last rank."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from contrails.files import to_json


@dataclass(frozen=True)
class JobContext:
    """The job around a training; the defaults are those of no job at all.

    The fields up to `ended_jobs` are for the record and for the fence (see `contrails.train.attempt`).
    """

    scheduler: str | None = None
    job_id: str | None = None
    job_name: str | None = None
    restart_count: int = 0
    node: str | None = None
    """As the scheduler calls it."""
    ended_jobs: tuple[str, ...] = ()
    """Names of jobs that the scheduler calls over."""
    memory_gb: float | None = None
    """What the scheduler gave the job."""
    clock: str | None = None
    """File with the walltime's end (see `contrails.train.stop`)."""
    stage_dir: str | None = None
    """Folder that gets a copy of the dataset."""
    ram_fd: int | None = None
    """Open anonymous file that the job's folds share for a copy of the dataset."""
    verified_fd: int | None = None
    """Another one, for what they have verified of it."""
    launcher_pid: int | None = None
    redirect: bool = False
    """Whether the output goes to the attempt's logs."""
    summary: bool = False
    """Whether the model's table is printed first."""

    @property
    def record(self) -> dict[str, Any]:
        """What an attempt keeps of it in its `job.json`."""
        names = ("scheduler", "job_id", "job_name", "restart_count", "node", "ended_jobs")
        return {name: value for name, value in asdict(self).items() if name in names}

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the context that another process of the same code has written."""
        fields = json.loads(text)
        return cls(**fields | {"ended_jobs": tuple(fields["ended_jobs"])})


@dataclass(frozen=True)
class RankContext:
    """What a rank that is not the first is told: its number, the attempt of rank 0, and where they meet."""

    rank: int
    attempt: int
    rank_0_pid: int
    meeting: str
    job: JobContext

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return to_json(asdict(self) | {"job": self.job.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the context that rank 0 has written."""
        fields = json.loads(text)
        return cls(**fields | {"job": JobContext.from_json(fields["job"])})
