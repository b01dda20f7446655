"""Which jobs are submitted again when the run that they waited for goes on, by what PBS's jobs have written."""

from pathlib import Path

import pytest
from conftest import MakeRun

from contrails.cluster.queue.freeze import imported_code
from contrails.cluster.queue.journal import record, submissions
from contrails.cluster.schedulers.pbs import _job
from contrails.cluster.submit.orphans import _left, adopt_orphans
from contrails.files import write_atomic
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Run
from contrails.submitit_pbs.chain import Chain

from replayed import Replayed

# what the watcher of the plugin says
LEFT = {"State": "CANCELLED", "Reason": "job 7.h, which had to succeed first, ended: FAILED", "Orphan": "yes"}
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


def test_runs_that_wait_for_each_other_are_submitted_again_one_after_the_other(
    make_run: MakeRun, pbs: Replayed
) -> None:
    for job_id, state in (("6.h", "R|run_count=1"), ("20.h", "H|substate=22"), ("21.h", "H|substate=22")):
        pbs.say({f"qstat -f -F dsv {job_id}": f"Job Id: {job_id}|Job_Name=ct|job_state={state}\n"})
    first, second, third = runs = [make_run(name) for name in ("first", "second", "third")]
    for run, before, job_id in zip(runs, (None, first, second), ("6.h", "8.h", "9.h"), strict=True):
        config = run.read_config().model_copy(
            update={"site": {"name": "s", "scheduler": "pbs"}, "code": imported_code()}
        )
        write_atomic(run.toml, to_toml(config))
        run.fold("0").path.mkdir(parents=True)
        waits_for = {"after": [str(before.path)]} if before is not None else {}
        record(run, "intent", name=f"{run.name}a1", folds=["0"], exclude=["n0"], memory_gb=3.0, **waits_for)
        record(run, "submitted", name=f"{run.name}a1", job_id=job_id)
        if before is not None:
            folder = run.job_folder(f"{run.name}a1")
            folder.mkdir(parents=True)
            last_word = {"state": "CANCELLED", "reason": LEFT["Reason"], "has_result": False, "is_orphan": True}
            Chain(folder, job_id).append("over", job_id=job_id, **last_word)
    adopt_orphans(first)
    assert len(submissions(first)) == 1
    for run, before, parent, job_id in ((second, first, "6.h", "20.h"), (third, second, "20.h", "21.h")):
        again = submissions(run)[-1]
        assert (again.job_id, again.folds, again.after) == (job_id, ("0",), (before,))
        assert (again.memory_gb, again.exclude) == (3.0, ("n0",))
        script = (again.folder(run) / f"{job_id}_submission.sh").read_text()
        assert f"{submissions(before)[-1].folder(before)}/{parent}" in script
    adopt_orphans(first)
    assert len(pbs.asked("qsub")) == 2
