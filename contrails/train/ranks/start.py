"""Starting the ranks of this node as child processes; imports no torch, so that a launcher can use it."""

import os
import subprocess
import sys
from pathlib import Path

from contrails.processes import held_back
from contrails.runs.folder import Fold
from contrails.train.context import JobContext, RankContext
from contrails.train.stop import SIGNALS


def start_ranks(
    fold: Fold,
    attempt: int,
    job: JobContext,
    numbers: range,
    log: Path | None = None,
    python: str = sys.executable,
    environment: dict[str, str] | None = None,
) -> list[subprocess.Popen[bytes]]:
    """Start ranks of an attempt; each is killed when this process ends.

    Args:
        fold: the fold that they train.
        attempt: number of the attempt that rank 0 has claimed.
        job: the job, as this node sees it.
        numbers: numbers of the ranks to start.
        log: file for their output; None for the output of this process.
        python: the interpreter.
        environment: environment variables; None for those of this process.
    """
    descriptors = [] if job.ram_fd is None else [job.ram_fd]
    processes = []
    for number in numbers:
        context = RankContext(number, attempt, os.getpid(), job)
        command = [python, "-m", "contrails.train.ranks.process"]
        command += [str(fold.run.path), fold.key, context.to_json()]
        output = None if log is None else log.open("ab")
        # the child begins with the signals blocked, so that none kills it before it has handlers
        with held_back(SIGNALS):
            process = subprocess.Popen(command, env=environment, pass_fds=descriptors, stdout=output, stderr=output)
        processes.append(process)
        if output is not None:
            output.close()
    return processes


def end_ranks(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill ranks; nothing is lost, as they write no files."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
