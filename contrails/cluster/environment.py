"""The environment of a job, unpacked once on its node from the archive that `envs/pack` made.

A start opens thousands of files, which takes long on a shared disk. The archive is one file. The first job on a node
unpacks it in the site's `stage_dir`, other jobs use the same folder, and what a job starts runs from there. A node
without room for it, or without the commands, runs the environment on the shared disk instead.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from contrails.errors import RecipeError, StorageError
from contrails.files import atomic_folder, read_hint, remove_leftovers, sha256, storage, to_json
from contrails.locks import locked
from contrails.progress import tell

_ARCHIVE, _FOLDER = "CONTRAILS_ENVIRONMENT_ARCHIVE", "CONTRAILS_ENVIRONMENT_FOLDER"
_ABOUT = ".contrails.json"
"""File in an unpacked environment with the number and size of its files, to notice what a clean-up has removed."""
_LIBRARIES = "LD_LIBRARY_PATH"
_SHARED = "CONTRAILS_SHARED_PYTHON"


@dataclass(frozen=True)
class Archive:
    """An archive of `envs/pack`; the file beside it says its SHA-256, and its size in bytes when it is unpacked."""

    path: Path
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Interpreter:
    """The Python of a job's processes, and their environment variables; `seconds` is how long unpacking took."""

    python: str
    variables: dict[str, str]
    seconds: float | None = None


def read_archive(path: Path) -> Archive:
    """Return an archive of `envs/pack`, from the file beside it.

    Raises:
        RecipeError: the archive or that file is missing.
    """
    about = read_hint(path.with_name(f"{path.name}.json"))
    digest, num_bytes = about.get("sha256"), about.get("bytes")
    if not path.is_file() or not isinstance(digest, str) or not isinstance(num_bytes, int):
        raise RecipeError(
            f"environment_archive: expected an archive and its description at {path} and {path.name}.json, found "
            f"{'no description' if path.is_file() else 'no archive'}; make both with `envs/pack {path}`"
        )
    return Archive(path, digest, num_bytes)


def archive_variables(archive: Path | None, folder: Path | None) -> dict[str, str]:
    """Return the variables by which a job finds the archive and the folder for it; empty without an archive."""
    if archive is None or folder is None:
        return {}
    return {_ARCHIVE: str(archive.absolute()), _FOLDER: str(folder)}


def local_interpreter() -> Interpreter:
    """Return the Python of the environment on this node, after unpacking it if needed; else that of this process."""
    own = Interpreter(sys.executable, dict(os.environ))
    archive, folder = os.environ.get(_ARCHIVE), os.path.expandvars(os.environ.get(_FOLDER, ""))
    if archive is None or "$" in folder:  # of a scratch folder that this node lacks, the training says what to do
        return own
    began = time.monotonic()
    try:
        prefix = unpack(read_archive(Path(archive)), Path(folder))
    except (StorageError, RecipeError) as error:
        tell(f"warning: the environment was not unpacked on this node, so the slower shared one is used: {error}")
        return own
    return Interpreter(str(_python(prefix)), _variables(prefix), time.monotonic() - began)


def shared_python() -> str:
    """Return the Python that all nodes have, also in a process that runs an unpacked one."""
    return os.environ.get(_SHARED, sys.executable)


def unpack(archive: Archive, folder: Path) -> Path:
    """Return the folder of the unpacked environment in `folder`; one process unpacks it, others wait.

    It gets its name, which holds the digest of the archive, when it is complete and its Python has run. One from which
    a clean-up has removed files is replaced.

    Raises:
        StorageError: there is no room, the archive is damaged, or the node cannot unpack it or run its Python.
    """
    # a folder for scratch may be shared by users, and what is there runs as this one
    target = folder / f"environment-{os.getuid()}-{archive.sha256[:16]}"
    with storage(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{target.name}.lock"):
        if not _is_complete(target):
            _unpack(archive, target)
    return target


def _is_complete(target: Path) -> bool:
    about = read_hint(target / _ABOUT)
    return bool(about) and target.stat().st_uid == os.getuid() and about == _measured(target)


def _unpack(archive: Archive, target: Path) -> None:
    remove_leftovers(target)
    free = shutil.disk_usage(target.parent).free
    if free < archive.num_bytes:
        raise StorageError(
            f"expected {archive.num_bytes / 1e9:.1f} GB of free space in {target.parent} for {archive.path.name}, "
            f"found {free / 1e9:.1f} GB; request more scratch space in the site profile"
        )
    tell(f"unpacking {archive.path} as {target}")
    old = target.with_name(f".{target.name}.{os.getpid()}-replaced.tmp")  # a leftover, if this process is killed
    with atomic_folder(target) as temporary:
        _extract(archive, temporary)
        _require_runs(temporary)
        (temporary / _ABOUT).write_text(to_json(_measured(temporary)))
        if target.exists():
            target.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _extract(archive: Archive, folder: Path) -> None:
    command = ["tar", "--extract", "--no-same-owner", f"--file={archive.path}", f"--directory={folder}"]
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256, archive.path)  # at the same time, so that the file is read from the disk once
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise StorageError(f"cannot unpack {archive.path}: this node has no command tar; ask support") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        free = shutil.disk_usage(folder).free / 1e9  # tar does not always say that the disk is full
        raise StorageError(f"cannot unpack {archive.path} in {folder.parent}, where {free:.1f} GB are free: {said}")
    if digest.result() != archive.sha256:
        raise StorageError(f"{archive.path} is not what `envs/pack` wrote (another SHA-256); pack it again")


def _require_runs(prefix: Path) -> None:
    """Check that the Python of an unpacked environment runs here and regards its folder as its own.

    Raises:
        StorageError: it does not.
    """
    command = [str(_python(prefix)), "-ISB", "-c", "import sys; print(sys.prefix)"]
    try:
        done = subprocess.run(command, env=_variables(prefix), capture_output=True, text=True, check=False)
    except OSError as error:
        raise StorageError(f"cannot run {_python(prefix)} on this node: {error.strerror}") from error
    if done.returncode or Path(done.stdout.strip()).resolve() != prefix.resolve():
        said = (done.stderr.strip().splitlines() or [f"it belongs to {done.stdout.strip()}"])[-1]
        raise StorageError(f"cannot run {_python(prefix)} on this node: {said}")


def _python(prefix: Path) -> Path:
    return prefix / "bin" / "python"


def _variables(prefix: Path, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables of processes that run the unpacked Python."""
    variables = dict(inherited) | {_SHARED: shared_python()}
    if not any((prefix / "lib").glob("libpython*")):
        return variables
    # the interpreter names the folder of its library as it was where it was built
    return variables | {_LIBRARIES: ":".join(filter(None, (str(prefix / "lib"), inherited.get(_LIBRARIES))))}


def _measured(prefix: Path) -> dict[str, int]:
    """Return the number and the bytes of the files, without what Python writes there itself while it runs."""
    count = size = 0
    for folder, folders, names in os.walk(prefix):
        folders[:] = [name for name in folders if name != "__pycache__"]
        paths = [os.path.join(folder, name) for name in names if name != _ABOUT]  # noqa: PTH118 - tens of thousands
        count, size = count + len(paths), size + sum(os.lstat(path).st_size for path in paths)
    return {"files": count, "size": size}
