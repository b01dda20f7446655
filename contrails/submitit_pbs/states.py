"""The state of a job from its attributes in `qstat -f`, and what the user can do about it.

All attributes are text. Exit_status is used only for a job that has ended: a requeued job keeps that of its last run.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

PENDING, HELD, REQUEUED = "PENDING", "HELD", "REQUEUED"
RUNNING, SUSPENDED, COMPLETING = "RUNNING", "SUSPENDED", "COMPLETING"
COMPLETED, FAILED, KILLED, TIMEOUT, OUT_OF_MEMORY = "COMPLETED", "FAILED", "KILLED", "TIMEOUT", "OUT_OF_MEMORY"
NODE_FAIL, PREEMPTED, CANCELLED, LOST = "NODE_FAIL", "PREEMPTED", "CANCELLED", "LOST"
REFUSED = "REFUSED"  # PBS refused the next link
OVER = {COMPLETED, FAILED, KILLED, TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, PREEMPTED, CANCELLED, LOST, REFUSED}
"""Final states."""

_LETTERS = {
    "Q": PENDING,  # queued
    "W": PENDING,  # waits for the time of -a, or for files that are staged in
    "T": PENDING,  # on its way to another server or queue
    "M": PENDING,  # moved: another server has it, under id@server
    "H": HELD,
    "R": RUNNING,
    "B": RUNNING,  # an array of which an element has started
    "S": SUSPENDED,  # by a job with precedence
    "U": SUSPENDED,  # because the workstation is in use
    "E": COMPLETING,
}
ENDED = {"F", "X"}
"""Letters of jobs that have ended; X is an ended element of an array that goes on."""
_DELETED = "91"  # substate of a job that was ended by qdel, or by the scheduler to preempt it
_WAITS_FOR_ANOTHER_JOB = "22"  # substate of a hold by a dependency; its Hold_Types is also s

_EXITS = {
    0: COMPLETED,
    -29: TIMEOUT,  # walltime, even if the process caught TERM and exited with another code
    -27: OUT_OF_MEMORY,
    -26: OUT_OF_MEMORY,  # virtual memory
    -25: FAILED,  # used more cores than requested
    -23: FAILED,  # no credentials (an expired Kerberos ticket)
    -20: NODE_FAIL,  # the node was lost
    -4: NODE_FAIL,  # PBS on the node was restarted
    -3: NODE_FAIL,  # could not be started there
    -2: NODE_FAIL,
    -1: NODE_FAIL,
    137: KILLED,  # 128 + 9, as a shell reports it: often the kernel, for memory
    265: KILLED,  # 256 + 9, as PBS reports it: also CPU time over the limit
}
"""State by Exit_status; every other status is FAILED. A status above 256 is 256 + the signal that ended the shell."""

HANDED_OVER = {75, 255}
"""Exit codes of a task that saved and continues in the next link: 75 is EX_TEMPFAIL, 255 is submitit's exit(-1)."""

TASK_EXITS = {
    9: NODE_FAIL,  # the task reports that the node lacks what the job requested
    135: NODE_FAIL,  # 128 + 7: a mapped file could not be read
    137: KILLED,
    140: TIMEOUT,  # 128 + 12: the warning signal found a task that had not begun, or does not handle it
}
"""Exit codes of a task after which the next link may retry; after any other one the chain gives up."""

_FAR = 0.5
"""Fraction of the memory; a process killed below it was not killed for memory."""
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}

_NEVER = "no node can ever satisfy it, so it waits until it is deleted"
_HELD_BY_PBS = "PBS holds it after failed starts: fix the cause, delete it and submit it again"
_WAITS = {
    "Can Never Run": _NEVER,
    "Queue not started": "the queue is stopped: list the others with `qstat -Q`",
    "limit": "a limit on running jobs is reached: it starts when others have ended",
    "Insufficient amount of": "other jobs use the resource now: it starts when they have ended",
    "Not enough free nodes": "no node is free: it starts when others have ended",
    "dedicated time": "its walltime reaches into a time that is reserved for others: it starts after that time",
}
"""Advice on a waiting job, by a text in its comment; the first match is used."""
_ADVICE = {SUSPENDED: "another job or a user has suspended it: it continues where it is when it is resumed"}

_EXIT_ADVICE = {
    -27: "request more memory (mem_gb)",
    -26: "request more memory (mem_gb)",
    -25: "request more cores (cpus_per_task), or start fewer threads",
    -23: "renew your ticket with kinit, then submit again",
    -3: "PBS could not start it: check that the folder of its logs exists on the node",
}


@dataclass(frozen=True)
class Verdict:
    """What PBS says about a job: the state, its comment, and advice if there is any."""

    state: str
    comment: str = ""
    advice: str | None = None
    name: str = ""
    node: str = ""
    select: str = ""
    stuck: bool = False
    """Whether it waits and will never start by itself."""
    memory_fraction: float | None = None
    """The largest fraction of its memory in use, as far as PBS has measured."""

    @property
    def memory_was_far(self) -> bool:
        """Whether its memory was far from full, so that it was killed for another reason."""
        return self.memory_fraction is not None and self.memory_fraction < _FAR

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in OVER


def read_verdict(attributes: Mapping[str, str]) -> Verdict:
    """Return the verdict from the attributes of a job."""
    comment = attributes.get("comment", "")
    if attributes["job_state"] in ENDED:
        state, advice = _ended(attributes, comment)
    else:
        state, advice = _alive(attributes, comment)
    return Verdict(
        state,
        comment,
        advice,
        name=attributes.get("Job_Name", ""),
        node=attributes.get("exec_host", "").partition("/")[0],
        select=attributes.get("Resource_List.select", ""),
        stuck=advice in (_NEVER, _HELD_BY_PBS),
        memory_fraction=_memory_fraction(attributes),
    )


def _memory_fraction(attributes: Mapping[str, str]) -> float | None:
    """Return the fraction of a job's memory that was used; None if PBS has not measured (a short job shows 0 kb)."""
    used, asked = (size_of(attributes.get(f"{key}.mem", "")) for key in ("resources_used", "Resource_List"))
    return used / asked if used and asked else None


def size_of(text: str) -> float | None:
    """Return the number that PBS writes as a count, or as a size in bytes.

    >>> size_of("400mb")
    419430400.0
    """
    found = re.fullmatch(r"([\d.]+)([kmgtp]?)[bw]?", text.strip().lower())
    return float(found[1]) * _UNITS[found[2]] if found else None


def _alive(attributes: Mapping[str, str], comment: str) -> tuple[str, str | None]:
    state = _LETTERS.get(attributes["job_state"], PENDING)
    if state == HELD:
        return _held(attributes)
    if state == PENDING and "run_count" in attributes:
        state = REQUEUED
    waits = state in (PENDING, REQUEUED)
    advice = next((advice for words, advice in _WAITS.items() if waits and words in comment), None)
    return state, _ADVICE.get(state, advice)


def _held(attributes: Mapping[str, str]) -> tuple[str, str | None]:
    if attributes.get("substate") == _WAITS_FOR_ANOTHER_JOB:
        return PENDING, None
    if "s" in attributes.get("Hold_Types", ""):
        return HELD, _HELD_BY_PBS
    return HELD, "a user or an operator holds it: release it with `qrls`"


def _ended(attributes: Mapping[str, str], comment: str) -> tuple[str, str | None]:
    is_array = attributes.get("array") == "True"
    if attributes.get("substate") == _DELETED:
        return (PREEMPTED if deleted_by_scheduler(comment) else CANCELLED), None
    if "run_count" not in attributes and not is_array:
        # never ran: deleted while queued (an array's element then has Exit_status 0), or its dependency was not met
        return CANCELLED, None
    if "Exit_status" not in attributes:
        return LOST, None
    code = int(attributes["Exit_status"])
    return _EXITS.get(code, FAILED), _EXIT_ADVICE.get(code)


def deleted_by_scheduler(comment: str) -> bool:
    """Return whether a comment says that the scheduler, not a person, ended the job."""
    return "terminated by Scheduler@" in comment
