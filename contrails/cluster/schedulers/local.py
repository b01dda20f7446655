"""This machine: jobs in the background, each under submitit's local controller, in a session of its own.

Closing the terminal or Ctrl-C reaches none of them. There is no queue: a job waits for a slot of the machine by itself
(see `contrails.cluster.schedulers.slots`), its launcher looks for the tombstones of its folds, and its state is that of
its process, which the journal names. So most of what is asked of a scheduler has a plain answer here.
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
"""submitit's local controller ends a job after its time; a machine of one's own has no walltime."""

_controllers: list["subprocess.Popen[bytes]"] = []
"""Those that this process has started and that still run: Python warns of one that is forgotten."""


def preview(_folder: Path, _site: "Site", _request: Request) -> str:
    """Return nothing: there is no script."""
    return ""


def check(_site: "Site") -> tuple[Check, ...]:
    """Return nothing: what is asked of a machine that trains is all that there is to check."""
    return ()


def submit(
    folder: Path,
    _site: "Site",
    request: Request,
    announce: Callable[[Path], None],
    accept: Callable[[str, Process | None], None],
) -> str:
    """Start a job and return its id, the number of its controller's process; see `Scheduler`."""

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
        "CUDA_VISIBLE_DEVICES": "",  # a child of the launcher gets its own
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
            raise ClusterError(f"the job {request.name} could not be started: {error.strerror}") from error
    _controllers[:] = [*(known for known in _controllers if known.poll() is None), process]
    return process


def complete(folder: Path, pickle: Path, job_id: str) -> None:
    """Give the pickle the name under which the job looks for it, for a minute, and then gives up."""
    if pickle.exists():
        pickle.rename(job_pickle(folder, job_id))


def look(_jobs: Collection[Reference]) -> dict[str, Job]:
    """Return nothing: the journal names the process of each job."""
    return {}


def cancel(_jobs: Collection[Reference]) -> None:
    """Do nothing: the launcher of each job looks for the tombstones of its folds."""


def pass_on(_successors: Mapping[str, Collection[str]]) -> None:
    """Do nothing: no job waits for another."""


def interruptions() -> dict[str, Callable[[Reference], object]]:
    """Return nothing: what can happen to a job here, happens to its processes."""
    return {}


def this_job() -> ThisJob:
    """Return the job that this process runs in."""
    return ThisJob("", os.environ["SUBMITIT_LOCAL_JOB_ID"], 0, socket.gethostname(), (), None)


def end_time(_job: ThisJob) -> None:
    """Return None: a job may last for ever."""


def standing(_job: ThisJob) -> Standing:
    """Return that the job runs: nobody takes its place."""
    return "running"


def requeue(_job: ThisJob, _changes: Collection[Cause]) -> bool:
    """Return False: nobody starts it again."""
    return False


def peak_gb(_job: ThisJob) -> None:
    """Return None: the launcher alone measures it."""


def largest_memory_gb(_site: "Site") -> None:
    """Return None: a job does not ask for memory."""


def last_code(code: int) -> int:
    """Return the code as it is: no job is started again for it."""
    return code


def why_restarted(_job: ThisJob) -> Cause:
    """Return that nobody knows: no job is started again."""
    return "lost"


def note_progress(_job: ThisJob) -> None:
    """Do nothing: nobody counts starts."""
