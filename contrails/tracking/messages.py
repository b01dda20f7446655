"""What `contrails sync` and its worker say to each other: one line of JSON each."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from contrails.tracking.sink import Outcome


@dataclass(frozen=True)
class Task:
    """Have W&B hold the first `rows` rows of a fold, or an aggregation after `rows` rows of older ones.

    `digest` is that of the rows, `sent` whether the run is known to W&B. With the outcome "running" it stays open.
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
    """What became of a task: W&B holds `rows` rows; `offline` is the folder that holds them instead."""

    rows: int = 0
    offline: str | None = None
    error: str | None = None
    gone: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Answer":
        return cls(**json.loads(line))
