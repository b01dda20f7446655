"""Names of jobs: they say run, purpose and link in 15 characters, so that a lost job can be found by its name alone."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from contrails.runs.folder import ALL


def prefix(run_path: Path) -> str:
    """Return what the names of all jobs of a run begin with."""
    return f"ct{hashlib.sha256(str(run_path).encode()).hexdigest()[:6]}"


def job_name(run_path: Path, what: str, taken: Iterable[str]) -> str:
    """Return the name of the next job: `what` is a purpose and a number, and the link counts the jobs of that name.

    >>> job_name(Path("/runs/first"), "f0", [])
    'ct93f0b8f0a1'
    """
    stem = f"{prefix(run_path)}{what}a"
    links = [int(name.removeprefix(stem)) for name in taken if name.startswith(stem)]
    return f"{stem}{max(links, default=0) + 1}"


def fold_name(folds: Iterable[str]) -> str:
    """Return what a job of these folds is called: by the lowest of them, A for the fold of all records.

    >>> fold_name(["2", "1", "all"])
    'f1'
    """
    numbers = [int(fold) for fold in folds if fold != ALL]
    return f"f{min(numbers)}" if numbers else "fA"
