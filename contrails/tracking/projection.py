"""Metrics and aggregations projected into Weights & Biases: one W&B run a fold, whatever it went through.

The truth is the run folder. `wandb.json` in the fold's folder, or in that of an aggregation, keeps the W&B id and what
was projected last. wandb itself works in a process of its own for each projection (`contrails.tracking.worker`) that is
given a time: whatever becomes of it, a network or wandb-core included, ends as one error here.
"""

import json
import netrc
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from contrails.errors import TrackingError
from contrails.files import read_json, sha256, storage, to_json, write_atomic
from contrails.history import fold_metrics
from contrails.locks import sole_writer
from contrails.runs import Fold, Run

_DEADLINE_S = 600.0
_INTERVAL_S = 30.0
_FOLDERS = ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_CONFIG_DIR")


def sync_fold(fold: Fold, *, rebuild: bool = False) -> int:
    """Project what is new of a fold; return the number of rows that it has now, 0 if nothing was new.

    Online, rows go on after those that W&B holds. Offline, all of them are written anew as one folder, which takes the
    place of the one before, so that what `wandb sync` sends is whole.

    Args:
        fold: what is projected: rows of metrics that a snapshot covers.
        rebuild: begin a W&B run of its own, where the old one is beyond repair or was deleted.

    Raises:
        TrackingError: W&B refuses, or does not answer in time.
    """
    rows = fold_metrics(fold)
    stamp = [len(rows), fold.done.exists(), has_key()]
    return len(rows) if rows and _project(fold.path, stamp, [str(fold.run.path), fold.key], rebuild=rebuild) else 0


def sync_aggregate(run: Run, folder: Path, *, rebuild: bool = False) -> bool:
    """Project an aggregation of a run, as a W&B run of its own; return whether it was new.

    Raises:
        TrackingError: as `sync_fold`.
    """
    stamp = [sha256(folder / "ensemble.json"), has_key()]
    return _project(folder, stamp, [str(run.path), "--aggregate", folder.name], rebuild=rebuild)


def follow(
    folds: Sequence[Fold], ended: Callable[[Fold], bool], interval_s: float = _INTERVAL_S
) -> Iterator[tuple[Fold, int | TrackingError]]:
    """Project what is new of folds every `interval_s` until all have ended; yield the outcome of each."""
    while True:
        over, since = all(ended(fold) for fold in folds), time.monotonic()
        for fold in folds:
            try:
                yield fold, sync_fold(fold)
            except TrackingError as error:
                yield fold, error
        if over:
            return
        # offline files are written anew each time: of a long training not too often
        time.sleep(max(interval_s, 10 * (time.monotonic() - since)))


def has_key() -> bool:
    """Return whether this user has a W&B key, without importing wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _project(folder: Path, stamp: Sequence[Any], arguments: list[str], *, rebuild: bool) -> bool:
    """Have a worker project what lies in `folder` unless `stamp` says that it is as it was."""
    busy = f"another contrails sync works on {folder}; wait for it, or end it"
    with sole_writer(folder / ".wandb.lock", busy):
        known = read_json(folder / "wandb.json") or {}
        if known.get("stamp") == list(stamp) and not rebuild:
            return False
        if rebuild or "id" not in known:
            known = {"id": secrets.token_hex(4)}
            write_atomic(folder / "wandb.json", to_json(known))  # a kill from here on finds the same id
        answer = _work(folder, [*arguments, known["id"]])
        write_atomic(folder / "wandb.json", to_json({"id": known["id"], "stamp": list(stamp)} | answer))
        _remove_others(folder / "wandb", answer.get("offline"))
    return True


def _work(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Run a worker to its end and return its answer."""
    # below the fold's folder: home folders of clusters have small quotas
    files = folder / "wandb"
    with storage(files, "create"):
        files.mkdir(exist_ok=True)
    environment = (
        {"WANDB_INIT_TIMEOUT": "60"}
        | dict(os.environ)
        | dict.fromkeys(_FOLDERS, str(files))
        | {"WANDB_DIR": str(folder)}
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "contrails.tracking.worker", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=_DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise TrackingError(
            f"W&B took longer than {_DEADLINE_S:.0f} s; check the network, the same command again goes on"
        ) from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        lines = [line for line in err.splitlines() if line.strip()]
        raise TrackingError(
            f"W&B: {lines[-1] if lines else f'its process ended with {process.returncode}'}; nothing is lost: mend it "
            "(key, network), or `unset WANDB_API_KEY` for offline files, then the same command again goes on"
        )
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def _remove_others(files: Path, kept: str | None) -> None:
    """Remove the offline folders that a newer one has replaced, or whose writing was killed."""
    for path in files.glob("offline-run-*"):
        if kept is not None and path.name != kept:
            shutil.rmtree(path, ignore_errors=True)
