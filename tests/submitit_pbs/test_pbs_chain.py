import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import JobPaths

from contrails.submitit_pbs import client, watcher
from contrails.submitit_pbs.chain import Chain, cause_of_start, is_saving, judge, memory_failures
from contrails.submitit_pbs.client import Unanswered
from contrails.submitit_pbs.script import BUDGETS
from contrails.submitit_pbs.search import element_id, pbs_id
from contrails.submitit_pbs.states import Verdict, read_verdict
from contrails.submitit_pbs.watcher import PbsInfoWatcher

START = {"event": "start", "job_id": "1.h", "link": 1, "token": "a"}
NEXT = {"event": "successor", "job_id": "2.h", "after": "1.h", "link": 2}
TERM = {"event": "term", "job_id": "1.h", "early": True}
LATE_TERM = TERM | {"early": False}


def ended(code: int) -> dict[str, Any]:
    return {"event": "ended", "job_id": "1.h", "code": code}


@pytest.mark.parametrize(
    ("rows", "verdict", "cause", "final"),
    [
        ([START, ended(75)], "FAILED", None, None),
        ([START, ended(255)], None, None, None),
        ([START, LATE_TERM, ended(255)], "TIMEOUT", None, None),
        ([START], "TIMEOUT", "TIMEOUT", None),
        ([START], "KILLED", "KILLED", None),
        ([START], None, "LOST", None),
        ([START, ended(137)], "FAILED", "KILLED", None),
        ([START, ended(9)], "FAILED", "NODE_FAIL", None),
        ([START, ended(140)], "FAILED", "TIMEOUT", None),
        ([START], "OUT_OF_MEMORY", "OUT_OF_MEMORY", None),
        # TERM before the walltime: deleted, unless PBS says that it was the scheduler, a limit or the node
        ([START, TERM, ended(255)], "FAILED", "CANCELLED", "CANCELLED"),
        ([START, TERM, ended(255)], "CANCELLED", "CANCELLED", "CANCELLED"),
        ([START, TERM], None, "CANCELLED", "CANCELLED"),
        ([START, TERM, {"event": "preempted", "job_id": "1.h"}, ended(255)], None, "PREEMPTED", None),
        ([START, TERM, ended(255)], "PREEMPTED", "PREEMPTED", None),
        ([START, TERM], "NODE_FAIL", "NODE_FAIL", None),
        ([START], "CANCELLED", "CANCELLED", "CANCELLED"),
        # TERM after the warning may be that of the walltime
        ([START, LATE_TERM, ended(255)], None, None, None),
        ([START, LATE_TERM], "CANCELLED", "CANCELLED", "CANCELLED"),
        # PBS ran it again after the TERM: that one counts for nothing
        ([START, TERM, START | {"token": "b"}], "KILLED", "KILLED", None),
        ([START, {"event": "replaced", "job_id": "1.h"}], "COMPLETED", None, None),
        ([START], "FAILED", "FAILED", "FAILED"),
    ],
)
def test_a_link_judges_its_predecessor(
    rows: list[dict[str, Any]], verdict: str | None, cause: str | None, final: str | None
) -> None:
    judgement = judge(rows, "1.h", None if verdict is None else Verdict(verdict), BUDGETS)
    assert (judgement.cause, judgement.final) == (cause, final)


def test_budgets_count_failures_of_a_kind_since_the_last_progress() -> None:
    def judged(cause: str | None) -> dict[str, Any]:
        return {"event": "judged", "job_id": "x", "cause": cause}

    def final(*rows: dict[str, Any]) -> str | None:
        return judge([*rows, START], "1.h", Verdict("KILLED"), {"KILLED": 2}).final

    assert final(judged("KILLED")) is None
    assert final(judged("KILLED"), judged("KILLED")) == "KILLED"
    assert final(judged("KILLED"), {"event": "progress"}, judged("KILLED")) is None
    assert final(judged("KILLED"), ended(75), judged("KILLED")) is None
    # that a link made way for a larger one is no progress
    assert final(judged("KILLED"), judged(None), judged("KILLED")) == "KILLED"
    assert final(judged("NODE_FAIL"), judged("NODE_FAIL"), judged("KILLED")) is None


def test_memory_counts_from_the_last_progress_on() -> None:
    def judged(lacked_memory: bool = True) -> dict[str, Any]:
        return {"event": "judged", "job_id": "x", "cause": "KILLED", "lacked_memory": lacked_memory}

    assert memory_failures([judged(), judged()]) == 2
    assert memory_failures([judged(), {"event": "progress"}, judged()]) == 1
    assert memory_failures([judged(), ended(75), judged(lacked_memory=False)]) == 0


@pytest.mark.parametrize(("used", "lacked"), [("250mb", True), ("100mb", False), ("0kb", True), (None, True)])
def test_a_kill_far_from_the_limit_is_no_lack_of_memory(used: str | None, lacked: bool) -> None:
    row = f"{KILLED}|Resource_List.mem=400mb" + (f"|resources_used.mem={used}" if used else "")
    (attributes,) = client.parse_dsv(f"Job Id: 1.h|{row}\n").values()
    assert judge([START], "1.h", read_verdict(attributes), BUDGETS).lacked_memory == lacked


def test_a_link_that_got_term_is_still_saving() -> None:
    assert [is_saving(rows) for rows in ([], [START], [START, TERM], [START, TERM, ended(255)])] == [
        False, False, True, False,
    ]  # fmt: skip


def test_a_start_after_a_link_that_made_way_has_the_cause_of_that() -> None:
    def judged(job_id: str, cause: str | None) -> dict[str, Any]:
        return {"event": "judged", "job_id": job_id, "cause": cause}

    replaced = {"event": "replaced", "job_id": "2.h"}
    larger = {"event": "successor", "job_id": "3.h", "after": "2.h", "link": 3}
    rows = [START, NEXT, judged("2.h", "OUT_OF_MEMORY"), larger, replaced, judged("3.h", None)]
    assert cause_of_start(rows, "3.h") == "OUT_OF_MEMORY"
    assert cause_of_start(rows, "2.h") == "OUT_OF_MEMORY"
    assert cause_of_start([START, NEXT, judged("2.h", None)], "2.h") is None
    assert cause_of_start([START], "1.h") is None


class Watched:
    """A watcher of job 1.h on a PBS that says what a test wants; every look is a new round."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: dict[str, str] | None = {}
        self.asked: list[list[str]] = []
        self.chain = Chain(folder, "1.h")
        self.watcher = PbsInfoWatcher(delay_s=0)
        self.watcher.watch("1.h", JobPaths(folder, "1.h"))
        monkeypatch.setattr(client, "query", self._query)

    def _query(self, ids: list[str]) -> dict[str, dict[str, str]]:
        self.asked.append(ids)
        if self.jobs is None:
            raise Unanswered("down")
        wanted = {job_id.partition("@")[0] for job_id in ids}
        return client.parse_dsv("".join(f"Job Id: {key}|{row}\n" for key, row in self.jobs.items() if key in wanted))

    def write(self, *rows: dict[str, Any]) -> None:
        for row in rows:
            details = dict(row)
            self.chain.append(details.pop("event"), **details)

    @property
    def state(self) -> str:
        return self.watcher.get_state("1.h")


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


KILLED = "job_state=F|substate=93|run_count=1|Exit_status=265"
WAITS = "job_state=H|substate=22|Hold_Types=s|depend=afternotok:1.h@h"


def test_absence_is_lost_after_several_looks_only(watched: Watched) -> None:
    watched.write(START)
    assert [watched.state for _ in range(4)] == ["RUNNING", "RUNNING", "LOST", "LOST"]
    assert len(watched.asked) == 3
    assert watched.watcher.is_done("1.h", mode="cache")


def test_a_server_that_is_down_changes_nothing(watched: Watched) -> None:
    watched.jobs = {"1.h": "job_state=S|run_count=1"}
    assert watched.state == "SUSPENDED"
    watched.jobs = None
    assert [watched.state for _ in range(5)] == ["SUSPENDED"] * 5


def test_an_absence_that_ends_is_forgotten(watched: Watched) -> None:
    for _ in range(2):
        assert watched.state == "PENDING"
    watched.jobs = {"1.h": "job_state=R|run_count=1"}
    assert watched.state == "RUNNING"
    watched.jobs = {}
    assert [watched.state for _ in range(2)] == ["RUNNING"] * 2


@pytest.mark.parametrize("history", [True, False])
def test_the_next_link_takes_over(watched: Watched, history: bool) -> None:
    """Without a history the first one is gone in the moment in which PBS lets the next one go."""
    watched.write(START, NEXT)
    watched.jobs = {"1.h": "job_state=R|run_count=1", "2.h": WAITS}
    assert watched.state == "RUNNING"
    watched.jobs = {"1.h": KILLED} if history else {}
    watched.jobs |= {"2.h": "job_state=Q|substate=10"}
    assert watched.state == "PENDING"
    assert watched.watcher.is_known("1.h")
    assert watched.asked[-2:] == [["1.h"], ["2.h"]]
    watched.jobs["2.h"] = "job_state=R|run_count=1"
    assert watched.state == "RUNNING"
    assert watched.asked[-1] == ["2.h"]
    watched.jobs = {"2.h": KILLED} if history else {}
    assert watched.watcher.get_state("1.h") == ("KILLED" if history else "RUNNING")
    assert watched.watcher.is_known("1.h") == history


def test_a_link_whose_predecessor_was_deleted_in_the_queue_waits_in_vain(watched: Watched) -> None:
    watched.write(START, NEXT)
    watched.jobs = {"2.h": WAITS}
    assert watched.state == "CANCELLED"
    assert "1.h was deleted while it waited" in watched.watcher.get_info("1.h")["Comment"]


def test_a_link_that_made_way_is_not_the_end(watched: Watched) -> None:
    replaced = {"event": "replaced", "job_id": "2.h"}
    larger = {"event": "successor", "job_id": "3.h", "after": "2.h", "link": 3}
    watched.write(START, NEXT, START | {"job_id": "2.h", "link": 2}, larger, replaced)
    watched.jobs = {"2.h": "job_state=F|substate=92|run_count=1|Exit_status=0", "3.h": "job_state=Q|substate=10"}
    assert watched.state == "PENDING"
    assert watched.watcher.get_info("1.h")["JobId"] == "3.h"


def test_a_cancelled_job_is_over_at_once(watched: Watched) -> None:
    watched.write(START)
    watched.jobs = {"1.h": "job_state=R|run_count=1"}
    assert watched.state == "RUNNING"
    watched.chain.cancel()
    assert watched.state == "CANCELLED"
    assert watched.watcher.get_info("1.h")["Result"] == "none"  # nobody waits for a result


def test_a_link_that_has_just_ended_is_asked_about_soon(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_SOON_S", 0)
    watched.watcher.delay_s = 1000
    watched.write(START)
    watched.jobs = {"1.h": "job_state=R|run_count=1"}
    assert [watched.state for _ in range(2)] == ["RUNNING"] * 2
    assert watched.asked == [["1.h"]]
    watched.write(TERM, ended(255))
    watched.jobs = {"1.h": "job_state=F|substate=91|run_count=1|Exit_status=271|comment=terminated by user1@h"}
    assert watched.state == "CANCELLED"


def test_another_jobs_attributes_are_none(watched: Watched, tmp_path: Path) -> None:
    watched.watcher.watch("1.h", JobPaths(tmp_path, "1.h"), "mine")
    watched.jobs = {"1.h": "Job_Name=somebodys|job_state=R|run_count=1"}
    assert watched.state == "PENDING"
    assert not watched.watcher.is_known("1.h")


def test_a_link_that_has_started_is_asked_about(watched: Watched) -> None:
    watched.write(START, NEXT, START | {"job_id": "2.h", "link": 2})
    watched.jobs = {"2.h": "job_state=R|run_count=1"}
    assert watched.state == "RUNNING"
    assert watched.asked == [["2.h"]]


def test_a_deleted_link_is_the_end_though_its_successor_waits(watched: Watched) -> None:
    watched.write(START, NEXT)
    watched.jobs = {"1.h": "job_state=F|substate=91|run_count=1|Exit_status=271|comment=terminated by user1@h"}
    assert watched.state == "CANCELLED"
    assert watched.watcher.is_done("1.h")


def test_a_deleted_link_is_not_the_end_before_the_next_one_has_said_so(watched: Watched) -> None:
    """Else it would be said to be cancelled, and to run the moment after, while the next link judges."""
    watched.write(START, NEXT)
    watched.jobs = {"1.h": "job_state=F|substate=91|run_count=1|Exit_status=271|comment=terminated by user1@h"}
    watched.jobs["2.h"] = "job_state=Q|substate=10"
    assert watched.state == "PENDING"
    watched.jobs["2.h"] = "job_state=R|run_count=1"
    assert watched.state == "RUNNING"
    watched.write(START, NEXT, {"event": "over", "state": "CANCELLED", "reason": "job 1.h was deleted"})
    assert watched.state == "CANCELLED"


def test_our_files_go_before_the_scheduler(watched: Watched) -> None:
    watched.write(START, {"event": "over", "state": "FAILED", "reason": "exit code 8"})
    watched.jobs = {"1.h": "job_state=R|run_count=1"}
    assert watched.watcher.get_info("1.h") == {"JobId": "1.h", "State": "FAILED", "Reason": "exit code 8"}
    assert watched.asked == []


def test_a_moved_job_is_asked_about_at_its_new_server(watched: Watched) -> None:
    watched.jobs = {"1.h": "job_state=M|queue=gpu@other.host"}
    assert watched.state == "PENDING"
    watched.jobs = {"1.h": "job_state=R|run_count=1"}
    assert watched.state == "RUNNING"
    assert watched.asked[-1] == ["1.h@other.host"]


def test_ids_of_array_elements() -> None:
    assert pbs_id("22.my_host") == "22.my_host"
    assert element_id("22[].my_host", 3) == "22.my_host_3"
    assert pbs_id("22.my_host_3") == "22[3].my_host"


def test_the_plugin_needs_nothing_heavy() -> None:
    code = (
        "import sys, contrails.cluster.pbs.executor, contrails.cluster.pbs.environment, contrails.cluster.pbs.link\n"
        "own = sorted(name for name in sys.modules if name.startswith('contrails.') and 'pbs' not in name)\n"
        "assert own == ['contrails.cluster', 'contrails.errors', 'contrails.files'], own\n"
        "assert not {'torch', 'pandas', 'h5py', 'pydantic', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
