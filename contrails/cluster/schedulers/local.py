"""This machine as a scheduler: jobs in the background, each under submitit's local controller in its own session.

Closing the terminal or Ctrl-C does not reach them. There is no queue: a job waits for a slot of the machine by itself
(see `contrails.cluster.schedulers.slots`), its launcher looks for cancelled folds, and its state is that of its
process, which the journal records. So most functions of a scheduler are trivial here.
"""

import os
import shlex
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from contrails.cluster.outcomes import Cause
from contrails.cluster.schedulers.base import Capabilities, Check, Job, Reference, Request, Standing, ThisJob
from contrails.cluster.schedulers.slots import DEVICES
from contrails.errors import ClusterError
from contrails.files import fsync, storage
from contrails.processes import Process, process_of
from contrails.runs.folder import job_pickle, local_log

if TYPE_CHECKING:
    from contrails.cluster.schedulers.sites import Site

CAPABILITIES = Capabilities(has_queue=False, runs_here=True, starts_again=False)

_NO_LIMIT_MIN = 60 * 24 * 365 * 10
"""submitit's local controller needs a time limit; this machine has no walltime, so it is ten years."""

_controllers: list["subprocess.Popen[bytes]"] = []
"""Controllers that this process has started and that still run; Python warns if such an object is not kept."""


def preview(_folder: Path, _site: "Site", _request: Request) -> str:
    """Return nothing: there is no script."""
    return ""


def check(_site: "Site") -> tuple[Check, ...]:
    """Return nothing: the checks of a machine that trains are enough."""
    return ()


def submit(
    folder: Path,
    _site: "Site",
    request: Request,
    announce: Callable[[Path], None],
    accept: Callable[[str, Process | None], None],
) -> str:
    """Start a job and return its id, which is the pid of its controller; see `Scheduler`."""

    pickle = folder / f"{uuid.uuid4().hex}.pkl"
    delayed = request.delayed()
    delayed.set_timeout(_NO_LIMIT_MIN, 0)
    with storage(folder):
        delayed.dump(pickle)
        fsync(pickle)
    announce(pickle)
    process = _start(folder, request)
    job_id = str(process.pid)
    accept(job_id, process_of(process.pid))
    complete(folder, pickle, job_id)
    return job_id


def _start(folder: Path, request: Request) -> "subprocess.Popen[bytes]":
    """Start submitit's controller, which runs the job and writes its logs, as `submitit.LocalExecutor` would."""
    environment = dict(os.environ) | {DEVICES: ""} | (request.environment or {})
    environment |= {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_COMMAND": shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]),
        "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * _NO_LIMIT_MIN),
        "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_WITH_SHELL": "",
        "SUBMITIT_STDERR_TO_STDOUT": "",
        "CUDA_VISIBLE_DEVICES": "",  # the launcher sets it for each child
    }
    with storage(folder.parent), local_log(folder).open("ab") as log:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "submitit.local._local", str(folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise ClusterError(
                f"the job {request.name} could not be started: {error.strerror}; check the limits of this machine with "
                "`ulimit -a`, then run the same command again"
            ) from error
    _controllers[:] = [*(known for known in _controllers if known.poll() is None), process]
    return process


def complete(folder: Path, pickle: Path, job_id: str) -> None:
    """Rename the pickle to the name that the job waits for; the job gives up after a minute."""
    if pickle.exists():
        pickle.rename(job_pickle(folder, job_id))


def look(_jobs: Collection[Reference]) -> dict[str, Job]:
    """Return nothing: the journal records the process of each job."""
    return {}


def cancel(_jobs: Collection[Reference]) -> None:
    """Do nothing: the launcher of each job looks for cancelled folds itself."""


def pass_on(_successors: Mapping[str, Collection[str]]) -> None:
    """Do nothing: no job waits for another."""


def interruptions() -> dict[str, Callable[[Reference], object]]:
    """Return nothing: the drill interrupts the job's processes instead."""
    return {}


def this_job() -> ThisJob:
    """Return the job that this process runs in."""
    return ThisJob("", os.environ["SUBMITIT_LOCAL_JOB_ID"], 0, socket.gethostname(), (), None)


def end_time(_job: ThisJob) -> None:
    """Return None: there is no time limit."""


def standing(_job: ThisJob) -> Standing:
    """Return "running": nothing requeues or cancels a job here."""
    return "running"


def requeue(_job: ThisJob, _changes: Collection[Cause]) -> bool:
    """Return False: nothing starts a job again here."""
    return False


def peak_gb(_job: ThisJob) -> None:
    """Return None: the launcher measures it."""


def largest_memory_gb(_site: "Site") -> None:
    """Return None: a job does not request memory."""


def last_code(code: int) -> int:
    """Return the code unchanged: no job is started again for its exit code."""
    return code


def why_restarted(_job: ThisJob) -> Cause:
    """Return "lost": no job is started again here."""
    return "lost"


def note_progress(_job: ThisJob) -> None:
    """Do nothing: starts are not counted here."""
