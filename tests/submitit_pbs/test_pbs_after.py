"""What a job waits for that comes after others, with what their links have written and what PBS prints."""

from pathlib import Path
from typing import Any

import pytest

from contrails.submitit_pbs.after import Unfulfilled, depends_on, links_to_wait_for
from contrails.submitit_pbs.chain import Chain
from contrails.submitit_pbs.client import Unanswered

from replayed import Replayed

FIRST = {"event": "start", "link": 1, "job_id": "7.h", "token": "a"}
NEXT = {"event": "successor", "link": 2, "job_id": "8.h", "after": "7.h"}
SECOND = FIRST | {"link": 2, "job_id": "8.h"}
DONE, FAILED = ({"event": "over", "state": state, "reason": None} for state in ("COMPLETED", "FAILED"))

QUEUED = "job_state=Q|substate=10|Hold_Types=n"
HELD = "job_state=H|substate=22|Hold_Types=s|depend=afternotok:7.h@h"
RUNS = "job_state=R|substate=42|run_count=1"
ENDED = "job_state=F|substate=93|run_count=1|Exit_status=265"
DELETED = "job_state=F|substate=91|run_count=1|Exit_status=271|comment=terminated by user@h"


@pytest.mark.parametrize(
    ("rows", "jobs", "links"),
    [
        ([FIRST, DONE], {}, []),
        ([FIRST, NEXT, SECOND, DONE], {"8.h": RUNS}, []),  # it has written all that there is to write
        ([], {"7.h": QUEUED}, ["7.h"]),
        ([FIRST], {"7.h": RUNS}, ["7.h"]),
        ([FIRST, NEXT], {"7.h": RUNS, "8.h": HELD}, ["7.h"]),
        ([FIRST, NEXT], {"7.h": ENDED, "8.h": HELD}, ["8.h"]),
        ([FIRST, NEXT], {"8.h": QUEUED}, ["8.h"]),  # without a history
        ([FIRST, NEXT, SECOND], {"7.h": ENDED, "8.h": RUNS}, ["8.h"]),
        ([FIRST, FAILED], {"7.h": RUNS}, "job 7.h, which had to succeed first, ended: FAILED"),
        ([FIRST], {"7.h": ENDED}, "job 7.h, which had to succeed first, ended: LOST"),
        ([FIRST, NEXT], {"7.h": DELETED, "8.h": DELETED}, "ended: LOST"),
        ([FIRST, NEXT, SECOND], {"7.h": RUNS}, "ended: LOST"),
        ([], {}, "ended: LOST"),
        (["cancelled", FIRST], {"7.h": RUNS}, "ended: LOST"),
    ],
)  # fmt: skip
def test_the_link_whose_end_is_waited_for(
    tmp_path: Path, pbs: Replayed, chain: Chain, rows: list[Any], jobs: dict[str, str], links: list[str] | str
) -> None:
    other = Chain(tmp_path / "jobs", "3.h")
    other.append("start", link=1, job_id="3.h", token="b")
    for row in rows:
        if row == "cancelled":
            chain.cancel()
        else:
            chain.append(**row)
    known = {"3.h": RUNS} | jobs
    listed = {asked: "".join(f"Job Id: {key}|Job_Name=ct|{known[key]}\n" for key in asked.split() if key in known)
              for asked in ("3.h", "7.h", "8.h", "7.h 3.h", "8.h 3.h")}  # fmt: skip
    pbs.say({f"qstat -f -F dsv {asked}": text for asked, text in listed.items() if text})
    waits_for = [f"{tmp_path}/jobs/7.h", f"{tmp_path}/jobs/3.h"]
    if isinstance(links, str):
        with pytest.raises(Unfulfilled, match=links):
            links_to_wait_for(waits_for)
        return
    assert links_to_wait_for(waits_for) == [*links, "3.h"]
    assert depends_on(links) == (["-W", f"depend=afterany:{links[0]}"] if links else [])


def test_a_server_that_is_down_says_nothing_of_others(tmp_path: Path, pbs: Replayed) -> None:
    pbs.say({"qstat": "Connection refused"}, code=255)
    with pytest.raises(Unanswered):
        links_to_wait_for([f"{tmp_path}/jobs/7.h"])
