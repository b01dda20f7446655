"""The client commands of PBS; only this module runs them, always with a time limit."""

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from contrails.errors import ClusterError

RETRY_S = 5.0
"""Seconds between two searches for a job whose submission got no answer."""
PATIENCE_S = 300.0
"""Seconds for which a submission retries while the server is down."""
MOST_IDS = 20
"""Number of ids per call of qstat, which connects to the server once per id; a server has a limited number of ports.

Measured: 20 ids take 0.3 s, 1000 ids two minutes.
"""
MOST_ASKED = 100
"""Largest number of ids that are requested by id; for more ids, all jobs of the server are listed in one connection."""

_TIMEOUT_S = 60.0
_NO_ANSWER = {162, 255}  # 255 is qstat's
_UNKNOWN, _FINISHED = 153, 35
_EXITING = 168  # qdel's code for a job that is just ending
LIMITS = {38, 39, 198}
"""Codes of a limit on the jobs of a user or a queue: the same job is accepted once others have ended."""
_NEXT_STEP = {
    **dict.fromkeys(LIMITS, "the site's limit on your jobs, or on those of the queue, is reached: wait until some end"),
    159: "you may not do this: see the queue's users with `qstat -Qf`",
    166: "correct the value that PBS names",
    170: "list the queues with `qstat -Q`",
    173: "the queue accepts no jobs now: use another one, see `qstat -Q`",
    175: "PBS refuses root: submit as a user",
    187: "see the resources of the nodes with `pbsnodes -av`",
    188: "request less, or use another queue: see the limits with `qstat -Qf`",
}


class Unanswered(ClusterError):
    """The server is down or did not answer in time; the request may have been carried out or not."""


class Refused(ClusterError):
    """PBS answered with an error."""

    def __init__(self, message: str, pbs_code: int) -> None:
        super().__init__(message)
        self.pbs_code = pbs_code


def submit(options: Sequence[str], script: str, *, name: str, marker: str, patience_s: float | None = None) -> str:
    """Submit a script and return the job's id; if the answer is lost, look for the job before submitting again.

    Args:
        options: options of qsub, which precede the script.
        script: path of the script.
        name: the job's name, as in `options`.
        marker: text that is on the command line of this job only.
        patience_s: seconds for which a server that is down is retried; `PATIENCE_S` by default.

    Raises:
        Refused: PBS refused the job.
        Unanswered: PBS did not answer for that long; the job may exist nevertheless.
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
    """Return the attributes of jobs by id, without jobs that the server does not know.

    A server that keeps no history, which is the default, forgets jobs when they end. It answers a query with -x with
    nothing, not even running jobs, so the first query is without -x. The format is dsv, since `-F json` prints only
    the first of several jobs (openpbs #2672), and invalid JSON if an environment contains quotes.

    Args:
        ids: ids of jobs; `id@server` for one that has moved.
        timeout_s: time limit of each call.

    Raises:
        Unanswered: the server is down; nothing is known about any of them.
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
    """Return the jobs of `wanted` that wait or run."""
    found: dict[str, dict[str, str]] = {}
    if len(wanted) > MOST_ASKED:
        every = _qstat("-t", "-f", "-F", "dsv", timeout_s=timeout_s) or {}  # -t includes elements of arrays
        found = {job_id: every[job_id] for job_id in wanted if job_id in every}
        wanted = [job_id for job_id in wanted if "@" in job_id]
    for batch in _batches(wanted):
        found |= _qstat("-f", "-F", "dsv", *batch, timeout_s=timeout_s) or {}
    return found


def _qstat(*arguments: str, timeout_s: float | None) -> dict[str, dict[str, str]] | None:
    """Return the jobs of an answer; None if it is empty, as the answer to -x of a server without history."""
    code, said = _run("qstat", *arguments, also={_UNKNOWN, _FINISHED}, timeout_s=timeout_s)
    return parse_dsv(said) if said or code else None


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + MOST_IDS] for start in range(0, len(ids), MOST_IDS))


def named(name: str, *, ended: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ids and attributes of the jobs called `name`, newest first: those that wait or run, then `ended` ones.

    Raises:
        Unanswered: the server is down.
    """
    seen: set[str] = set()
    for history in ([], ["-x"]) if ended else ([],):  # first without -x, for the reason given in `query`
        ids = [job_id for job_id in reversed(_said("qselect", *history, "-N", name).split()) if job_id not in seen]
        for batch in _batches(ids):  # there can be hundreds, and usually the newest is wanted
            found = query(batch)
            yield from ((job_id, found[job_id]) for job_id in batch if job_id in found)
        seen.update(ids)


def kill(job_id: str) -> None:
    """Kill all processes of a running job.

    Raises:
        Refused, Unanswered: the job may still run.
    """
    _said("qsig", "-s", "KILL", job_id)


def nodes() -> str:
    """Return the output of `pbsnodes` for all nodes, one per line.

    Raises:
        Refused, Unanswered: PBS refused or did not answer.
    """
    return _said("pbsnodes", "-av", "-F", "dsv")


def queue(name: str) -> dict[str, str]:
    """Return the attributes of a queue.

    Raises:
        Refused, Unanswered: there is no such queue, or the server is down.
    """
    return _fields(_said("qstat", "-Q", "-f", "-F", "dsv", name))


def server() -> dict[str, str]:
    """Return the attributes of the server.

    Raises:
        Refused, Unanswered: PBS refused or did not answer.
    """
    return _fields(_said("qstat", "-B", "-f", "-F", "dsv"))


def has_resource(name: str) -> bool:
    """Return whether the server knows a resource; qsub refuses requests for an unknown one.

    Raises:
        Refused, Unanswered: PBS refused or did not answer.
    """
    try:
        _said("qmgr", "-c", f"list resource {name}")
    except Refused as error:
        if "Unknown resource" not in str(error):
            raise
        return False
    return True


def delete(job_id: str) -> None:
    """Delete a job; ignore one that is over, just ending or unknown.

    Raises:
        Refused, Unanswered: the job may still exist.
    """
    _run("qdel", job_id, also={_UNKNOWN, _FINISHED, _EXITING})


def parse_dsv(text: str) -> dict[str, dict[str, str]]:
    """Return the attributes of each job in the output of `qstat -f -F dsv`, by id; all values are text.

    The first value of a key is used: command line and environment, which may contain bars, come after the attributes.
    """
    lines = [line for line in text.splitlines() if line.startswith("Job Id: ") and "|" in line]
    return {line.partition("|")[0].removeprefix("Job Id: ").strip(): _fields(line) for line in lines}


def _fields(line: str) -> dict[str, str]:
    """Return the attributes in a line of dsv, without its first field, the object's name."""
    fields: dict[str, str] = {}
    for field in re.split(r"(?<!\\)\|", line.strip())[1:]:
        key, _, value = field.partition("=")
        fields.setdefault(key, value)
    return fields


def _find(name: str, marker: str, give_up: float) -> str | None:
    """Return the id of the job with `marker` on its command line, once the server answers; None if there is none."""
    while True:
        time.sleep(RETRY_S)  # gives a request that is still on its way time to arrive
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
    """Return this process's environment, without TMPDIR if PBS has removed its folder, as it does for a deleted job."""
    return {key: value for key, value in os.environ.items() if key != "TMPDIR" or Path(value).is_dir()}


def _said(command: str, *arguments: str) -> str:
    """Return the output of a client command that must exit with 0."""
    return _run(command, *arguments)[1]


def _run(command: str, *arguments: str, also: Collection[int] = (), timeout_s: float | None = None) -> tuple[int, str]:
    """Return exit code and output of a client command that must exit with 0 or a code in `also`."""
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
    asked = command if command == "qsub" else f"{command} {' '.join(arguments)}"  # qsub's options are in the script
    raise Refused(f"{asked}: PBS refuses with code {code}: {said}; {advice}", code)
