"""The frozen copy of the package, which every attempt of a run imports.

Editing the clone or installing another version does not change an existing run.
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
    """Copy the running package into the run's `code/` unless it exists; return its SHA-256.

    With `before`, an existing copy is renamed to that path once the new one is complete.
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
    """Return the SHA-256 of the imported package, computed once, so that later edits of its files do not change it."""
    return code_digest(package_folder())


def package_folder() -> Path:
    """Return the folder of the imported package."""
    assert contrails.__file__ is not None
    return Path(contrails.__file__).resolve().parent


ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(512 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""Settings of glibc's malloc that keep freed memory in the process for the next step. Otherwise it is returned to the
system, and the page faults of getting it again take a third of the time of making batches on a CPU."""


def job_environment(run: Run, num_threads: int) -> dict[str, str]:
    """Return the environment of a job: frozen code first on the import path, threads, deterministic kernels."""
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
        RunError: it imports other code, or the code was changed.
    """
    if package_folder() != (run.code / "contrails").resolve():
        raise RunError(
            f"expected to run the code frozen in {run.code}, found {package_folder()} on the import path; continue "
            f"with `contrails resume {run.typed}`"
        )
    require_unchanged(run, config)


def require_unchanged(run: Run, config: "RunConfig") -> None:
    """Check that the code in a run's folder is unchanged since it was frozen.

    Raises:
        RunError: it was changed.
    """
    found = code_digest(run.code / "contrails")
    if found != config.code:
        raise RunError(
            f"the code frozen in {run.code} was changed (expected {config.code[:16]}, found {found[:16]}); "
            "submit under a new --name to run other code"
        )
