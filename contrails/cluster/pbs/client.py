"""The client commands of PBS. Nothing else in the plugin starts them, and none of them runs without a time limit."""

import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence

from contrails.errors import ClusterError

RETRY_S = 5.0
"""Seconds between two looks for a job whose submission got no answer."""
PATIENCE_S = 300.0
"""Seconds for which a submission goes on asking a server that is down."""
MOST_IDS = 20
"""Ids in one qstat: its time grows faster than their number (20 take 0.3 s, 1000 take two minutes)."""

_TIMEOUT_S = 60.0
_NO_ANSWER = {162, 255}  # 255 is qstat's
_UNKNOWN, _FINISHED = 153, 35
_NEXT_STEP = {
    38: "you have as many jobs there as the queue allows: wait for some to end, or use another queue",
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

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


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
            return _run("qsub", *options, script).strip()
        except Unanswered:
            if job_id := _find(name, marker, give_up):
                return job_id
            if time.monotonic() > give_up:
                raise


def query(ids: Iterable[str], timeout_s: float | None = None) -> dict[str, dict[str, str]]:
    """Return the attributes of jobs, ended ones included; an id that PBS does not know (any more) is left out.

    The format is dsv: `-F json` prints only the first of several jobs (openpbs #2672), and is not even JSON where an
    environment has quotes.

    Raises:
        Unanswered: the server is down.
    """
    return parse_dsv(_run("qstat", "-x", "-f", "-F", "dsv", *ids, also={_UNKNOWN, _FINISHED}, timeout_s=timeout_s))


def named(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ids and attributes of the jobs called `name`, the newest first: there can be hundreds.

    Raises:
        Unanswered: the server is down.
    """
    ids = _run("qselect", "-x", "-N", name).split()
    for start in range(len(ids), 0, -MOST_IDS):
        yield from reversed(query(ids[max(0, start - MOST_IDS) : start]).items())


def kill(job_id: str) -> None:
    """Kill all processes of a job that runs.

    Raises:
        Refused, Unanswered: it lives on.
    """
    _run("qsig", "-s", "KILL", job_id)


def nodes() -> str:
    """Return what `pbsnodes` says about all nodes, one a line.

    Raises:
        Refused, Unanswered: PBS says why.
    """
    return _run("pbsnodes", "-av", "-F", "dsv")


def queue(name: str) -> str:
    """Return what `qstat` says about a queue.

    Raises:
        Refused, Unanswered: there is none, or the server is down.
    """
    return _run("qstat", "-Q", "-f", "-F", "dsv", name)


def delete(job_id: str) -> None:
    """Delete a job; one that is over, or unknown, is deleted enough.

    Raises:
        Refused, Unanswered: it may live on.
    """
    _run("qdel", job_id, also={_UNKNOWN, _FINISHED})


def parse_dsv(text: str) -> dict[str, dict[str, str]]:
    """Return the attributes of each job in the output of `qstat -f -F dsv`, by id; all values are text.

    The first value of a key is taken: a command line or environment with a bar in it comes after what matters.
    """
    jobs: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        first, *fields = re.split(r"(?<!\\)\|", line)
        if first.startswith("Job Id: ") and fields:
            attributes = jobs.setdefault(first.removeprefix("Job Id: ").strip(), {})
            for field in fields:
                key, _, value = field.partition("=")
                attributes.setdefault(key, value)
    return jobs


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


def _run(command: str, *arguments: str, also: Iterable[int] = (), timeout_s: float | None = None) -> str:
    """Return the output of a client command that ends with 0 or a code of `also`."""
    timeout_s = _TIMEOUT_S if timeout_s is None else timeout_s
    try:
        done = subprocess.run(
            [command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"{command} is not on the PATH: run this on a machine where PBS jobs are submitted, or load its module"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"{command} did not answer within {timeout_s:.0f} s; try again later") from error
    code, said = done.returncode, done.stderr.strip()
    if code == 0 or code in also:
        return done.stdout
    if code in _NO_ANSWER:
        raise Unanswered(f"{command} could not reach the PBS server ({said}); try again later")
    advice = _NEXT_STEP.get(code, "see the message")
    raise Refused(f"{command} {' '.join(arguments)}: PBS refuses with code {code}: {said}; {advice}", code)
