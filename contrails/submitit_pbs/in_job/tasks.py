"""The tasks of a link: processes of submitit's own runner, with output in submitit's logs."""

import os
import pickletools
import subprocess
import sys
from collections.abc import Sequence

from submitit.core.utils import JobPaths

from contrails.submitit_pbs.chain import ARRAY_ID, JOB_ID, RESTARTS

Process = subprocess.Popen[bytes]


def start_tasks(tasks: Sequence[JobPaths], job_id: str, restarts: int, stderr_to_stdout: bool) -> list[Process]:
    """Start one process per task; each reads its rank from its environment.

    Args:
        tasks: paths of each task.
        job_id: the job's id in submitit.
        restarts: how often the job was started before.
        stderr_to_stdout: whether to use one log for both.
    """
    common = os.environ | job_environment(tasks, job_id, restarts)
    return [_start(task, common | {"SUBMITIT_PBS_RANK": str(task.task_id)}, stderr_to_stdout) for task in tasks]


def job_environment(tasks: Sequence[JobPaths], job_id: str, restarts: int) -> dict[str, str]:
    """Return the variables that describe the job to tasks and teardown; see `start_tasks`."""
    array = {ARRAY_ID: job_id.rpartition("_")[0]} if "PBS_ARRAY_ID" in os.environ else {}
    return array | {
        "SUBMITIT_FOLDER": str(tasks[0].folder),
        JOB_ID: job_id,
        RESTARTS: str(restarts),
        "SUBMITIT_PBS_NTASKS": str(len(tasks)),
    }


def stores_error(task: JobPaths) -> bool:
    """Return whether the stored result of a task is an error; the result itself is not loaded.

    submitit stores a pair whose first item is "success" or "error".
    """
    if not task.result_pickle.exists():
        return False
    with task.result_pickle.open("rb") as file:
        texts = (value for _, value, _ in pickletools.genops(file) if isinstance(value, str))
        return next(texts, None) == "error"


def _start(task: JobPaths, environment: dict[str, str], stderr_to_stdout: bool) -> Process:
    command = [sys.executable, "-u", "-m", "submitit.core._submit", str(task.folder)]
    with task.stdout.open("ab") as out, task.stderr.open("ab") as err:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out if stderr_to_stdout else err)


def kill_tasks(processes: Sequence[Process]) -> None:
    """Kill processes and wait for their end."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
