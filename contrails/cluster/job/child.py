"""A training process of the launcher: its start, its exit code, and the record of why it ended."""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from contrails.cluster.ends import write_end
from contrails.cluster.environment import Interpreter
from contrails.cluster.job.signals import FORWARDED
from contrails.cluster.memory import Peak
from contrails.cluster.outcomes import Cause, cause_of_exit, next_step
from contrails.errors import Stopped, StorageError
from contrails.files import read_hint, to_json, write_atomic
from contrails.processes import process_in
from contrails.progress import tell
from contrails.runs.config import RunConfig
from contrails.runs.folder import Attempt, Fold
from contrails.train.attempt import OVER
from contrails.train.context import JobContext


@dataclass(frozen=True)
class Child:
    """The process that trains a fold."""

    fold: Fold
    process: subprocess.Popen[bytes]

    def exit_code(self, stopping: bool) -> int:
        """Return the exit code of an ended child, with 128 + N for signal N as in a shell."""
        returncode: int = self.process.returncode
        if (stopping and -returncode in FORWARDED) or returncode == -signal.SIGINT:
            return Stopped.exit_code  # it was still importing and had nothing to save
        return returncode if returncode >= 0 else 128 - returncode


def start_child(
    fold: Fold, job: JobContext, interpreter: Interpreter, environment: Mapping[str, str], descriptors: Sequence[int]
) -> Child:
    """Start the training of a fold, with the variables of its environment and the descriptors that it inherits."""
    job = replace(job, started_at=time.time())
    command = [interpreter.python, "-m", "contrails.cluster.job.task", str(fold.run.path), fold.key, job.to_json()]
    process = subprocess.Popen(command, env={**interpreter.variables, **environment}, pass_fds=descriptors)
    return Child(fold, process)


def record_end(child: Child, config: RunConfig, stopping: bool, peak: Peak) -> None:
    """Record why a child ended; also write its state if a signal left it no time to do so."""
    code = child.exit_code(stopping)
    if child.process.returncode == -signal.SIGINT:
        tell(f"fold {child.fold.key}: stopped (SIGINT) before training began; {next_step('lost', child.fold.run)}")
    if code in (0, Stopped.exit_code):
        return
    attempt = _attempt_of(child)
    cause = cause_of_exit(code, peak)
    try:
        if child.process.returncode < 0:
            _say(child, attempt, _reason(-child.process.returncode, config, peak), cause)
        if attempt is not None:
            write_end(child.fold, attempt, cause)
    except StorageError as error:  # the other folds go on
        tell(f"error: {error}")


def _say(child: Child, attempt: Attempt | None, reason: str, cause: Cause) -> None:
    when = "before it began an attempt" if attempt is None else f"attempt {attempt.number}"
    what = f"{reason}; {next_step(cause, child.fold.run)}"
    tell(f"error: fold {child.fold.key}, {when}: {what}")
    state = read_hint(attempt.state) if attempt else {}
    if attempt is not None and state.get("status") not in OVER:
        write_atomic(attempt.state, to_json(state | {"status": "failed", "reason": reason}))


def _reason(number: int, config: RunConfig, peak: Peak) -> str:
    path, stage_dir = config.recipe.data.dataset, config.site.get("stage_dir")
    if number == signal.SIGBUS:
        mapped = f"{path} (or its copy in {stage_dir})" if stage_dir else str(path)
        return (
            f"dataset vanished or I/O error: the mapped file {mapped} was truncated, removed, or could not be read "
            "(SIGBUS)"
        )
    if number == signal.SIGKILL:
        return f"killed (SIGKILL){'' if peak.is_far else ', probably for memory'}: it had used at most {peak}"
    known = {known.value: known.name for known in signal.Signals}
    return f"ended by {known.get(number, f'signal {number}')}"


def _attempt_of(child: Child) -> Attempt | None:
    """Return the attempt that an ended child had claimed, if any."""
    for attempt in reversed(child.fold.attempts()):
        owner = process_in(read_hint(attempt.job))
        if owner is not None and owner.pid == child.process.pid and owner.is_dead():
            return attempt
    return None
