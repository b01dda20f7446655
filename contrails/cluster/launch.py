"""The launcher: what a job runs. It starts one child process a fold and has the last word on how each ended.

It imports no torch, numpy or h5py, so it is small, and what ends a fold (a mapped file that vanishes, no memory) does
not end it. submitit pickles `run_folds` by name with a folder and folds, nothing else; everything else is read from
the run folder when the job starts. `python -m contrails.cluster.launch RUN FOLD` trains a fold in the foreground.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrails.cluster.places import take_places
from contrails.cluster.sites import Site
from contrails.config import RunConfig, parse, read_toml
from contrails.errors import ContrailsError, Stopped, StorageError
from contrails.files import read_hint, to_json, write_atomic
from contrails.runs import Attempt, Fold, Run
from contrails.train.attempt import OVER, is_dead

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals of schedulers; that of Ctrl-C reaches the children without help, a terminal sends it to all of them."""

_POLL_S = 0.1


@dataclass(frozen=True)
class _Child:
    fold: Fold
    process: subprocess.Popen[bytes]


def run_folds(run_path: str, folds: list[str]) -> None:
    """Train folds in a job: wait for places on this machine, then train with the output in the attempts' logs.

    Raises:
        SystemExit: not every fold finished; the code is that of `launch`.
    """
    # submitit lets TERM pass by and asks for a new job at USR2; while there are no children, they just end the job
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    run = Run(Path(run_path))
    config = _read_config(run)
    site = parse(Site, config.site, str(run.toml))
    at_a_time, num_ranks = site.folds_at_a_time, config.compute.num_ranks
    wanted = min(len(folds), at_a_time) * num_ranks
    places = take_places(run.path.parent / ".places", at_a_time * num_ranks, wanted)
    job = {"scheduler": site.scheduler, "job_id": os.environ.get("SUBMITIT_LOCAL_JOB_ID"), "redirect": True}
    if code := launch(run, config, folds, job, places):
        sys.exit(code)


def launch(run: Run, config: RunConfig, folds: list[str], job: dict[str, Any], places: dict[int, int]) -> int:
    """Train each fold in a child process and wait for all of them.

    Args:
        run: the run whose frozen code this process imports.
        config: its frozen configuration.
        folds: keys of the folds; child i gets the i-th place and its GPU (one for each rank), beginning again after
            the last one.
        job: what the children are told about the job, see `train_fold`.
        places: descriptor that holds each place, by number; closed here when the children have theirs. May be empty.

    Returns:
        0 if every fold ended well; else the exit code of one that failed, or 75 where they only stopped.
    """
    asked = _catch_signals()
    memory = [os.memfd_create("dataset")] if hasattr(os, "memfd_create") else []
    job = job | {"launcher_pid": os.getpid(), "ram_fd": memory[0] if memory else None}
    if job.get("job_id") is not None:
        job["clock"] = str(run.clock(job["job_id"]))
    on_gpu = config.compute.device == "cuda"
    numbers, num_ranks = sorted(places), config.compute.num_ranks
    taken = [numbers[start : start + num_ranks] for start in range(0, len(numbers), num_ranks)]
    children = [
        _start(run.fold(key), job, mine if on_gpu else [], [*(places[number] for number in mine), *memory])
        for key, mine in zip(folds, itertools.cycle(taken or [[]]), strict=False)
    ]
    for descriptor in (*places.values(), *memory):
        os.close(descriptor)  # a place is free, and the memory too, when the last child that has it ends
    _wait(children, asked, config)
    return _exit_code([child.process.returncode for child in children])


def _catch_signals() -> deque[int]:
    """Return what will hold the signals that arrive from now on; none of them ends this process."""
    asked: deque[int] = deque()
    for number in FORWARDED:
        signal.signal(number, lambda received, _frame: asked.append(received))
    # not SIG_IGN, which the children would inherit
    signal.signal(signal.SIGINT, lambda _received, _frame: None)
    return asked


def _start(fold: Fold, job: dict[str, Any], gpus: Sequence[int], descriptors: Sequence[int]) -> _Child:
    environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {})
    command = [sys.executable, "-m", "contrails.cluster.task", str(fold.run.path), fold.key, to_json(job)]
    return _Child(fold, subprocess.Popen(command, env=environment, pass_fds=descriptors))


def _wait(children: list[_Child], asked: deque[int], config: RunConfig) -> None:
    """Forward signals until every child has ended; each is looked at as soon as it has."""
    alive = children
    while alive:
        time.sleep(_POLL_S)
        while asked:
            number = asked.popleft()
            for child in alive:
                child.process.send_signal(number)
        ended = [child for child in alive if child.process.poll() is not None]
        for child in ended:
            _look_at(child, config)
        alive = [child for child in alive if child not in ended]


def _look_at(child: _Child, config: RunConfig) -> None:
    """Say why a child ended if a signal ended it: then it had no time to say so itself."""
    if child.process.returncode >= 0:
        return
    reason = _reason(-child.process.returncode, config)
    attempt = _attempt_of(child)
    when = "before it began an attempt" if attempt is None else f"attempt {attempt.number}"
    print(f"error: fold {child.fold.key}, {when}: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    if attempt is None:
        return
    state = read_hint(attempt.state)
    if state.get("status") in OVER:
        return
    try:
        write_atomic(attempt.state, to_json(state | {"status": "failed", "reason": reason}))
    except StorageError as error:  # it must not end the other folds
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201


def _reason(number: int, config: RunConfig) -> str:
    path, stage_dir = config.recipe.data.dataset, config.site.get("stage_dir")
    if number == signal.SIGBUS:
        mapped = f"{path} (or its copy in {stage_dir})" if stage_dir else str(path)
        return (
            f"dataset vanished or I/O error: the mapped file {mapped} was cut short, removed, or could not be read "
            f"(SIGBUS); check it with `contrails data verify {path}` and submit the run again to go on"
        )
    if number == signal.SIGKILL:
        return "killed (SIGKILL): out of memory, or by somebody; submit the run again to go on"
    known = {known.value: known.name for known in signal.Signals}
    return f"ended by {known.get(number, f'signal {number}')}; submit the run again to go on"


def _attempt_of(child: _Child) -> Attempt | None:
    """Return the attempt that a child which has ended had claimed."""
    for attempt in reversed(child.fold.attempts()):
        owner = read_hint(attempt.job)
        if owner.get("pid") == child.process.pid and is_dead(owner):
            return attempt
    return None


def _exit_code(returncodes: list[int]) -> int:
    """Return one code for all children, with 128 + N for signal N as in a shell; a failure goes before a stop."""
    codes = [code if code >= 0 else 128 - code for code in returncodes]
    return next((code for code in codes if code not in (0, Stopped.exit_code)), max(codes))


def _read_config(run: Run) -> RunConfig:
    return parse(RunConfig, read_toml(run.toml, "a run"), str(run.toml))


def main() -> None:
    """Train a fold in the foreground; the exit code is that of the error."""
    run, fold_key = Run(Path(sys.argv[1])), sys.argv[2]
    job = {"scheduler": None, "job_id": None, "summary": "--summary" in sys.argv}
    try:
        sys.exit(launch(run, _read_config(run), [fold_key], job, {}))
    except ContrailsError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
