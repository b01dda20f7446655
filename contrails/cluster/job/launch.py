"""The launcher: the process of a job that starts one child process per fold and records how each ended.

It imports no torch, numpy or h5py, so it is small, and survives what kills a child (no memory left, or a mapped file
that was removed). submitit pickles only the name `run_folds`, a folder and folds; everything else is read from the run
folder when the job starts. `python -m contrails.cluster.job.launch RUN FOLD` trains a fold in the foreground.
"""

import itertools
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

from contrails.cluster.environment import local_interpreter
from contrails.cluster.job.child import Child, record_end, start_child
from contrails.cluster.job.handover import (
    Clock,
    Progress,
    context_of,
    ended_jobs,
    hand_over,
    is_wanted,
    record_silent_end,
)
from contrails.cluster.job.hooks import Event, Hook, finish_hooks, start_hook
from contrails.cluster.job.mps import sharing
from contrails.cluster.job.nodes import end_others, serve_node
from contrails.cluster.job.refused import submit_refused
from contrails.cluster.job.signals import FORWARDED, catch_signals
from contrails.cluster.memory import peak_of, used_by_children_gb
from contrails.cluster.queue.then import start_if_due
from contrails.cluster.schedulers.base import scheduler_of
from contrails.cluster.schedulers.sites import Site
from contrails.cluster.schedulers.slots import Slot, slots_of, take_slots
from contrails.errors import ContrailsError, Stopped
from contrails.progress import tell
from contrails.recipe.reading import parse
from contrails.runs.config import RunConfig
from contrails.runs.folder import Run
from contrails.train.context import JobContext

_POLL_S = 0.1
_LOOK_S = 2.0
"""Seconds between two checks for cancelled folds and for the walltime."""

_Share = tuple[str | None, list[int]]
"""Resources of a child: its GPUs, if it trains on GPUs, and the descriptors of its slots."""

T = TypeVar("T")


def run_folds(run_path: str, folds: list[str]) -> None:
    """Train folds in a job, with output in the attempts' logs; a scheduler's job hands over the folds that stopped.

    Raises:
        SystemExit: not every fold has finished; the exit code is as described in `launch`.
    """
    # submitit's handlers ignore TERM and resubmit at USR2; until the children exist, both should just end the job
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    run = Run(Path(run_path))
    config = run.read_config()
    site = parse(Site, config.site, str(run.toml))
    has_queue = scheduler_of(site).CAPABILITIES.has_queue
    if has_queue and (here := scheduler_of(site).this_job()).node_index:
        serve_node(run, config, site, run.fold(folds[0]), here)
        return
    tell_failure(submit_refused, run, config, site)
    code = _run_job(run, config, site, folds) if has_queue else _run_here(run, config, site, folds)
    tell_failure(start_if_due, run, config, site)
    if code:
        sys.exit(code)  # the teardown in the batch script decides what follows
    tell_failure(partial(submit_refused, is_leaving=True), run, config, site)


def tell_failure(what: Callable[[Run, RunConfig, Site], None], run: Run, config: RunConfig, site: Site) -> None:
    """Call `what` for the run; print its error, which `contrails status` shows too, but do not fail the folds."""
    try:
        what(run, config, site)
    except ContrailsError as error:
        tell(f"error: {error}")


def _run_here(run: Run, config: RunConfig, site: Site, folds: list[str]) -> int:
    """Wait for slots of this machine, then train."""
    start_s = _start_s()
    num_ranks = config.compute.num_ranks
    slots = slots_of(run, site, config.compute)
    wanted = min(len(folds), len(slots) // num_ranks) * num_ranks

    def left() -> list[str]:
        return [key for key in folds if not run.fold(key).cancelled.exists()]

    taken = take_slots(slots, wanted, lambda: not left())
    if not taken:
        return 0
    job_id = os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    job = JobContext(scheduler=site.scheduler, job_id=job_id, redirect=True, start_s=start_s)
    return _exit_code(list(_run_children(run, config, left(), job, _dealt_slots(config, taken)).values()))


def _run_job(run: Run, config: RunConfig, site: Site, folds: list[str]) -> int:
    """Train the remaining folds in a scheduler's job, and requeue the job for those that stopped."""
    scheduler = scheduler_of(site)
    here = scheduler.this_job()
    clock = Clock(scheduler, here, site.margin_s, run.clock(here.job_id))
    for key in folds:
        record_silent_end(run.fold(key), here, site)
    wanted = [key for key in folds if is_wanted(run.fold(key), here, site)]
    job = replace(
        context_of(site, here),
        ended_jobs=tuple(ended_jobs([run.fold(key) for key in wanted], scheduler, here)),
        address=here.address if site.num_nodes > 1 else "127.0.0.1",
        redirect=True,
        start_s=_start_s(),
    )
    gpus = here.devices if config.compute.device == "cuda" else ()
    per_node = job.ranks_per_node(config.compute.num_ranks)
    shares: list[_Share] = [(",".join(mine), []) for mine in _dealt(gpus, per_node)]
    progress = Progress(scheduler, here, [run.fold(key) for key in wanted])

    def look() -> bool:
        progress.note()
        return clock.due()

    try:
        codes = _run_children(run, config, wanted, job, shares, look)
    finally:
        if site.num_nodes > 1:
            end_others(run, here)
    stopped = [run.fold(key) for key, code in codes.items() if code == Stopped.exit_code]
    stopped = [fold for fold in stopped if not fold.cancelled.exists()]
    if not stopped:
        return _exit_code(list(codes.values()))
    # a job that continues has not failed, even if another fold in it has
    goes_on = hand_over(stopped, clock, site)
    return Stopped.exit_code if goes_on else scheduler.last_code(_exit_code(list(codes.values())))


def launch(run: Run, config: RunConfig, folds: list[str], job: JobContext, slots: Mapping[Slot, int]) -> int:
    """Train each fold in a child process and wait for all of them.

    Args:
        run: the run whose frozen code this process imports.
        config: its frozen configuration.
        folds: keys of the folds; child i gets the i-th group of slots, with one slot and GPU per rank. After the last
            group, the first one is used again.
        job: information about the job for the children.
        slots: the descriptor that holds each slot; closed here once the children have inherited it. May be empty.

    Returns:
        0 if every fold is done; else the exit code of one that failed; 75 if none failed and some stopped.
    """
    return _exit_code(list(_run_children(run, config, folds, job, _dealt_slots(config, slots)).values()))


def _dealt_slots(config: RunConfig, slots: Mapping[Slot, int]) -> list[_Share]:
    shares: list[_Share] = []
    for mine in _dealt(list(slots), config.compute.num_ranks):
        gpus = ",".join(slot.device for slot in mine if slot.device)
        shares.append((gpus or None, [slots[slot] for slot in mine]))
    return shares


def _dealt(items: Sequence[T], num_ranks: int) -> list[Sequence[T]]:
    """Split slots or GPUs into one group per fold, of one per rank of this node."""
    return [items[start : start + num_ranks] for start in range(0, len(items), num_ranks)]


def _run_children(
    run: Run,
    config: RunConfig,
    folds: list[str],
    job: JobContext,
    shares: list[_Share],
    is_due: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Train each fold in a child process with its own GPUs and slots; return the exit codes by fold."""
    interpreter = local_interpreter()
    # blocked while the children start, so that Ctrl-C does not kill them (see `contrails.cluster.job.task`)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    asked = catch_signals()
    clock = None if job.job_id is None else str(run.clock(job.job_id))
    job = replace(job, launcher_pid=os.getpid(), clock=clock)
    if interpreter.seconds is not None:
        job = replace(job, start_s=job.start_s | {"environment": round(interpreter.seconds, 3)})
    memory = []
    if hasattr(os, "memfd_create"):
        memory = [os.memfd_create("dataset"), os.memfd_create("verified")]
        job = replace(job, ram_fd=memory[0], verified_fd=memory[1])
    dealt = list(itertools.islice(itertools.cycle(shares or [(None, [])]), len(folds)))
    with sharing([gpu for gpu, _ in dealt], mps=config.site.get("mps", False)) as environments:
        children = [
            start_child(run.fold(key), job, interpreter, environment, [*held, *memory])
            for key, environment, (_, held) in zip(folds, environments, dealt, strict=True)
        ]
        if signal.SIGINT in signal.sigpending():  # sent before all children existed
            for child in children:
                child.process.send_signal(signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        for descriptor in (*(one for _, held in shares for one in held), *memory):
            os.close(descriptor)  # slots and memory are freed when the last child that inherited them ends
        stopping = _wait(children, asked, config, is_due, job)
    return {child.fold.key: child.exit_code(stopping) for child in children}


def _start_s() -> dict[str, float]:
    """Return the seconds since this process started, as the first phase of the start of its children."""
    return {"launcher": round(max(0.0, time.time() - psutil.Process().create_time()), 3)}


def _wait(
    children: list[Child],
    asked: deque[int],
    config: RunConfig,
    is_due: Callable[[], bool],
    job: JobContext,
) -> bool:
    """Forward signals until every child has ended, and record each end; return whether a stop was requested."""
    alive, stopping, looked, hooks = children, False, time.monotonic(), list[Hook]()
    while alive:
        time.sleep(_POLL_S)
        if time.monotonic() - looked >= _LOOK_S:
            looked = time.monotonic()
            for child in alive:
                if child.fold.cancelled.exists():
                    child.process.send_signal(signal.SIGTERM)
            if not stopping and is_due():
                asked.append(signal.SIGUSR2)
        while asked:
            number, stopping = asked.popleft(), True
            for child in alive:
                child.process.send_signal(number)
        ended = [child for child in alive if child.process.poll() is not None]
        for child in ended:
            used_gb = used_by_children_gb(len(children) * job.ranks_per_node(config.compute.num_ranks))
            record_end(child, config, stopping, peak_of(used_gb, job.memory_gb))
            if (event := _event(child, config, stopping)) is not None:
                hooks += start_hook(config.site, event, child.fold)
        alive = [child for child in alive if child not in ended]
    finish_hooks(hooks)
    return stopping


def _event(child: Child, config: RunConfig, stopping: bool) -> Event | None:
    """Return the site's event for a child that ended; None if it stopped, or if the teardown decides about a retry."""
    code = child.exit_code(stopping)
    if code == 0:
        return "on_done"
    site = parse(Site, config.site, str(child.fold.run.toml))
    starts_again = scheduler_of(site).CAPABILITIES.starts_again
    is_last = not starts_again and code != Stopped.exit_code
    return "on_failed" if is_last else None


def _exit_code(codes: list[int]) -> int:
    """Return one exit code for all children: a failure if there is one, else 75 if one stopped, else 0."""
    return next((code for code in codes if code not in (0, Stopped.exit_code)), max(codes, default=0))


def main() -> None:
    """Train a fold in the foreground; the exit code is that of the error."""
    run, fold_key = Run(Path(sys.argv[1])), sys.argv[2]
    job = JobContext(summary="--summary" in sys.argv, start_s=_start_s())
    try:
        sys.exit(launch(run, run.read_config(), [fold_key], job, {}))
    except ContrailsError as error:
        tell(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
