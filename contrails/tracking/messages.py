"""Messages between `contrails sync` and its worker: one line of JSON each."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from contrails.tracking.sink import Outcome


@dataclass(frozen=True)
class Task:
    """A task of the worker: send the first `rows` rows of a fold, or an aggregation after `rows` rows of older tables.

    `digest` is the SHA-256 of the rows of a fold, or of `ensemble.json` of an aggregation. `sent` is True if W&B knows
    the run. If the outcome is "running", the W&B run stays open.
    """

    folder: str
    id: str
    outcome: Outcome
    rows: int
    digest: str
    sent: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Task":
        return cls(**content)


@dataclass(frozen=True)
class Answer:
    """The result of a task: W&B holds `rows` rows, or the folder `offline` does."""

    rows: int = 0
    offline: str | None = None
    error: str | None = None
    gone: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Answer":
        return cls(**json.loads(line))
