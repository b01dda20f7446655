"""The client commands of PBS. Nothing else in the plugin starts them, and none of them runs without a time limit."""

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from contrails.errors import ClusterError

RETRY_S = 5.0
"""Seconds between two looks for a job whose submission got no answer."""
PATIENCE_S = 300.0
"""Seconds for which a submission goes on asking a server that is down."""
MOST_IDS = 20
"""Ids in one qstat: it connects once for each, and a server has a limited number of ports (20 take 0.3 s, 1000 two
minutes)."""
MOST_ASKED = 100
"""Ids that are asked for one by one; for more than these all jobs of the server are listed by one connection."""

_TIMEOUT_S = 60.0
_NO_ANSWER = {162, 255}  # 255 is qstat's
_UNKNOWN, _FINISHED = 153, 35
_EXITING = 168  # what qdel says of a job that PBS is just ending
LIMITS = {38, 39, 198}
"""Codes of a limit on the jobs of a user or a queue: the same is taken once others have ended."""
_NEXT_STEP = {
    **dict.fromkeys(
        LIMITS, "the site's limit on your jobs, or on those of the queue, is reached: wait for some to end"
    ),
    159: "you may not do this: see the queue's users with `qstat -Qf`",
    166: "correct the value that PBS names",
    170: "see the queues with `qstat -Q`",
    173: "the queue takes no jobs now: use another one, see `qstat -Q`",
    175: "PBS refuses root: submit as a user",
    187: "see the resources of the nodes with `pbsnodes -av`",
    188: "ask for less, or use another queue: `qstat -Qf` shows the limits",
}


class Unanswered(ClusterError):
    """The server is down or did not answer in time; what was asked may have been done, or not."""


class Refused(ClusterError):
    """PBS answered with an error."""

    def __init__(self, message: str, pbs_code: int) -> None:
        super().__init__(message)
        self.pbs_code = pbs_code


def submit(options: Sequence[str], script: str, *, name: str, marker: str, patience_s: float | None = None) -> str:
    """Submit a script and return the job's id. A lost answer is not a failed submission: the job is looked for first.

    Args:
        options: what goes before the script on qsub's command line.
        script: path of the script.
        name: the job's name, as in `options`.
        marker: text that the command line of no other job holds.
        patience_s: how long a server that is down is asked again; `PATIENCE_S` by default.

    Raises:
        Refused: PBS says why.
        Unanswered: it did not answer for that long; a job may exist all the same.
    """
    give_up = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
    while True:
        try:
            return _said("qsub", *options, script).strip()
        except Unanswered:
            if job_id := _find(name, marker, give_up):
                return job_id
            if time.monotonic() > give_up:
                raise


def query(ids: Iterable[str], timeout_s: float | None = None) -> dict[str, dict[str, str]]:
    """Return the attributes of jobs by id; what is left out is gone: ended, where the server keeps no history.

    First without -x: a server without history, as is the default, says nothing to -x, of running jobs neither. The
    format is dsv: `-F json` prints only the first of several jobs (openpbs #2672), and is not even JSON where an
    environment has quotes.

    Args:
        ids: of jobs; `id@server` for one that has moved.
        timeout_s: of each call.

    Raises:
        Unanswered: the server is down; nothing can be said about any of them.
    """
    wanted = [*ids]
    found = _listed(wanted, timeout_s)
    missing = [job_id for job_id in wanted if job_id.partition("@")[0] not in found]
    for batch in _batches(missing):
        ended = _qstat("-x", "-f", "-F", "dsv", *batch, timeout_s=timeout_s)
        if ended is None:
            break
        found |= ended
    return found


def _listed(wanted: Sequence[str], timeout_s: float | None) -> dict[str, dict[str, str]]:
    """Return what the server has of jobs that wait or run."""
    found: dict[str, dict[str, str]] = {}
    if len(wanted) > MOST_ASKED:
        every = _qstat("-t", "-f", "-F", "dsv", timeout_s=timeout_s) or {}  # -t: elements of arrays too
        found = {job_id: every[job_id] for job_id in wanted if job_id in every}
        wanted = [job_id for job_id in wanted if "@" in job_id]
    for batch in _batches(wanted):
        found |= _qstat("-f", "-F", "dsv", *batch, timeout_s=timeout_s) or {}
    return found


def _qstat(*arguments: str, timeout_s: float | None) -> dict[str, dict[str, str]] | None:
    """Return the jobs of an answer; None where nothing is said of any job, as by a server without history to -x."""
    code, said = _run("qstat", *arguments, also={_UNKNOWN, _FINISHED}, timeout_s=timeout_s)
    return parse_dsv(said) if said or code else None


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + MOST_IDS] for start in range(0, len(ids), MOST_IDS))


def named(name: str, *, ended: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ids and attributes of the jobs called `name`, the newest first: those that wait or run, then `ended` ones.

    Raises:
        Unanswered: the server is down.
    """
    seen: set[str] = set()
    for history in ([], ["-x"]) if ended else ([],):  # without -x first, as in `query`
        ids = [job_id for job_id in reversed(_said("qselect", *history, "-N", name).split()) if job_id not in seen]
        for batch in _batches(ids):  # there can be hundreds, of which the newest is wanted
            found = query(batch)
            yield from ((job_id, found[job_id]) for job_id in batch if job_id in found)
        seen.update(ids)


def kill(job_id: str) -> None:
    """Kill all processes of a job that runs.

    Raises:
        Refused, Unanswered: it lives on.
    """
    _said("qsig", "-s", "KILL", job_id)


def nodes() -> str:
    """Return what `pbsnodes` says about all nodes, one a line.

    Raises:
        Refused, Unanswered: PBS says why.
    """
    return _said("pbsnodes", "-av", "-F", "dsv")


def queue(name: str) -> dict[str, str]:
    """Return the attributes of a queue.

    Raises:
        Refused, Unanswered: there is none, or the server is down.
    """
    return _fields(_said("qstat", "-Q", "-f", "-F", "dsv", name))


def server() -> dict[str, str]:
    """Return the attributes of the server.

    Raises:
        Refused, Unanswered: PBS says why.
    """
    return _fields(_said("qstat", "-B", "-f", "-F", "dsv"))


def has_resource(name: str) -> bool:
    """Return whether the server knows a resource; qsub refuses what asks for one that it does not know.

    Raises:
        Refused, Unanswered: PBS does not say.
    """
    try:
        _said("qmgr", "-c", f"list resource {name}")
    except Refused as error:
        if "Unknown resource" not in str(error):
            raise
        return False
    return True


def delete(job_id: str) -> None:
    """Delete a job; one that is over or just ending, or unknown, is deleted enough.

    Raises:
        Refused, Unanswered: it may live on.
    """
    _run("qdel", job_id, also={_UNKNOWN, _FINISHED, _EXITING})


def parse_dsv(text: str) -> dict[str, dict[str, str]]:
    """Return the attributes of each job in the output of `qstat -f -F dsv`, by id; all values are text.

    The first value of a key is taken: a command line or environment with a bar in it comes after what matters.
    """
    lines = [line for line in text.splitlines() if line.startswith("Job Id: ") and "|" in line]
    return {line.partition("|")[0].removeprefix("Job Id: ").strip(): _fields(line) for line in lines}


def _fields(line: str) -> dict[str, str]:
    """Return the attributes in a line of dsv, after what it is about."""
    fields: dict[str, str] = {}
    for field in re.split(r"(?<!\\)\|", line.strip())[1:]:
        key, _, value = field.partition("=")
        fields.setdefault(key, value)
    return fields


def _find(name: str, marker: str, give_up: float) -> str | None:
    """Return the id of the job with `marker` on its command line, once the server answers again."""
    while True:
        time.sleep(RETRY_S)  # a request on its way arrives before the question
        try:
            for job_id, attributes in named(name):
                if marker in attributes.get("Submit_arguments", ""):
                    return job_id
        except Unanswered:
            if time.monotonic() > give_up:
                raise
        else:
            return None


def _environment() -> dict[str, str]:
    """Return this process's environment; the TMPDIR of a job that is being deleted is gone before the job is."""
    return {key: value for key, value in os.environ.items() if key != "TMPDIR" or Path(value).is_dir()}


def _said(command: str, *arguments: str) -> str:
    """Return the output of a client command that ends with 0."""
    return _run(command, *arguments)[1]


def _run(command: str, *arguments: str, also: Collection[int] = (), timeout_s: float | None = None) -> tuple[int, str]:
    """Return the code and the output of a client command that ends with 0 or a code of `also`."""
    timeout_s = _TIMEOUT_S if timeout_s is None else timeout_s
    try:
        done = subprocess.run(
            [command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=_environment(),
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"{command} is not on the PATH: run this on a machine where PBS jobs are submitted, or load its module"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"{command} did not answer within {timeout_s:.0f} s; try again later") from error
    code, said = done.returncode, done.stderr.strip()
    if code == 0 or code in also:
        return code, done.stdout
    if code in _NO_ANSWER:
        raise Unanswered(f"{command} could not reach the PBS server ({said}); try again later")
    advice = _NEXT_STEP.get(code, "see the message")
    asked = command if command == "qsub" else f"{command} {' '.join(arguments)}"  # its options are in the script
    raise Refused(f"{asked}: PBS refuses with code {code}: {said}; {advice}", code)
