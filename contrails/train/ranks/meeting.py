"""The meeting of the ranks of an attempt, before they form a group.

Rank 0 opens a port, and writes its address and a random token to `attempts/<nnn>/meeting.json`, which only the user can
read; the file is removed when all ranks are there. Each other rank proves that it knows the token, and rank 0 proves it
to them. Only then are the addresses of the group exchanged.

A process without the token, such as one of an earlier start, is not accepted as a rank. It could still connect to the
port, and read and change what the ranks tell each other: the connections of torch, gloo and NCCL are neither encrypted
nor authenticated.
"""

import hashlib
import hmac
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed

from contrails.errors import NodeError, RankError
from contrails.files import atomic_path, read_json, to_json
from contrails.runs.folder import Attempt

_PATIENCE_S = 900.0
"""Longest wait for the other ranks; a node may need minutes to import everything from a shared disk."""

_POLL_S = 0.05

Poll = Callable[[], None]

_torch: Any = distributed
"""The same module: its type hints have no stores."""


@contextmanager
def hosted(attempt: Attempt, address: str) -> Iterator["Meeting"]:
    """Open the meeting of an attempt as rank 0, at an address of this node.

    Raises:
        NodeError: this node has no such address.
    """
    try:
        listener = socket.create_server((address, 0), backlog=128)
    except OSError as error:
        raise NodeError(
            f"expected to listen at {address}, the address of this node: {error}; the same job can succeed on another "
            "node"
        ) from error
    port, token = listener.getsockname()[1], secrets.token_hex(32)
    store = _torch.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    with atomic_path(attempt.meeting) as temporary:
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.write_text(to_json({"address": address, "port": port, "token": token}), encoding="utf-8")
    try:
        yield Meeting(store, token)
    finally:
        attempt.meeting.unlink(missing_ok=True)


def invited(attempt: Attempt) -> "Meeting":
    """Connect to the meeting of an attempt as another rank.

    Raises:
        RankError: rank 0 has ended.
    """
    found = read_json(attempt.meeting)
    if found is None:
        raise RankError(
            f"rank 0 of attempt {attempt.number} has ended before this rank could join it; see its log in "
            f"{attempt.path}"
        )
    store = _torch.TCPStore(found["address"], found["port"], is_master=False, wait_for_workers=False)
    return Meeting(store, found["token"])


class Meeting:
    """A store that all ranks can reach, and the token that they have in common."""

    def __init__(self, store: Any, token: str) -> None:
        self._store, self._token = store, token

    def gather(self, number: int, count: int, poll: Poll) -> Any:
        """Wait until all ranks are there, and return the store by which they form a group; `poll` may raise to stop.

        Raises:
            RankError: a rank does not come, or does not know the token.
        """
        others, first = [str(rank) for rank in range(1, count)], "0"
        if number:
            self._store.set(str(number), self._proof(str(number)))
            self._require(first, poll)
        else:
            for other in others:
                self._require(other, poll)
            self._store.set(first, self._proof(first))
        return _torch.PrefixStore("group", self._store)

    def _require(self, rank: str, poll: Poll) -> None:
        end = time.monotonic() + _PATIENCE_S
        while not self._store.check([rank]):
            poll()
            if time.monotonic() > end:
                raise RankError(
                    f"expected rank {rank} within {_PATIENCE_S / 60:.0f} minutes, it did not come; see the logs of the "
                    "attempt, and whether the nodes can reach each other on any port"
                )
            time.sleep(_POLL_S)
        if not hmac.compare_digest(self._store.get(rank).decode("ascii", "replace"), self._proof(rank)):
            raise RankError(f"rank {rank}: expected a process that knows the token of this attempt, found another one")

    def _proof(self, what: str) -> str:
        return hmac.new(self._token.encode(), what.encode(), hashlib.sha256).hexdigest()
