"""What the server holds: runs with the lines of their files, artifacts, uploads; and what must never have happened."""

import json
import threading
from dataclasses import dataclass, field
from typing import Any

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class StoredRun:
    """A run as the server shows it; `lines` are those of its streamed files, by their names."""

    name: str
    project: str
    entity: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    first_config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    state: str = "running"
    states: list[str] = field(default_factory=list)
    preempting: bool = False
    files: list[str] = field(default_factory=list)

    def become(self, state: str) -> None:
        if not self.states or self.states[-1] != state:
            self.states.append(state)
        self.state = state

    def count(self, name: str) -> int:
        return len(self.lines.get(name, ()))

    def tail(self, name: str) -> str:
        return json.dumps(self.lines.get(name, [])[-1:])

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lines.get(SUMMARY, ["{}"])[-1])
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history without W&B's own columns."""
        rows = [json.loads(line) for line in self.lines.get(HISTORY, ())]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


@dataclass
class Artifact:
    """An artifact with its manifest, where that was uploaded."""

    name: str
    kind: str
    run: str
    digest: str
    state: str = "PENDING"
    manifest: dict[str, Any] = field(default_factory=dict)


@dataclass
class Held:
    """All of it; `wrong` are gaps in a stream and lines that were replaced by others."""

    runs: dict[str, StoredRun] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def delete(self, name: str) -> None:
        with self.lock:
            del self.runs[name]
            self.deleted.add(name)

    def stream(self, run: StoredRun, sent: dict[str, Any]) -> None:
        """Take what one request of the file stream says: a chunk lies where its offset says."""
        for name, chunk in sent.get("files", {}).items():
            lines, offset, content = run.lines.setdefault(name, []), chunk["offset"], chunk["content"]
            if offset > len(lines):
                self.wrong.append(f"{run.name}: {name} goes on at {offset}, the server holds {len(lines)}")
            if name == HISTORY:
                self._compare(run, lines[offset : offset + len(content)], content)
            lines[offset : offset + len(content)] = content
        run.preempting = run.preempting or bool(sent.get("preempting"))
        if sent.get("complete"):
            code = sent.get("exitcode")
            run.become("finished" if code == 0 else "preempted" if run.preempting else "failed")
        elif run.state != "running":
            run.become("running")

    def _compare(self, run: StoredRun, before: list[str], after: list[str]) -> None:
        for old, new in zip(before, after, strict=False):
            kept = [{k: v for k, v in json.loads(line).items() if k[0] != "_"} for line in (old, new)]
            if kept[0] != kept[1]:
                self.wrong.append(f"{run.name}: {kept[0]} was replaced by {kept[1]}")
