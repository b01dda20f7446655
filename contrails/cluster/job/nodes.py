"""The launchers on the other nodes of a job whose fold trains on several nodes.

srun starts `run_folds` on every node. On the first one it is the job's launcher; on each other one it starts that
node's ranks when rank 0 has claimed an attempt, and ends with the job's launcher. The launchers share the run folder
alone. If a process or a node dies, the others end as follows:

- A rank dies: the connections of the others break, and rank 0 ends with the cause "lost": the job is requeued.
- A launcher dies: the kernel kills its ranks, and srun ends the other launchers.
- The first node dies: its `state.json` is no longer rewritten, so the launchers of the other nodes end their ranks.
- Another node dies: Slurm ends the job, and starts it again; it does so for the first node too.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from contrails.cluster.environment import local_interpreter
from contrails.cluster.job.handover import context_of, own_attempt
from contrails.cluster.job.signals import catch_signals
from contrails.cluster.schedulers.base import ThisJob
from contrails.cluster.schedulers.sites import Site
from contrails.errors import RankError
from contrails.files import read_hint, to_json, write_atomic
from contrails.progress import tell
from contrails.runs.config import RunConfig
from contrails.runs.folder import Attempt, Fold, Run
from contrails.train.attempt import OVER, SILENCE_S
from contrails.train.ranks.start import end_ranks, start_ranks

_POLL_S = 0.5


def serve_node(run: Run, config: RunConfig, site: Site, fold: Fold, here: ThisJob) -> None:
    """Start this node's ranks of the job's attempt, and return when the job's launcher has ended.

    Raises:
        SystemExit: rank 0 has been silent for 3 minutes.
        NodeError: this node does not set a variable of `stage_dir`.
    """
    asked, stage_dir, interpreter = catch_signals(), site.own_stage_dir(), local_interpreter()
    job = replace(
        context_of(site, here),
        stage_dir=None if stage_dir is None else str(stage_dir),
        ram_fd=os.memfd_create("dataset") if hasattr(os, "memfd_create") else None,
    )
    per_node = job.ranks_per_node(config.compute.num_ranks)
    numbers = range(here.node_index * per_node, (here.node_index + 1) * per_node)
    ranks, pulse = list[subprocess.Popen[bytes]](), None
    while not _is_over(run, here):
        time.sleep(_POLL_S)
        if not ranks and (attempt := own_attempt(fold, here)) is not None and attempt.meeting.exists():
            log = attempt.node_log(here.node_index)
            ranks = start_ranks(fold, attempt.number, job, numbers, log, interpreter.python, interpreter.variables)
            pulse = _Pulse(attempt)
        while asked:
            number = asked.popleft()
            for rank in ranks:
                rank.send_signal(number)  # does nothing if it has ended
        if pulse is not None and any(rank.poll() is None for rank in ranks) and pulse.is_silent():
            end_ranks(ranks)
            tell(
                f"error: fold {fold.key}: expected rank 0 to rewrite {pulse.path}, found no change for "
                f"{SILENCE_S:.0f} s, so its node is probably down; node {here.node} ends its ranks, and the job starts "
                "again"
            )
            sys.exit(RankError.exit_code)
    end_ranks(ranks)


def end_others(run: Run, here: ThisJob) -> None:
    """Tell the launchers on the other nodes that this start of the job is over."""
    write_atomic(run.job_over(here.job_id), to_json({"restart_count": here.restart_count}))


def _is_over(run: Run, here: ThisJob) -> bool:
    over: int = read_hint(run.job_over(here.job_id)).get("restart_count", -1)
    return over >= here.restart_count


class _Pulse:
    """Whether rank 0 still rewrites the state of its attempt, by the clock of this process."""

    def __init__(self, attempt: Attempt) -> None:
        self.path: Path = attempt.state
        self._seen, self._since = read_hint(self.path), time.monotonic()

    def is_silent(self) -> bool:
        now = read_hint(self.path)
        if now != self._seen or now.get("status") in OVER:
            self._seen, self._since = now, time.monotonic()
        return time.monotonic() - self._since >= SILENCE_S
