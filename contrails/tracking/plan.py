"""What to send for a fold or an aggregation, from its files and from `wandb.json` beside them.

`wandb.json` holds the `id` of the W&B run; the number of `rows` sent under it and their `digest`, both written before
the first row is sent; `sent`, the destination that has confirmed `held` rows; `offline`, the folder of an offline run;
and the `stamp` of a closed W&B run, which changes if anything new is to be sent.
"""

import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrails.cluster.status.fold_state import ALIVE, fold_state
from contrails.files import read_json, sha256, to_json, write_atomic
from contrails.runs.folder import Fold, Run
from contrails.tracking.contents import digest_of, notes_of, rows_of
from contrails.tracking.messages import Answer, Task
from contrails.tracking.sink import Outcome


@dataclass(frozen=True)
class Item:
    """A fold, or an aggregation in the folder `path`."""

    run: Run
    path: Path
    fold: Fold | None = None

    @property
    def name(self) -> str:
        return f"{'fold' if self.fold else 'aggregation'} {self.path.name}"

    @property
    def rebuild(self) -> str:
        """The command that makes a new W&B run for it."""
        return (
            f"contrails sync {self.run.typed}{f' --fold {shlex.quote(self.fold.key)}' if self.fold else ''} --rebuild"
        )

    @property
    def record(self) -> Path:
        return self.path / "wandb.json"


@dataclass(frozen=True)
class Plan:
    """A task, the content of `wandb.json` when it is done, and a message for the user."""

    item: Item
    task: Task
    stamp: list[Any]
    record: dict[str, Any]
    said: str | None = None

    def begin(self) -> None:
        """Record what will be sent, so that after a kill the same id and rows are used."""
        write_atomic(self.item.record, to_json({key: self.record[key] for key in self.record if key != "stamp"}))

    def finish(self, answer: Answer) -> None:
        """Record what W&B holds, unless the W&B run is offline and stays open."""
        if answer.offline is None or self.task.outcome != "running":
            record = self.record | {"sent": self.stamp[0], "held": answer.rows}
            closed = {"stamp": self.stamp} | ({"offline": answer.offline} if answer.offline else {})
            write_atomic(self.item.record, to_json(record | (closed if self.task.outcome != "running" else {})))


def items_of(run: Run, folds: list[Fold], *, aggregations: bool) -> list[Item]:
    """Return folds, and the aggregations of their run."""
    found = [Item(run, fold.path, fold) for fold in folds]
    return found + [Item(run, path) for path in (run.aggregations() if aggregations else ())]


def plan(item: Item, destination: str, opened: list[Any] | None, *, live: bool, rebuild: bool) -> Plan | None:
    """Return what to send for an item; None if nothing is new.

    Args:
        item: a fold or an aggregation.
        destination: where it is sent; see `Account.destination`.
        opened: stamp of the W&B run that this process has open; None if it has none.
        live: whether to leave the W&B run open while its fold trains.
        rebuild: whether to begin a new W&B run in any case.
    """
    known = read_json(item.record) or {}
    if item.fold is not None:
        rows = rows_of(item.fold, known.get("rows", 0))
        changed = "rows" in known and digest_of(rows[: known["rows"]]) != known["digest"]
        if rebuild or changed:
            rows = rows_of(item.fold)
        if not rows:
            return None
        count, digest = len(rows), digest_of(rows)
    else:
        count, digest, changed = _after_older_tables(item, known, destination)
    outcome = outcome_of(item, live=live)
    attempts = len(item.fold.attempts()) if item.fold else 0
    if opened and opened[-1] != attempts:  # the configuration lists the attempts, so the W&B run is opened again
        outcome = "preempted" if outcome == "running" else outcome
    stamp = [destination, digest, outcome, notes_of(item.run), attempts]
    if not (rebuild or changed) and stamp == (opened if outcome == "running" else known.get("stamp")):
        return None
    said, old = None, known.get("id")
    if changed and not rebuild:
        said = f"the data that W&B holds as {old} have changed since: all of them are sent to a new W&B run"
    if rebuild or changed or old is None:
        known = {"id": secrets.token_hex(4)}
        count = count if item.fold else 0
    sent = known.get("sent")
    record = {"id": known["id"], "rows": count, "digest": digest} | ({"sent": sent} if sent else {})
    task = Task(str(item.path), known["id"], outcome, count, digest, sent == destination != "offline")
    return Plan(item, task, stamp, record, said)


def signs_of(fold: Fold) -> list[Any]:
    """Return file sizes and names that change when the rows of a fold do, without reading the rows."""
    sizes = [each.metrics.stat().st_size if each.metrics.exists() else 0 for each in fold.attempts()]
    notes = fold.run.notes.stat().st_size if fold.run.notes.exists() else 0
    return [sizes, [name.path.name for name in fold.all_snapshots()], fold.done.exists(), notes]


def _after_older_tables(item: Item, known: dict[str, Any], destination: str) -> tuple[int, str, bool]:
    """Return the number of rows before an aggregation's tables, a digest, and True if that number is unknown.

    The digest is that of `ensemble.json`.
    """
    digest = sha256(item.path / "ensemble.json")
    if known.get("sent") != destination or destination == "offline":
        return 0, digest, "digest" in known and known.get("digest") != digest and destination != "offline"
    if known["digest"] == digest:
        return int(known["rows"]), digest, False
    return int(known.get("held", 0)), digest, "stamp" not in known


def outcome_of(item: Item, *, live: bool) -> Outcome:
    """Return the state in which to leave the W&B run."""
    if item.fold is None:
        return "finished"
    state = fold_state(item.fold).state
    if state == "done":
        return "finished"
    if state not in ALIVE | {"not submitted", "stopped"}:
        return "failed"
    return "running" if live and state not in {"waiting", "stopped"} else "preempted"
