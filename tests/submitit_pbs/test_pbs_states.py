"""The state table: against small captures of our own, and against all those of a real server where they are."""

import csv
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from contrails.submitit_pbs.client import Refused, Unanswered, parse_dsv, query
from contrails.submitit_pbs.states import OVER, read_verdict

CAPTURES = Path(__file__).parents[3] / "shared" / "data" / "openpbs_captures"

RAN = "Job run at Sat Nov 21 at 00:04 on (host[0]:ncpus=1)"


def ended(code: int | None, substate: int = 93, comment: str = RAN, **others: str) -> dict[str, str]:
    exit_status = {} if code is None else {"Exit_status": str(code)}
    return {"job_state": "F", "substate": str(substate), "comment": comment, "run_count": "1"} | exit_status | others


@pytest.mark.parametrize(
    ("attributes", "state"),
    [
        ({"job_state": "Q"}, "PENDING"),
        ({"job_state": "W"}, "PENDING"),
        ({"job_state": "T"}, "PENDING"),
        ({"job_state": "M", "queue": "gpu@other"}, "PENDING"),
        ({"job_state": "H", "substate": "22", "Hold_Types": "s"}, "PENDING"),
        ({"job_state": "H", "substate": "20", "Hold_Types": "u"}, "HELD"),
        ({"job_state": "R", "run_count": "1"}, "RUNNING"),
        ({"job_state": "B"}, "RUNNING"),
        ({"job_state": "S", "run_count": "1"}, "SUSPENDED"),
        ({"job_state": "E", "Exit_status": "4", "run_count": "1"}, "COMPLETING"),
        # the Exit_status of a requeued job is that of its last run
        ({"job_state": "Q", "Exit_status": "-11", "run_count": "1"}, "REQUEUED"),
        ({"job_state": "Q", "Exit_status": "-20", "run_count": "1"}, "REQUEUED"),
        (ended(0, 92), "COMPLETED"),
        (ended(3), "FAILED"),
        (ended(143), "FAILED"),
        (ended(137), "KILLED"),
        (ended(265), "KILLED"),
        (ended(268), "FAILED"),
        (ended(-29), "TIMEOUT"),
        (ended(-27), "OUT_OF_MEMORY"),
        (ended(-4), "NODE_FAIL"),
        (ended(-20), "NODE_FAIL"),
        (ended(-23), "FAILED"),
        (ended(271, 91, f"{RAN} and terminated by user1@host"), "CANCELLED"),
        (ended(265, 91, f"{RAN} and terminated by user1@host"), "CANCELLED"),
        (ended(271, 91, f"{RAN} and terminated by Scheduler@host"), "PREEMPTED"),
        ({"job_state": "F", "substate": "91", "comment": "Not Running. and terminated"}, "CANCELLED"),
        # what it was to follow did not happen
        ({"job_state": "F", "substate": "92"}, "CANCELLED"),
        # elements of an array: deleted in the queue, and ended while others run
        ({"job_state": "X", "Exit_status": "0", "substate": "70", "comment": "Subjob finished"}, "CANCELLED"),
        ({"job_state": "X", "Exit_status": "0", "run_count": "1", "substate": "92"}, "COMPLETED"),
        ({"job_state": "F", "array": "True", "Exit_status": "1", "substate": "93"}, "FAILED"),
        (ended(None), "LOST"),
    ],
)
def test_states(attributes: dict[str, str], state: str) -> None:
    assert read_verdict(attributes).state == state


@pytest.mark.parametrize(
    ("attributes", "advice"),
    [
        ({"job_state": "Q", "comment": "Can Never Run: Insufficient amount of resource: ncpus"}, "no node can ever"),
        ({"job_state": "H", "substate": "20", "Hold_Types": "s", "run_count": "21"}, "after failed starts"),
        ({"job_state": "H", "substate": "20", "Hold_Types": "u"}, "qrls"),
        (ended(-27), "request more memory"),
        (ended(-23), "kinit"),
    ],
)
def test_what_a_user_can_mend_comes_with_advice(attributes: dict[str, str], advice: str) -> None:
    assert advice in (read_verdict(attributes).advice or "")


# the captures of a real server

EXPECTED = {
    "state_R": "RUNNING",
    "state_R_routed": "RUNNING",
    "state_S_suspended_by_preemption": "SUSPENDED",
    "state_H_depend": "PENDING",
    "state_H_user": "HELD",
    "state_W": "PENDING",
    "state_E": "COMPLETING",
    "state_koed_nodir": "HELD",
    "state_Q_infeasible": "PENDING",
    "state_F_run_exit0": "COMPLETED",
    "state_F_exit3": "FAILED",
    "state_F_shell_sigkill": "KILLED",
    "state_F_shell_sigterm": "FAILED",
    "state_F_shell_killed_by_USR2": "FAILED",
    "state_F_python_oom_like": "KILLED",
    "state_F_mem_exceeded": "OUT_OF_MEMORY",
    "state_F_cput_exceeded": "KILLED",
    "state_F_walltime_shell_default": "TIMEOUT",
    "state_F_walltime_shell_trap": "TIMEOUT",
    "state_F_walltime_exec_ignores_TERM": "TIMEOUT",
    "state_F_walltime_exec_exit77_on_TERM": "TIMEOUT",
    "state_F_qdel_running_shell": "CANCELLED",
    "state_F_qdel_force": "CANCELLED",
    "state_F_qdel_while_Q": "CANCELLED",
    "state_F_never_ran_afterok_of_failed": "CANCELLED",
    "state_F_depend_never": "CANCELLED",
    "state_F_depend_ran": "COMPLETED",
    "state_F_subjob_x": "COMPLETED",
    "state_F_subjob_exit3_x": "FAILED",
    "state_X_subjob_while_parent_B": "COMPLETED",
    "state_preempt_D__1": "RUNNING",
    "state_preempt_D__2": "PREEMPTED",
    "state_preempt_R__1": "REQUEUED",
    "state_preempt_R__2": "RUNNING",
    "mom_restarted_norerun": "NODE_FAIL",
    "mom_restarted_rerunnable": "RUNNING",
    "node_fail_norerun": "NODE_FAIL",
    "node_fail_requeued_rerunnable": "REQUEUED",
}


@pytest.fixture(scope="module")
def captures() -> dict[str, tuple[int, str, str]]:
    """Exit code, output and command of each capture, by name."""
    if not CAPTURES.is_dir():
        pytest.skip(f"no captures of a real server at {CAPTURES}: the same is tested on small ones")
    with (CAPTURES / "INDEX.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = {row["name"]: CAPTURES / f"{row['name']}.stdout" for row in rows}
    return {row["name"]: (int(row["rc"]), texts[row["name"]].read_text(), row["command"]) for row in rows}


def jobs_in(text: str) -> dict[str, dict[str, str]]:
    """Return the jobs of a capture; those in JSON as dsv would have printed them."""
    if not text.startswith("{"):
        return parse_dsv(text)
    jobs: dict[str, dict[str, Any]] = json.loads(text).get("Jobs", {})
    return {
        job_id: {key: str(value) for key, value in attributes.items() if not isinstance(value, dict)}
        for job_id, attributes in jobs.items()
    }


def test_every_capture_of_a_job_has_a_state(captures: dict[str, tuple[int, str, str]]) -> None:
    seen = 0
    for name, (_, text, command) in captures.items():
        for job_id, attributes in jobs_in(text).items() if "qstat" in command and "-Bf" not in command else ():
            verdict = read_verdict(attributes)
            assert (verdict.state in OVER) == (attributes["job_state"] in "FX"), (name, job_id)
            seen += 1
    assert seen > 100


def test_captures_have_the_state_that_their_name_says(captures: dict[str, tuple[int, str, str]]) -> None:
    found = {name: next(iter(jobs_in(captures[name][1]).values())) for name in EXPECTED}
    assert {name: read_verdict(attributes).state for name, attributes in found.items()} == EXPECTED


def test_dsv_of_several_jobs_and_of_a_wild_environment(captures: dict[str, tuple[int, str, str]]) -> None:
    assert list(parse_dsv(captures["two_ids_dsv"][1])) == ["1112.pbs1", "1113.pbs1"]
    wild = parse_dsv(captures["state_Q_dash_V_functions_dsv"][1])["1198.pbs1"]
    assert wild["job_state"] == "Q"
    assert wild["comment"] == "Not Running: Queue not started."
    running = parse_dsv(captures["state_all_mixed_dsv"][1])["15.pbs1"]
    assert running["Resource_List.walltime"] == "00:05:00"


def test_captured_answers_are_told_apart(
    captures: dict[str, tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = tmp_path / "qstat"
    kinds: dict[str, str] = {}
    for name, (code, _, command) in captures.items():
        if not command.startswith("qstat -"):
            continue
        script.write_text(f"#!/bin/sh\ncat {shlex.quote(str(CAPTURES / name))}.stdout\nexit {code}\n")
        script.chmod(0o755)
        try:
            query(["7.host"])
            kinds[name] = "answered"
        except Unanswered:
            kinds[name] = "no answer"
        except Refused:
            kinds[name] = "refused"
    assert {name for name, kind in kinds.items() if kind == "no answer"} == {"err_server_down_qstat"}
    assert {name for name, kind in kinds.items() if kind == "refused"} == {"nohist_qstat_garbage_id"}
    assert len(kinds) > 80
