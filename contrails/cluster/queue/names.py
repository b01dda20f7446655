"""Names of jobs: run, purpose and a running number in at most 15 characters, to find a lost job by its name."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from contrails.runs.folder import ALL


def prefix(run_path: Path) -> str:
    """Return the prefix of the names of all jobs of a run."""
    return f"ct{hashlib.sha256(str(run_path).encode()).hexdigest()[:6]}"


def job_name(run_path: Path, what: str, taken: Iterable[str]) -> str:
    """Return the name of the next job: the run's prefix, `what` (its purpose and number), and a running number.

    >>> job_name(Path("/runs/first"), "f0", [])
    'ct93f0b8f0a1'
    """
    stem = f"{prefix(run_path)}{what}a"
    links = [int(name.removeprefix(stem)) for name in taken if name.startswith(stem)]
    return f"{stem}{max(links, default=0) + 1}"


def fold_name(folds: Iterable[str]) -> str:
    """Return the part of a job's name for its folds: the lowest number, or A for the fold of all records.

    >>> fold_name(["2", "1", "all"])
    'f1'
    """
    numbers = [int(fold) for fold in folds if fold != ALL]
    return f"f{min(numbers)}" if numbers else "fA"
