"""What the jobs of tests/submitit_pbs/test_pbs_plugin.py run; job processes import it."""

import os
import pickle
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from contrails.submitit_pbs.chain import note_progress
from contrails.submitit_pbs.in_job.clock import Clock


def add(a: int, b: int) -> int:
    print(f"adding {a} and {b}")
    print("a word for stderr", file=sys.stderr)
    return a + b


def divide(a: int, b: int) -> float:
    return a / b


def sleep(seconds: float, started: str) -> str:
    Path(started).touch()
    time.sleep(seconds)
    return "slept"


def leave(code: int) -> None:
    sys.exit(code)


def leave_at_first(code: int, path: str) -> str:
    """Leave with a code the first time, and with a result then."""
    if Path(path).exists():
        return "done"
    Path(path).touch()
    sys.exit(code)


def warned_after_the_result() -> None:
    """Write the result, then leave as submitit does where the warning comes before the end of the process."""
    paths = submitit.JobEnvironment().paths
    paths.result_pickle.write_bytes(pickle.dumps(("success", "kept")))
    os._exit(255)


def killed_after_the_result(kind: str = "success") -> None:
    """Write the result, then end like a process whose node fails."""
    paths = submitit.JobEnvironment().paths
    paths.result_pickle.write_bytes(pickle.dumps((kind, "kept")))
    os.kill(os.getpid(), signal.SIGKILL)


def die(path: str, times: int, progress: Collection[int] = ()) -> str:
    """End like a process that the kernel kills for memory, as often as told; some starts get further before."""
    with Path(path).open("a") as file:
        file.write("started\n")
    start = len(Path(path).read_text().splitlines())
    if start in progress:
        note_progress()
    if start <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def describe() -> dict[str, Any]:
    environment = submitit.JobEnvironment()
    names = ("job_id", "num_tasks", "num_nodes", "global_rank", "local_rank", "node", "array_job_id", "hostnames")
    return {name: getattr(environment, name) for name in names} | {"cluster": environment.cluster}


class Counter:
    """Takes steps, one row each in a file; goes on where its checkpoint stood."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, path: str, num_steps: int) -> int:
        while self.step < num_steps:
            with Path(path).open("a") as file:
                file.write(f"{self.step} {os.environ['PBS_JOBID']}\n")
            self.step += 1
            time.sleep(0.1)
        return self.step

    def checkpoint(self, path: str, num_steps: int) -> DelayedSubmission:
        return DelayedSubmission(self, path, num_steps)


def poll(path: str, num_steps: int) -> str:
    """Take steps without checkpoint(): look at the clock between two of them, save, and go on in the next link."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stops.append(number))
    clock, rows = Clock.of_this_job(), Path(path)
    rows.touch()
    while (done := len(rows.read_text().splitlines())) < num_steps:
        with rows.open("a") as file:
            file.write(f"{done} {os.environ['PBS_JOBID']}\n")
        time.sleep(0.1)
        if stops or clock.is_near_end():
            sys.exit(75)
    return f"{done} steps after {os.environ['SUBMITIT_PBS_RESTARTS']} restarts"
