"""Which jobs are submitted again when the run that they waited for goes on, by what PBS's jobs have written."""

from pathlib import Path

import pytest

from contrails.cluster.queue.journal import record
from contrails.cluster.schedulers.pbs import _job
from contrails.cluster.submit.orphans import _left
from contrails.files import write_atomic
from contrails.runs.folder import Run

# what the watcher of the plugin says
LEFT = {"State": "CANCELLED", "Reason": "job 7.h, which was to succeed first, ended: FAILED", "Orphan": "yes"}
DELETED = {"State": "CANCELLED", "Reason": "cancelled"}
FAILED = {"State": "FAILED", "Reason": "exit code 8"}
WAITS = {"State": "PENDING", "Comment": "Not Running: Job is held by dependency"}


@pytest.mark.parametrize(
    ("said", "after", "later", "over", "again"),
    [
        (LEFT, "first", "", "", ["0", "1"]),
        (DELETED, "first", "", "", []),
        (FAILED, "first", "", "", []),
        (WAITS, "first", "", "", []),
        (None, "first", "", "", []),  # PBS has forgotten it
        (LEFT, "another", "", "", []),
        (LEFT, "", "", "", []),
        (LEFT, "first", "0", "", ["1"]),  # fold 0 was submitted since
        (LEFT, "first", "0,1", "", []),
        (LEFT, "first", "", "done", ["1"]),
        (LEFT, "first", "", "cancelled", ["1"]),
    ],
)
def test_what_has_left_is_submitted_again_fold_by_fold(
    tmp_path: Path, said: dict[str, str] | None, after: str, later: str, over: str, again: list[str]
) -> None:
    parent, run = Run(tmp_path / "first"), Run(tmp_path / "second")
    run.fold("0").path.mkdir(parents=True)
    waits_for = {"after": [str(tmp_path / after)]} if after else {}
    record(run, "intent", name="ctf0a1", folds=["0", "1"], exclude=[], **waits_for)
    record(run, "submitted", name="ctf0a1", job_id="8.h")
    if later:
        record(run, "intent", name="ctf0a2", folds=later.split(","), exclude=[])
        record(run, "submitted", name="ctf0a2", job_id="9.h")
    if over:
        write_atomic(run.fold("0").done if over == "done" else run.fold("0").cancelled, "{}")
    known = {} if said is None else {"ctf0a1": _job("8.h", said | {"Name": "ctf0a1"}, list)}
    left = _left(run, parent, known)
    assert [key for _, folds in left for key in folds] == again
    assert [job.name for job, _ in left] == ["ctf0a1"] * bool(again)
