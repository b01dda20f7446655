"""Causes and retry budgets, from the files of attempts."""

from pathlib import Path
from typing import get_args

import pytest

from contrails.cluster.ends import read_end, retries_left, write_end
from contrails.cluster.outcomes import OUTCOMES, Cause, cause_of_exit, next_step, unstick
from contrails.cluster.schedulers.sites import Retries
from contrails.files import write_atomic
from contrails.runs.folder import Fold, Run


@pytest.fixture
def fold(tmp_path: Path) -> Fold:
    return Run(tmp_path / "run").fold("0")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (137, "memory"),
        (-9, "memory"),
        (-7, "dataset"),
        (9, "node"),
        (4, "data"),
        (11, "gpu_memory"),
        (8, "error"),
        (1, "error"),
        (75, "lost"),
        (-11, "lost"),
    ],
)
def test_exit_codes(code: int, cause: Cause) -> None:
    assert cause_of_exit(code) == cause


def test_the_table_has_every_cause_and_the_page_of_sites_says_it() -> None:
    assert set(OUTCOMES) == set(get_args(Cause))
    assert {cause for cause, outcome in OUTCOMES.items() if not outcome.is_final} >= set(Retries.model_fields)
    page = (Path(__file__).parents[2] / "jobs/sites/README.md").read_text()
    for cause, outcome in OUTCOMES.items():
        row = f"| {cause} | {outcome.seen} | {outcome.exit_code or ''} | {outcome.action} |"
        assert row in page.splitlines()


def test_a_start_that_took_all_of_the_time_and_a_refusal(fold: Fold) -> None:
    write_atomic(fold.run.toml, '[site]\nname = "small"\n[recipe.data]\ndataset = "x.h5"\n')
    there = f"`contrails resume {fold.run.path} --site small`"
    long = next_step("walltime", fold.run, stepless=True, lasted_s=55.2)
    assert "no step was made within 55 s" in long
    assert f"raise walltime_min of the site profile, then go on with {there}" in long
    assert "margin_s" in next_step("walltime", fold.run)
    assert next_step("error", fold.run, never_ran=True) == f"change the site profile, then go on with {there}"
    assert unstick(fold.run).startswith(f"`contrails cancel {fold.run.path}`, change the site profile")


def test_a_budget_is_used_up_by_the_same_cause_at_the_same_snapshot(fold: Fold) -> None:
    retries = Retries(memory=2)
    for number, left in ((1, 2), (2, 1), (3, 0)):
        fold.attempt(number).path.mkdir(parents=True)
        write_end(fold, fold.attempt(number), "memory")
        assert retries_left(fold, "memory", retries) == left
    write_atomic(fold.snapshot(7, 3, "0" * 16), b"")  # steps were made
    fold.attempt(4).path.mkdir()
    write_end(fold, fold.attempt(4), "memory")
    assert retries_left(fold, "memory", retries) == 2


def test_a_traceback_and_a_cancelled_job_are_not_tried_again(fold: Fold) -> None:
    fold.attempt(1).path.mkdir(parents=True)
    for cause in (cause for cause, outcome in OUTCOMES.items() if outcome.is_final):
        write_end(fold, fold.attempt(1), cause)
        assert retries_left(fold, cause, Retries()) <= 0


def test_an_end_that_nobody_understands_is_none(fold: Fold) -> None:
    write_atomic(fold.attempt(1).ended, '{"cause": "sunspots"}')
    assert read_end(fold.attempt(1)) is None
