"""`contrails sync` killed at a chosen stage: itself, or the process that talks to W&B, or wandb-core.

As a script, `killed.py STAGE sync RUN` or `killed.py STAGE worker` is one of the two processes.
"""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contrails.runs.folder import Fold

WORKER_STAGES = ["before W&B", "first row", "rows", "finish", "finished", "answer", "wandb-core"]
SYNC_STAGES = ["planned", "asked", "asked, slow worker", "answered", "tidying"]
SOME_STAGES = ["rows", "finished", "wandb-core", "asked, slow worker", "answered"]


def sync_killed(fold: Fold, stage: str) -> "subprocess.CompletedProcess[str]":
    """Run `contrails sync` for a fold, killed at a stage."""
    command = [sys.executable, __file__, stage, "sync", str(fold.run.path), "--fold", fold.key]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_when_open(*_: Any) -> None:
    """Die when the worker has opened the W&B run."""
    while not list(Path(sys.argv[2]).glob("folds/*/wandb/run-*")):
        time.sleep(0.05)
    die()


def after(count: int, action: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, whose call number `count` is `action` instead."""
    calls = list[int]()

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return (action if len(calls) == count else call)(*arguments, **named)

    return counted


def then_die(call: Callable[..., Any]) -> Callable[..., Any]:
    def dying(*arguments: Any, **named: Any) -> None:
        call(*arguments, **named)
        die()

    return dying


def late(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call` as a busy machine may make it: seconds after another `contrails sync` has started its worker."""

    def delayed(*arguments: Any, **named: Any) -> None:
        since = time.monotonic()
        while not _has_successor() and time.monotonic() - since < 120:
            time.sleep(0.1)
        time.sleep(6)
        call(*arguments, **named)

    return delayed


def _has_successor() -> bool:
    import psutil

    lines = [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]
    return any("contrails.tracking.worker" in line for line in lines)


def kill_core(*_: Any) -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        if child.name().startswith("wandb-core"):
            child.kill()
            while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)


def in_worker(stage: str) -> None:
    import wandb

    from contrails.tracking import worker
    from contrails.tracking.wandb_sink import WandbSink

    if stage == "before W&B":
        wandb.init = die
    elif stage == "first row":
        wandb.Run.log = die
    elif stage == "rows":
        wandb.Run.log = after(4, die, wandb.Run.log)
    elif stage == "finish":
        wandb.Run.finish = die
    elif stage == "finished":
        wandb.Run.finish = then_die(wandb.Run.finish)
    elif stage == "answer":
        WandbSink.held = die  # type: ignore[method-assign,assignment]
    elif stage == "asked, slow worker":
        wandb.Run.finish = late(wandb.Run.finish)
    elif stage == "wandb-core":
        wandb.Run.log = after(3, kill_core, wandb.Run.log)
    worker.main()


def in_sync(stage: str, arguments: list[str]) -> None:
    from contrails.tracking import plan, process, projection

    process._COMMAND = [sys.executable, __file__, stage, "worker"]
    if stage == "planned":
        plan.Plan.begin = die  # type: ignore[method-assign]
    elif stage == "asked":
        process.Worker._line = die  # type: ignore[method-assign,assignment]
    elif stage == "asked, slow worker":
        process.Worker._line = die_when_open  # type: ignore[method-assign,assignment]
    elif stage == "answered":
        plan.Plan.finish = die  # type: ignore[method-assign]
    elif stage == "tidying":
        projection._remove_others = die
    sys.argv = ["contrails", "sync", *arguments]
    runpy.run_module("contrails", run_name="__main__")


if __name__ == "__main__":
    _, stage, which, *arguments = sys.argv
    in_worker(stage) if which == "worker" else in_sync(stage, arguments)
