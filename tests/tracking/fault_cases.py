"""What can be wrong with a W&B server, each with what the user is told: for tests, and for `scripts/bench sync`."""

from collections.abc import Callable
from dataclasses import dataclass

from wandb_server import WandbServer

_MINUTE_S = 60.0


@dataclass(frozen=True)
class FaultCase:
    """`begin` breaks the server; `told` is a pattern of the error, None where the rows arrive all the same."""

    name: str
    begin: Callable[[WandbServer], object]
    told: str | None
    held: int | None = None
    """How many rows the server holds after it; None where that is open."""


def _all(**of: object) -> Callable[[WandbServer], object]:
    return lambda server: server.fault(**of)


def _late(server: WandbServer) -> None:
    server.date = "Mon, 01 Jan 2001 00:00:00 GMT"


_REFUSED = "of 6 rows W&B holds 0; its answer to the others: {} to file_stream"

QUICK = [
    FaultCase("401 to all", _all(status=401), r"refuses the key from WANDB_API_KEY \(401\); make a new one with", 0),
    FaultCase("403 to all", _all(status=403), r"refuses the key from WANDB_API_KEY \(403\)", 0),
    FaultCase(
        "404 of the entity",
        _all(kind="UpsertBucket", status=404, message="entity nobody not found"),
        "entity nobody not found",
        0,
    ),
    FaultCase("401 in the stream", _all(kind="file_stream", status=401), _REFUSED.format(401), 0),
    FaultCase("403 to an upload", _all(kind="upload", status=403), "does not hold the artifact", 6),
    FaultCase("429 with Retry-After", _all(status=429, headers={"Retry-After": "1"}, times=2), None, 6),
    FaultCase(
        "429 in the stream", _all(kind="file_stream", status=429, headers={"Retry-After": "1"}, times=1), None, 6
    ),
    FaultCase("500 twice", _all(kind="file_stream", status=500, times=1), None, 6),
    FaultCase("cut before it was taken", _all(kind="file_stream", cut=True, times=1), None, 6),
    FaultCase("cut after it was taken", _all(kind="file_stream", cut=True, taken=True, times=1), None, 6),
    FaultCase("refused connections", lambda server: server.stop(), "does not answer .*; check the network", 0),
    FaultCase("answers after 0.3 s", _all(delay_s=0.3), None, 6),
    FaultCase("a clock 25 years late", _late, None, 6),
]

LONG = [
    FaultCase("403 in the stream", _all(kind="file_stream", status=403), _REFUSED.format(403), 0),
    FaultCase("409 in the stream", _all(kind="file_stream", status=409), _REFUSED.format(409), 0),
    FaultCase(
        "quota exceeded",
        _all(kind="file_stream", status=402, message="storage quota exceeded"),
        _REFUSED.format(402),
        0,
    ),
    FaultCase("409 to the run, for ever", _all(kind="UpsertBucket", status=409), "HTTP 409", 0),
    FaultCase("500 for a minute", _all(status=500, seconds=_MINUTE_S), None),
    FaultCase("500 in the stream, a minute", _all(kind="file_stream", status=500, seconds=_MINUTE_S), None, 6),
    FaultCase("503 to uploads, twice", _all(kind="upload", status=503, times=2), None, 6),
    FaultCase("answers after 3 s", _all(delay_s=3.0), None, 6),
    FaultCase("every third answer cut", _all(cut=True, every=3), None),
]


def end(server: WandbServer) -> None:
    """Mend the server."""
    server.faults.clear()
    server.date = ""
    server.stop()
    server.start()
