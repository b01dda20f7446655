"""The frozen copy of the package that every attempt of a run imports.

Editing the clone, or installing another version, changes nothing in a run that exists.
"""

import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import contrails
from contrails.errors import RunError
from contrails.files import atomic_folder, code_digest
from contrails.runs.folder import Run

if TYPE_CHECKING:
    from contrails.runs.config import RunConfig


def freeze_code(run: Run, *, before: Path | None = None) -> str:
    """Copy the package that runs now into the run's `code/`, unless it is there; return its SHA-256.

    With `before`, what is there is kept under that name once the copy is complete.
    """
    source, target = package_folder(), run.code / "contrails"
    if before is not None or not target.exists():
        with atomic_folder(run.code) as temporary:
            shutil.copytree(source, temporary / "contrails", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            if before is not None and run.code.exists():
                run.code.rename(before)
    return code_digest(target)


@cache
def imported_code() -> str:
    """Return the SHA-256 of the package as it is imported now, which no edit of its files changes any more."""
    return code_digest(package_folder())


def package_folder() -> Path:
    """Return the folder of the package as it is imported now."""
    assert contrails.__file__ is not None
    return Path(contrails.__file__).resolve().parent


ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(512 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""Memory that a step frees stays with the process for the next one: glibc would give it back, and to get it again costs
a page fault per 4 KiB, on a CPU a third of the time of making batches."""


def job_environment(run: Run, num_threads: int) -> dict[str, str]:
    """Return what the environment of a job has of its own: the frozen code first, threads, repeatable kernels."""
    return ALLOCATOR | {
        "PYTHONPATH": str(run.code),
        # keeps the working folder, which may be a clone, off the import path
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(num_threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CONTRAILS_RUNS": str(run.path.parent),
    }


def require_frozen(run: Run, config: "RunConfig") -> None:
    """Check that this process imports the run's own code, unchanged.

    Raises:
        RunError: it does not.
    """
    if package_folder() != (run.code / "contrails").resolve():
        raise RunError(f"expected to run the code frozen in {run.code}, found {package_folder()} on the import path")
    require_unchanged(run, config)


def require_unchanged(run: Run, config: "RunConfig") -> None:
    """Check that the code in a run's folder is what was frozen there.

    Raises:
        RunError: it is not.
    """
    found = code_digest(run.code / "contrails")
    if found != config.code:
        raise RunError(
            f"the code frozen in {run.code} was changed (expected {config.code[:16]}, found {found[:16]}); "
            "submit under a new --name to run other code"
        )
