"""Advisory file locks; the kernel releases them when the process ends, however it ends."""

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contrails.errors import RunError
from contrails.files import storage

_INTERVAL_S = 0.1
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of flock on Lustre mounted without `flock`, NFS without a lock daemon, and some FUSE file systems."""

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of `path`, which is created if missing; go on without a lock where the file system has none.

    `poll` is called repeatedly while another process holds the lock, and may raise to stop waiting. An OSError of the
    body is not reported as one about `path`.
    """
    with storage(path):
        file = path.open("a")
    with file:
        while not try_lock(file.fileno(), path):
            poll()
            time.sleep(_INTERVAL_S)
        yield


@contextmanager
def sole_writer(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of `path`, created with its folder if missing; go on unlocked where the file system has no locks.

    A file with the suffix `.lock` has no content and is removed at the end; any other file, such as a journal, stays.

    Raises:
        RunError: another process holds the lock; the message is `busy`.
    """
    with contextlib.ExitStack() as files:
        while True:
            with storage(path, "create"):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = files.enter_context(path.open("a"))
            if not try_lock(file.fileno(), path):
                raise RunError(busy)
            if _is_called(path, file.fileno()):
                break  # otherwise the previous holder has removed the file after it was opened here
        try:
            yield
        finally:
            if path.suffix == ".lock":
                with contextlib.suppress(OSError):  # a leftover file does no harm
                    path.unlink()


def _is_called(path: Path, descriptor: int) -> bool:
    """Return whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def try_lock(descriptor: int, path: Path) -> bool:
    """Take the lock of an open file; return False if another process holds it, True if there are no locks at all.

    The lock is released when the last copy of the descriptor is closed.
    """
    with storage(path, "lock"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "%s has no file locks (%s): going on without; do not start the same command twice at the same time",
                *(path.parent.resolve(), error.strerror),
            )
    return True
