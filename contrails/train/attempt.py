"""Attempts, and the fence by which only one process at a time trains a fold.

A process claims an attempt by creating the folder `attempts/<nnn>`, which succeeds for one process only, also on NFS.
If the attempt before it is known to have ended, the process takes over the fold at once. Otherwise it watches the
`state.json` of that attempt, which a living process rewrites every 20 s: if the content changes, the claim fails; if it
stays the same for three minutes by the clock of the watching process, this process takes over the fold.
"""

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contrails.errors import RunError, StorageError
from contrails.files import read_hint, storage, to_json, write_atomic
from contrails.processes import Process, process_in, process_of
from contrails.runs.folder import Attempt, Fold
from contrails.train.context import JobContext
from contrails.train.start import StartClock

BEAT_S = 20.0
SILENCE_S = 180.0
_NEWS_S = 0.5
"""Shortest time between two writes of the state, in seconds."""

_SIMD = ("sse", "ssse", "avx", "amx", "fma", "f16c", "neon", "asimd", "fphp", "sve", "sme", "bf16", "i8mm")
"""Prefixes of the CPU flags of vector instructions."""

OVER = {"stopped", "failed", "done"}
"""States after which an attempt writes nothing more."""

log = logging.getLogger(__name__)


def claim_attempt(
    fold: Fold, job: JobContext, exactness: Mapping[str, Any], keep_waiting: Callable[[], bool]
) -> Attempt:
    """Claim the next attempt of a fold for this process and write its `job.json`.

    Args:
        fold: the fold to train.
        job: the job that this process runs in.
        exactness: further values on which byte-identical results depend (see `contrails.cluster.status.exact`); they
            are written to `job.json`.
        keep_waiting: called while an earlier attempt may be alive; False ends the wait with a RunError.

    Raises:
        RunError: an earlier attempt is alive.
    """
    while True:
        earlier = fold.attempts()
        if earlier:
            _await_end(fold, earlier[-1], job, keep_waiting)
        attempt = fold.attempt(earlier[-1].number + 1 if earlier else 1)
        with storage(attempt.path, "create"):
            attempt.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                attempt.path.mkdir()
            except FileExistsError:
                continue  # another process was faster: wait for the end of its attempt
        write_atomic(attempt.job, to_json(job.record | dict(exactness) | _this_process()))
        return attempt


def is_made_by(owner: Mapping[str, Any], job_id: str | None, name: str | None) -> bool:
    """Return whether a job of the scheduler made the attempt with this `job.json`.

    A scheduler that has lost its state reuses ids, so the name must agree too. Older versions wrote no name.
    """
    return job_id is not None and owner.get("job_id") == job_id and owner.get("job_name") in (None, name)


def is_lost(attempt: Attempt, launcher: Process | None) -> bool:
    """Return whether the process of an attempt without a recorded end seems to have ended.

    A process on another host counts as ended if it wrote nothing for 3 minutes. This compares wall-clock times once,
    without waiting, so it is less certain than the check in `claim_attempt`.

    Args:
        attempt: the newest attempt of its fold.
        launcher: the process that was to start it, used if the attempt has not recorded its own process.
    """
    owner = process_in(read_hint(attempt.job))
    signs = (read_hint(attempt.state).get("time", 0.0), attempt.path.stat().st_mtime)
    return is_gone(owner, signs) or (owner is None and launcher is not None and launcher.is_dead())


def is_gone(owner: Process | None, signs: Iterable[float]) -> bool:
    """Return whether a process has ended: on this host by its pid, on any other host by the age of its last writes.

    Args:
        owner: the process; None if unknown.
        signs: times of its last writes, in seconds since the epoch, by its own clock and that of the file system.
    """
    if owner is not None and owner.is_of_this_host():
        return owner.is_dead()
    return all(abs(time.time() - moment) >= SILENCE_S for moment in signs)


class Heart:
    """Rewrites `state.json` of an attempt from a thread, and tells whether a higher attempt has taken over."""

    def __init__(self, fold: Fold, attempt: Attempt, clock: StartClock | None = None) -> None:
        self._fold, self._attempt, self._clock = fold, attempt, clock or StartClock()
        self._state: dict[str, Any] = {"status": "starting", "reason": None}
        self._beats = 0
        self._lock = threading.Lock()
        self._news, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        """Write the first state and start the thread."""
        self._write()
        self._thread.start()

    def update(self, **state: Any) -> None:
        """Merge `state` into the state that the thread writes within a second; does not wait for the disk."""
        with self._lock:
            self._state.update(state)
        self._news.set()

    def passed(self, phase: str, seconds: float | None = None) -> None:
        """Add the end of a phase of the start to what is written next; see `StartClock.passed`."""
        # without a write of its own, which would delay the next one, that training runs, by a second
        with self._lock:
            self._state["start_s"] = self._clock.passed(phase, seconds)

    def stop(self, **state: Any) -> None:
        """End the thread and write the last state."""
        self._end.set()
        self._news.set()
        self._thread.join()
        self.update(**state)
        self._write()

    def superseded(self) -> bool:
        """Return whether a higher attempt exists, which trains the fold instead of this one."""
        return self._fold.attempts()[-1].number > self._attempt.number

    def _run(self) -> None:
        while not self._end.is_set():
            self._news.wait(BEAT_S)
            self._news.clear()
            try:
                self._write()
            except StorageError as error:  # a full disk must not end the training, which can continue without this file
                log.warning("heartbeat: %s", error)
            self._end.wait(_NEWS_S)

    def _write(self) -> None:
        with self._lock:
            self._beats += 1
            content = to_json(self._state | {"beat": self._beats, "time": time.time()})
        write_atomic(self._attempt.state, content)


def _await_end(fold: Fold, attempt: Attempt, job: JobContext, keep_waiting: Callable[[], bool]) -> None:
    run, key = fold.run.typed, fold.key
    seen, since = _state_bytes(attempt), time.monotonic()
    while not _is_over(attempt, job):
        if time.monotonic() - since >= SILENCE_S:
            log.warning("attempt %d wrote nothing for %.0f s: taking over its fold", attempt.number, SILENCE_S)
            return
        now = _state_bytes(attempt)
        if now != seen:
            owner = read_hint(attempt.job)
            raise RunError(
                f"expected a fold that no process trains: fold {key} is being trained by attempt {attempt.number} "
                f"(host {owner.get('host')}, process {owner.get('pid')}, job {owner.get('job_id')}); "
                f"wait for it, or end it with `contrails cancel {run} --fold {key}`"
            )
        if not keep_waiting():
            raise RunError(
                f"fold {key} was stopped while it waited for attempt {attempt.number} to end; continue with "
                f"`contrails resume {run}`"
            )
        time.sleep(0.5)


def _is_over(attempt: Attempt, job: JobContext) -> bool:
    state, owner = read_hint(attempt.state), read_hint(attempt.job)
    if state.get("status") in OVER:
        return True
    if is_made_by(owner, job.job_id, job.job_name) and job.restart_count > owner.get("restart_count", 0):
        return True  # a requeued job has the same id, and the scheduler ends the old start before the new one
    if owner.get("job_name") is not None and owner["job_name"] in job.ended_jobs:
        return True
    process = process_in(owner)
    return process is not None and process.is_dead()


def _state_bytes(attempt: Attempt) -> bytes:
    try:
        return attempt.state.read_bytes()
    except FileNotFoundError:
        return b""


def _this_process() -> dict[str, Any]:
    libraries = ("torch", "segmentation-models-pytorch", "timm", "numpy", "h5py")
    return process_of(os.getpid()).to_json() | {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cpu": _of_cpu("model name") or platform.processor(),
        "simd": _simd(),
        "python": platform.python_version(),
        "versions": {library: version(library) for library in libraries},
    }


def _simd() -> str:
    """Return the vector instructions of this CPU, sorted, because libraries choose their kernels by them.

    CPUs with the same model name can have different ones, particularly virtual CPUs.
    """
    flags = (_of_cpu("flags") or _of_cpu("Features")).split()  # the keys on x86 and on ARM
    return " ".join(sorted(flag for flag in flags if flag.startswith(_SIMD)))


def _of_cpu(key: str) -> str:
    """Return the value of a key of the first processor in /proc/cpuinfo, or ""."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
