"""What the server can be told to do wrong."""

import time
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What becomes of requests of one kind, `times` of them or for `seconds`; only each number `every` meets it.

    `kind` is a GraphQL operation, "file_stream", "upload", or "" for all. `status` answers so; `cut` closes the
    connection, after the request was taken where `taken`; `delay_s` answers late.
    """

    kind: str = ""
    status: int | None = None
    message: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    taken: bool = False
    delay_s: float = 0.0
    times: int | None = None
    every: int = 1
    seconds: float | None = None
    since: float = field(default_factory=time.monotonic)
    seen: int = 0
    met: int = 0

    def meets(self, kind: str) -> bool:
        """Return whether a request of this kind meets it, and count it."""
        over = self.seconds is not None and time.monotonic() - self.since > self.seconds
        if over or (self.times is not None and self.met >= self.times) or self.kind not in ("", kind):
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.met += 1
        return True
