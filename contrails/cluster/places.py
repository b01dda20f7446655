"""Places: how many folds train at once on this machine, over all runs below one root.

A place is a lock on a file. It belongs to whoever has the descriptor, children that inherited it included, and the
kernel frees it when the last of them has ended, however they ended.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from contrails.files import storage

_RETRY_S = 0.5


def take_places(folder: Path, num_places: int, wanted: int, given_up: Callable[[], bool]) -> dict[int, int]:
    """Wait until `wanted` of the machine's `num_places` are free at the same moment, and take them.

    Returns:
        The descriptor that holds each place, by the place's number; none if it was given up meanwhile.
    """
    assert 1 <= wanted <= num_places
    with storage(folder, "create"):
        folder.mkdir(mode=0o700, exist_ok=True)
    while (places := _try_places(folder, num_places, wanted)) is None:
        if given_up():
            return {}
        time.sleep(_RETRY_S)
    return places


def _try_places(folder: Path, num_places: int, wanted: int) -> dict[int, int] | None:
    """Take all or none: two jobs that each held half would wait for each other for ever."""
    places: dict[int, int] = {}
    for number in range(num_places):
        descriptor = _lock(folder / f"{socket.gethostname()}-{number}.lock")
        if descriptor is not None:
            places[number] = descriptor
        if len(places) == wanted:
            return places
        # giving up at once leaves the others to whoever was faster, who then gets them all
        if len(places) + num_places - number - 1 < wanted:
            break
    for descriptor in places.values():
        os.close(descriptor)
    return None


def _lock(path: Path) -> int | None:
    with storage(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
