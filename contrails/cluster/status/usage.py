"""The hours that a fold's attempts used, and how many of them were lost, from their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from contrails.cluster.ends import read_end
from contrails.cluster.queue.journal import Submission, submissions
from contrails.files import last_json_line, read_hint
from contrails.runs.folder import Attempt, Fold, Run
from contrails.runs.metrics import covered_step
from contrails.train.attempt import is_made_by
from contrails.train.start import PHASES


@dataclass(frozen=True)
class Usage:
    """Hours of a fold's attempts; of these, the hours whose steps were lost, and those spent waiting for data.

    `hours_queued` came before them and are not included. Of the time of a GPU that several folds of a run use at once,
    `gpu_hours` has an equal fraction for each. `memory_gb` is the peak memory of the first process.
    """

    hours: float = 0.0
    hours_lost: float = 0.0
    hours_waiting: float = 0.0
    hours_queued: float = 0.0
    gpu_hours: float = 0.0
    memory_gb: float | None = None

    @property
    def efficiency(self) -> float | None:
        """The fraction of the hours that was neither lost nor spent waiting for data."""
        return max(0.0, 1 - (self.hours_lost + self.hours_waiting) / self.hours) if self.hours else None

    def __add__(self, other: "Usage") -> "Usage":
        known = [memory for memory in (self.memory_gb, other.memory_gb) if memory is not None]
        return Usage(
            self.hours + other.hours,
            self.hours_lost + other.hours_lost,
            self.hours_waiting + other.hours_waiting,
            self.hours_queued + other.hours_queued,
            self.gpu_hours + other.gpu_hours,
            max(known, default=None),
        )


UNUSED = Usage()


@dataclass(frozen=True)
class Span:
    """One attempt on the time axis; `queued`, `started` and `ended` are seconds since the epoch.

    `queued` is when its job was requested, or when the attempt before it in the same job ended; None in the foreground.
    `status` is the last one that it wrote: starting, running, stopped, failed or done; or lost, if it was still running
    when another attempt began. `gpus` identifies the GPUs that it used, if any.
    """

    attempt: int
    queued: float | None
    started: float
    ended: float
    status: str
    cause: str | None
    hours_lost: float
    hours_waiting: float
    memory_gb: float | None
    num_gpus: int
    start_s: Mapping[str, float]
    """Seconds per phase until the first step was done (see `contrails.train.start`); empty for older versions."""
    gpus: str

    @property
    def hours(self) -> float:
        return max(0.0, self.ended - self.started) / 3600


def usage_of(run: Run) -> dict[str, Usage]:
    """Return what the attempts of each fold of a run have used so far, by the fold's key."""
    jobs = submissions(run)
    made = [(fold.key, span) for fold in run.folds() for span in spans(fold, jobs)]
    found = dict[str, Usage]()
    for (key, span), gpu_hours in zip(made, _gpu_hours([span for _, span in made]), strict=True):
        queued = max(0.0, span.started - span.queued) / 3600 if span.queued is not None else 0.0
        used = Usage(span.hours, span.hours_lost, span.hours_waiting, queued, gpu_hours, span.memory_gb)
        found[key] = found.get(key, UNUSED) + used
    return found


def _gpu_hours(made: Sequence[Span]) -> list[float]:
    """Return the GPU-hours of each attempt; those that use the same GPU at the same time divide it equally."""
    hours = [0.0] * len(made)
    for gpus in {span.gpus for span in made if span.num_gpus}:
        users = [(number, span) for number, span in enumerate(made) if span.gpus == gpus]
        moments = sorted({moment for _, span in users for moment in (span.started, span.ended)})
        for begin, end in pairwise(moments):
            active = [(number, span) for number, span in users if span.started <= begin and end <= span.ended]
            for number, span in active:
                hours[number] += span.num_gpus * (end - begin) / 3600 / len(active)
    return hours


def spans(fold: Fold, jobs: Sequence[Submission] | None = None) -> list[Span]:
    """Return the attempts of a fold on the time axis; each lasts until the last change of its state."""
    attempts, found = fold.attempts(), list[Span]()
    jobs = submissions(fold.run) if jobs is None else jobs
    before: dict[str, Any] = {}
    for attempt in attempts:
        owner, state, end = read_hint(attempt.job), read_hint(attempt.state), read_end(attempt)
        started, last = _seconds(owner.get("started", "")), last_json_line(attempt.telemetry)
        if started is None or not attempt.state.exists():
            continue
        # the files' own times may be lost in a copy of the folder
        ended = max(started, state.get("time") or attempt.state.stat().st_mtime)
        memory = last.get("resident", last.get("memory"))
        status = state.get("status", "starting")
        if attempt != attempts[-1] and status in {"starting", "running"}:
            status = "lost"
        again = is_made_by(before, owner.get("job_id"), owner.get("job_name"))
        found.append(
            Span(
                attempt.number,
                min(found[-1].ended, started) if again else _asked(jobs, owner, started),
                started,
                ended,
                status,
                end.cause if end else None,
                _hours_lost(fold, attempt, is_last=attempt == attempts[-1]),
                (last.get("data_wait_share") or 0.0) * (ended - started) / 3600,
                memory / 1e9 if memory is not None else None,
                owner.get("num_ranks", 1) if owner.get("device") == "cuda" else 0,
                _start_s(state),
                _gpus(attempt, owner),
            )
        )
        before = owner
    return found


def _start_s(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the phases of a start that `state.json` of an attempt holds."""
    found = state.get("start_s", {})
    return {name: float(found[name]) for name in PHASES if isinstance(found.get(name), int | float)}


def _gpus(attempt: Attempt, owner: dict[str, Any]) -> str:
    """Return what identifies the GPUs of an attempt: UUIDs, or numbers, which are those of its job and host."""
    if "gpus" not in owner:  # older versions did not record them
        return str(attempt.path)
    gpus = owner["gpus"] or ""
    return gpus if gpus.startswith(("GPU-", "MIG-")) else f"{owner.get('host')} {owner.get('job_id')} {gpus}"


def _seconds(moment: str) -> float | None:
    """Return a time in seconds since the epoch; None if the text is not a time."""
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return None


def _asked(jobs: Sequence[Submission], owner: dict[str, Any], started: float) -> float | None:
    """Return when the job of an attempt was submitted."""
    return next((min(job.time, started) for job in reversed(jobs) if job.is_that_of(owner)), None)


def _hours_lost(fold: Fold, attempt: Attempt, *, is_last: bool) -> float:
    """Return the hours of the steps that no snapshot covered when the attempt ended."""
    state, end = read_hint(attempt.state), read_end(attempt)
    if end is None and (is_last or state.get("status") in {"stopped", "done"}):
        return 0.0
    steps = state.get("step", 0) - (end.step if end else covered_step(fold))
    return float(max(0, steps) * (state.get("seconds_per_step") or 0.0) / 3600)
