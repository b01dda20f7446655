"""What one process passes to another that it starts: the job of a training, and the rank of the process."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from contrails.files import to_json


@dataclass(frozen=True)
class JobContext:
    """The job that a training runs in; the defaults describe a training without a job.

    The fields up to `ended_jobs` are written to `job.json` and used by the fence (see `contrails.train.attempt`).
    """

    scheduler: str | None = None
    job_id: str | None = None
    job_name: str | None = None
    restart_count: int = 0
    node: str | None = None
    """Name of the node in the scheduler."""
    ended_jobs: tuple[str, ...] = ()
    """Names of jobs that have ended according to the scheduler."""
    memory_gb: float | None = None
    """Memory of the job on a node, in GB of 2^30 bytes."""
    num_nodes: int = 1
    """Nodes over which the ranks of a fold are spread evenly."""
    address: str = "127.0.0.1"
    """Address of the first node, at which rank 0 waits for the others."""
    clock: str | None = None
    """Path of the file with the end of the walltime (see `contrails.train.stop`)."""
    stage_dir: str | None = None
    """Node-local folder for a copy of the dataset."""
    ram_fd: int | None = None
    """Descriptor of the anonymous file in which the folds of the job share a copy of the dataset."""
    verified_fd: int | None = None
    """Descriptor of the anonymous file in which the folds of the job record which rows are verified."""
    launcher_pid: int | None = None
    started_at: float | None = None
    """When the launcher started the training process, in seconds since the epoch."""
    start_s: dict[str, float] = field(default_factory=dict)
    """Seconds of the phases of the start before that moment (see `contrails.train.start`)."""
    redirect: bool = False
    """Whether to write the output to the attempt's logs."""
    summary: bool = False
    """Whether to print the table of the model first."""

    def ranks_per_node(self, num_ranks: int) -> int:
        """Return how many of a fold's ranks each node has."""
        return num_ranks // self.num_nodes

    @property
    def record(self) -> dict[str, Any]:
        """The fields that an attempt writes to its `job.json`."""
        names = ("scheduler", "job_id", "job_name", "restart_count", "node", "ended_jobs")
        return {name: value for name, value in asdict(self).items() if name in names}

    def to_json(self) -> str:
        """Return the context as JSON for `from_json`."""
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the context from the JSON of another process of the same code."""
        fields = json.loads(text)
        return cls(**fields | {"ended_jobs": tuple(fields["ended_jobs"])})


@dataclass(frozen=True)
class RankContext:
    """The context of a rank other than 0: its number, the attempt of rank 0, and the process that started it."""

    number: int
    attempt: int
    parent_pid: int
    job: JobContext

    def to_json(self) -> str:
        """Return the context as JSON for `from_json`."""
        return to_json(asdict(self) | {"job": self.job.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the context from the JSON of rank 0."""
        fields = json.loads(text)
        return cls(**fields | {"job": JobContext.from_json(fields["job"])})
