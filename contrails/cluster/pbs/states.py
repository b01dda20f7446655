"""What PBS says about a job, read with one table: its state, and what a user can do about it.

The attributes are those of `qstat -x -f`, all as text. Exit_status counts only where the job has ended: a job that was
requeued keeps the one of its last run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

PENDING, HELD, REQUEUED = "PENDING", "HELD", "REQUEUED"
RUNNING, SUSPENDED, COMPLETING = "RUNNING", "SUSPENDED", "COMPLETING"
COMPLETED, FAILED, KILLED, TIMEOUT, OUT_OF_MEMORY = "COMPLETED", "FAILED", "KILLED", "TIMEOUT", "OUT_OF_MEMORY"
NODE_FAIL, PREEMPTED, CANCELLED, LOST = "NODE_FAIL", "PREEMPTED", "CANCELLED", "LOST"
OVER = {COMPLETED, FAILED, KILLED, TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, PREEMPTED, CANCELLED, LOST}
"""States that a job does not leave again by itself."""

_LETTERS = {
    "Q": PENDING,  # queued
    "W": PENDING,  # waits for the time of -a, or for files that are staged in
    "T": PENDING,  # on its way to another server or queue
    "M": PENDING,  # moved: another server has it, under id@server
    "H": HELD,
    "R": RUNNING,
    "B": RUNNING,  # an array of which something has started
    "S": SUSPENDED,  # by a job that goes before it
    "U": SUSPENDED,  # because somebody uses the workstation
    "E": COMPLETING,
}
_ENDED = {"F", "X"}  # X: an element, ended, of an array that goes on
_DELETED = "91"  # substate of what qdel, or the scheduler to make room, ended
_WAITS_FOR_ANOTHER_JOB = "22"  # substate of a hold that a dependency makes; its Hold_Types is s as well

_EXITS = {
    0: COMPLETED,
    -29: TIMEOUT,  # walltime, even where the process caught TERM and left with another code
    -27: OUT_OF_MEMORY,
    -26: OUT_OF_MEMORY,  # virtual memory
    -25: FAILED,  # used more cores than it had asked for
    -23: FAILED,  # no credentials (a Kerberos ticket that ended)
    -20: NODE_FAIL,  # the node went away
    -4: NODE_FAIL,  # the node's PBS was started again
    -3: NODE_FAIL,  # could not be started there
    -2: NODE_FAIL,
    -1: NODE_FAIL,
    137: KILLED,  # 128 + 9, as a shell tells it: often the kernel, for memory
    265: KILLED,  # 256 + 9, as PBS tells it: CPU time over the limit, too
}
"""Exit_status; what is not here is FAILED. Above 256 it is 256 + the signal that ended the job's shell."""

HANDED_OVER = {75, 255}
"""Exit codes of a task that saved and goes on in the next link: its own (EX_TEMPFAIL), and submitit's exit(-1)."""

TASK_EXITS = {
    9: NODE_FAIL,  # the task says that the node lacks what the job asked for
    135: NODE_FAIL,  # 128 + 7: a mapped file could not be read
    137: KILLED,
    140: TIMEOUT,  # 128 + 12, the warning: it found a task that had not begun, or does not handle it
}
"""Exit codes of a task after which the next link may try again; after any other one the chain gives up."""

_EXIT_ADVICE = {
    -27: "ask for more memory (mem_gb)",
    -26: "ask for more memory (mem_gb)",
    -25: "ask for more cores (cpus_per_task), or start fewer threads",
    -23: "renew your ticket with kinit, then submit again",
    -3: "PBS could not start it: does the folder of its logs exist on the node?",
}


@dataclass(frozen=True)
class Verdict:
    """What PBS says about a job: the state, its comment, and what to do, if there is something to do."""

    state: str
    comment: str = ""
    advice: str | None = None
    name: str = ""
    node: str = ""

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in OVER


def read_verdict(attributes: Mapping[str, str]) -> Verdict:
    """Return what the attributes of a job say."""
    comment = attributes.get("comment", "")
    if attributes["job_state"] in _ENDED:
        state, advice = _ended(attributes, comment)
    else:
        state, advice = _alive(attributes, comment)
    node = attributes.get("exec_host", "").partition("/")[0]
    return Verdict(state, comment, advice, attributes.get("Job_Name", ""), node)


def _alive(attributes: Mapping[str, str], comment: str) -> tuple[str, str | None]:
    state = _LETTERS.get(attributes["job_state"], PENDING)
    if state == HELD:
        return _held(attributes)
    if comment.startswith("Can Never Run"):
        return state, "no node can ever satisfy it: delete it and ask for less"
    if attributes["job_state"] == "Q" and "run_count" in attributes:
        return REQUEUED, None
    return state, None


def _held(attributes: Mapping[str, str]) -> tuple[str, str | None]:
    if attributes.get("substate") == _WAITS_FOR_ANOTHER_JOB:
        return PENDING, None
    if "s" in attributes.get("Hold_Types", ""):
        return HELD, "PBS holds it after failed starts: see the comment; mend the cause, delete it and submit again"
    return HELD, "somebody holds it: qrls lets it go"


def _ended(attributes: Mapping[str, str], comment: str) -> tuple[str, str | None]:
    is_array = attributes.get("array") == "True"
    if attributes.get("substate") == _DELETED:
        return (PREEMPTED if deleted_by_scheduler(comment) else CANCELLED), None
    if "run_count" not in attributes and not is_array:
        # never ran: deleted while queued (an element of an array then says Exit_status 0), or what it was to follow
        # did not happen
        return CANCELLED, None
    if "Exit_status" not in attributes:
        return LOST, None
    code = int(attributes["Exit_status"])
    return _EXITS.get(code, FAILED), _EXIT_ADVICE.get(code)


def deleted_by_scheduler(comment: str) -> bool:
    """Return whether a comment says that the scheduler, and not a person, ended the job."""
    return "terminated by Scheduler@" in comment
