"""submitit's view of a PBS job from inside a task, and how the task stops on a signal."""

import os
import signal
import types
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from submitit.core import job_environment, logger, utils

from contrails.submitit_pbs.chain import ARRAY_ID, JOB_ID


class PbsJobEnvironment(job_environment.JobEnvironment):
    """Describes the job to the callable; all links of a chain have the id of the first link."""

    _env: ClassVar[dict[str, str]] = {
        "job_id": JOB_ID,
        "num_tasks": "SUBMITIT_PBS_NTASKS",
        "num_nodes": "SUBMITIT_PBS_NUM_NODES",
        "node": "SUBMITIT_PBS_NODEID",
        "global_rank": "SUBMITIT_PBS_RANK",
        "local_rank": "SUBMITIT_PBS_RANK",  # all tasks are on one node
        "array_job_id": ARRAY_ID,
        "array_task_id": "PBS_ARRAY_INDEX",
    }

    @property
    def hostnames(self) -> Sequence[str]:
        """The job's hosts, from PBS_NODEFILE, each once."""
        path = os.environ.get("PBS_NODEFILE")
        return [self.hostname] if path is None else list(dict.fromkeys(Path(path).read_text().split()))

    def _handle_signals(self, paths: utils.JobPaths, submission: utils.DelayedSubmission) -> None:
        handler = _SignalHandler(self, paths, submission)
        # TERM means that the job is deleted or preempted; the link finds out which. PBS leaves ten seconds for saving,
        # so the task saves at once, without asking PBS first
        signal.signal(signal.SIGTERM, handler.checkpoint_and_exit)
        signal.signal(signal.SIGCONT, handler.bypass)
        signal.signal(self._usr_sig(), handler.checkpoint_and_try_requeue)

    def _requeue(self, countdown: int) -> None:
        logger.get_logger().info(f"The next link goes on ({countdown} remaining timeouts)")


class _SignalHandler(job_environment.SignalHandler):
    def has_timed_out(self) -> bool:
        """Return True: only the walltime clock sends this signal."""
        return True

    def checkpoint_and_exit(self, signum: int, frame: types.FrameType | None = None) -> None:
        signal.signal(signum, signal.SIG_IGN)  # a second TERM must not start saving again
        super().checkpoint_and_exit(signum, frame)
