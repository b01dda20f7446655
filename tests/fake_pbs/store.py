"""What the server knows: one JSON file, read and written under a lock by the commands, the scheduler and the tests."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

SERVER = "fake1"
USER = "user1"


@dataclass
class Job:
    id: str
    name: str
    arguments: str
    script: str
    output: str
    select: str
    walltime: str
    queue: str = "workq"
    state: str = "Q"
    substate: int = 10
    hold: str = "n"
    environment: dict[str, str] = field(default_factory=dict)
    depend: tuple[str, list[str]] | None = None
    """Kind, and the ids that are left to wait for."""
    array: str | None = None
    index: int | None = None
    indices: str | None = None
    run_count: int = 0
    exit_status: int | None = None
    comment: str = ""
    workdir: str = field(default_factory=os.getcwd)
    created: float = field(default_factory=time.time)
    started: float = 0.0
    gone_at: float | None = None
    """When the server takes it for ended; its processes may live on."""
    why: str | None = None
    """Why the server ends it: walltime, delete, schedule (deleted by the scheduler), preempt, memory."""

    @property
    def over(self) -> bool:
        return self.state in "FX"


@dataclass
class State:
    factor: float = 0.3
    slots: int = 4
    next_id: int = 1
    history: bool = False
    max_queued: int = 0
    """Jobs of the user that the server takes, running and held ones included; 0 is no limit."""
    resources: list[str] = field(default_factory=list)
    """What select may name beside cores and memory."""
    node: dict[str, str] = field(default_factory=lambda: {"ncpus": "8", "mem": "64gb"})
    node_state: str = "free"
    more_nodes: list[dict[str, str]] = field(default_factory=list)
    """What other nodes have, with their `Name`; no job starts there."""
    down_until: float = 0.0
    lose_replies: int = 0
    lose_requests: int = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    orders: list[tuple[str, str]] = field(default_factory=list)
    """What the scheduler is to do with jobs: (order, job id)."""


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def open(self) -> Iterator[State]:
        """Yield the state; what the body changes is written."""
        with (self.root / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.root / "state.json"
            before = path.read_text() if path.exists() else "{}"
            values = json.loads(before)
            jobs = {key: Job(**job) for key, job in values.pop("jobs", {}).items()}
            state = State(**values, jobs=jobs)
            yield state
            after = json.dumps(asdict(state))
            if after != before:
                temporary = path.with_suffix(".tmp")
                temporary.write_text(after)
                temporary.rename(path)
