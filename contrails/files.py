"""File operations that leave a complete file or none: atomic writes, exclusive creation, digests, JSON, JSON lines.

A file is written under a temporary name in the same folder, fsynced, renamed to its final name, and the folder is
fsynced. Every OSError of a write becomes a `StorageError` that names the path.
"""

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from contrails.errors import RecipeError, StorageError

LONGEST_NAME = 200
"""Bytes of the longest name: file systems allow 255, and temporary names and suffixes need the rest."""

_LOOK = {
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP): "check the path",
    (errno.EACCES, errno.EPERM, errno.EROFS): "check the permissions of {}",
}
_LOOK_AT_ALL = "check the free space, your quota and the permissions of {}"
"""What to do next after an error of the operating system, by its errno."""

_SHOWN = 120
_INCOMPLETE = re.compile(r"\.(.+)\.[0-9]+-[0-9a-f]{8}\.tmp")
"""Matches the name of a temporary file; its group is the final name, which errors show."""

_BLOCK = 1 << 20
_COPY_BLOCK = 8 << 20
_TAIL = 1 << 16
_KINDS: Mapping[str, type | tuple[type, ...]] = (
    dict.fromkeys(("step", "num_steps", "epoch", "num_epochs", "attempt", "start", "pid", "restart_count"), int)
    | {"code": (int, str)}  # the exit code of a command, or the digest of the code of an attempt
    | dict.fromkeys(("time", "seconds_per_step", "end", "best_dice", "pid_uptime", "memory_gb"), (int, float))
    | dict.fromkeys(("status", "reason", "cause", "host", "boot_id", "node", "started", "event", "name"), str)
    | dict.fromkeys(("job_id", "job_name", "error", "user", "created", "text"), str)
    | dict.fromkeys(("exclude", "after"), list)
    | dict.fromkeys(("folds", "command"), (list, str))
    | dict.fromkeys(("process", "versions", "weights", "start_s"), dict)
)
"""The type of each name that the small JSON files of a run use; a name has the same type in all of them."""


@contextmanager
def storage(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an OSError of the body into a StorageError that names `path`, and the file that failed if it is another.

    To read or write, `path` must be a file or a folder: opening a pipe would wait for its other end, and a device
    cannot be replaced by a file.
    """
    try:
        if doing in ("read", "write"):
            _require_file_or_folder(path)
        yield
    except OSError as error:
        raise refused(error, path, doing) from error


def _require_file_or_folder(path: Path) -> None:
    """Raise an OSError if `path` is a pipe, a socket or a device; a missing path is reported when it is opened."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError("it is a pipe, a socket or a device, where a file is expected")


def refused(error: OSError, path: Path, doing: str = "use") -> StorageError:
    """Return the StorageError for an OSError about `path`."""
    reason = reason_of(error)
    if match := _INCOMPLETE.fullmatch(path.name):
        path = path.with_name(match[1])
    if reason == os.strerror(errno.ENAMETOOLONG):
        return StorageError(
            f"cannot {doing} {str(path)[:_SHOWN]}...: {reason}; give a name of at most {LONGEST_NAME} bytes"
        )
    culprit, said = path, reason
    if isinstance(error.filename, str) and path.parent not in Path(error.filename).parents:
        culprit, said = Path(error.filename), f"{error.filename}: {reason}"
    folder = culprit if os.path.isdir(culprit) else culprit.parent  # noqa: PTH112 - Path.is_dir raises for bad paths
    look = next((look for numbers, look in _LOOK.items() if error.errno in numbers), _LOOK_AT_ALL).format(folder)
    return StorageError(f"cannot {doing} {path}: {said}; {look}, then run the same command again")


def reason_of(error: OSError) -> str:
    """Return the operating system's reason in one line, also from an error of copytree, HDF5 or safetensors."""
    if isinstance(error, shutil.Error):  # copytree collects (source, target, reason) of each file
        text = str(error.args[0][0][-1]) if isinstance(error.args[0], list) else str(error)
    else:
        text = error.strerror or str(error)
    number = re.search(r"(?:errno|os error) (?:= )?([0-9]+)", text, re.IGNORECASE)
    return os.strerror(int(number[1])) if number else " ".join(text.split())


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; when the body succeeds, the file is fsynced and renamed to `path`.

    When the body fails, the temporary file is removed and `path` is as it was.
    """
    with storage(path):
        temporary = _beside(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            fsync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; when the body succeeds, it is renamed to `path`.

    When the body fails, the temporary folder is removed. The body fsyncs the files inside where that matters.
    """
    with storage(path):
        temporary = _beside(path)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            fsync(temporary)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync(path.parent)


def _beside(path: Path) -> Path:
    """Return a temporary name beside `path`."""
    if not path.name:  # the current folder or the root
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed writers of `path`; the caller must be its only writer."""
    with storage(path, "remove what a killed process left of"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*-????????.tmp*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def create_exclusive(path: Path, content: bytes | str) -> bool:
    """Create `path` with all of its content unless it exists; return whether this call created it.

    It makes a hard link, which is atomic and exclusive on local file systems and on NFS.
    """
    with storage(path):
        temporary = _beside(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            fsync(temporary)
            _link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        fsync(path.parent)
    return True


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS repeats a request whose reply was lost, and then finds the link that it has just made (link(2))
        if temporary.stat().st_nlink != 2:
            raise


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_blocks(source: BinaryIO, target: BinaryIO, poll: Callable[[], None]) -> None:
    """Copy the rest of a file; `poll` is called after every few megabytes and may raise to stop."""

    def read() -> bytes:
        with storage(Path(source.name), "read"):  # the caller reports errors of the target
            return source.read(_COPY_BLOCK)

    while block := read():
        target.write(block)
        poll()
    target.flush()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in blocks."""
    digest = hashlib.sha256()
    with storage(path, "read"), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def code_digest(package: Path) -> str:
    """Return the SHA-256 over the relative paths and contents of a package's files, sorted."""
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def to_json(value: Any) -> str:
    """Return compact JSON with sorted keys, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Read a TOML file; `kind` names it in the error, such as "a recipe"."""
    with storage(path, "read"):
        try:
            return tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise RecipeError(f"expected {kind} at {path}, found no such file; give the path of a TOML file") from error
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{path} is not TOML: {error}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if there is no such file."""
    with storage(path, "read"):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StorageError(
                f"{path} is not JSON ({error}); it was damaged outside of contrails: restore it, "
                "or remove it to have it made again"
            ) from error


def read_hint(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if the file is missing or damaged, or holds something else."""
    try:
        return typed(read_json(path))
    except StorageError:
        return {}


def typed(content: Any) -> dict[str, Any]:
    """Return the entries of a JSON object, without those whose value has another type than `_KINDS` gives the name."""
    entries = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in entries if name not in _KINDS or isinstance(value, _KINDS[name])}


def append_json_line(path: Path, row: Any, *, durable: bool = False) -> None:
    """Append one JSON line in a single write; `durable` also flushes it to the disk.

    If a crash cut the last line, a newline is added first, so that this line is not joined to it.
    """
    with storage(path), path.open("ab+") as file:
        line = to_json(row).encode() + b"\n"
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        if durable:
            os.fsync(file.fileno())
            fsync(path.parent)  # the file itself may be new


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, without lines that a crash cut short; empty if there is no file."""
    with storage(path, "read"):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def last_json_line(path: Path) -> dict[str, Any]:
    """Return the last complete row of a JSON-lines file, read from its end; empty if there is none."""
    with storage(path, "read"):
        try:
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}
