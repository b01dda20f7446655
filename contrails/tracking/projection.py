"""Metrics projected into Weights & Biases: one W&B run a fold, for all its attempts, jobs and machines.

The only module that imports wandb, always in a process of its own. The truth is the fold's `metrics.jsonl`; sent are
the rows that a snapshot covers, after the last step that was sent, which `wandb.json` in the fold's folder remembers.
"""

import logging
import netrc
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contrails.config import read_toml
from contrails.files import read_json, storage, to_json, write_atomic
from contrails.history import fold_metrics
from contrails.runs import Fold

_INIT_TIMEOUT_S = 30
_PROJECT = "contrails"

log = logging.getLogger(__name__)


def sync_fold(fold: Fold) -> int:
    """Send what is new of a fold; return the number of rows.

    Without a key the rows go into offline files below the fold's folder, for `wandb sync` later.
    """
    import wandb

    known: dict[str, Any] = read_json(fold.wandb) or {"id": secrets.token_hex(4), "step": 0}
    rows = [row for row in fold_metrics(fold) if row["step"] > known["step"]]
    if not rows:
        return 0
    with (
        _folders(fold),
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=known["id"],
            resume="allow",
            group=fold.run.name,
            job_type="train",
            name=f"fold{fold.key}",
            config=read_toml(fold.run.toml, "a run"),
            dir=str(fold.path),
            mode="online" if has_key() else "offline",
            settings=wandb.Settings(init_timeout=_INIT_TIMEOUT_S, console="off", silent=True),
        ) as run,
    ):
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        for row in rows:
            # never step=: W&B drops a row whose step is not larger than the last one
            run.log(row)
    # after finish: rows that did not leave this machine are sent again next time
    write_atomic(fold.wandb, to_json({"id": known["id"], "step": rows[-1]["step"]}))
    return len(rows)


def follow_fold(fold: Fold, ended: Callable[[], bool], interval_s: float = 30.0) -> Iterator[int]:
    """Send what is new every `interval_s` until `ended()`; yield the number of rows each time."""
    while True:
        over = ended()
        yield sync_fold(fold)
        if over:
            return
        time.sleep(interval_s)


def has_key() -> bool:
    """Return whether this user has a W&B key, without importing wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


@contextmanager
def _folders(fold: Fold) -> Iterator[None]:
    """Keep all that wandb writes below the fold's folder: home folders of clusters have small quotas."""
    names = ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_CONFIG_DIR")
    before = {name: os.environ.get(name) for name in names}
    folder: Path = fold.path / "wandb"
    with storage(folder, "create"):
        folder.mkdir(exist_ok=True)
    os.environ.update(dict.fromkeys(names, str(folder)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
