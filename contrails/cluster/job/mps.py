"""NVIDIA MPS for folds that share a GPU: their kernels run side by side instead of in turns.

`sharing` starts a control daemon for the GPUs that several folds of a job train on, with pipes and logs in a private
folder. A keeper, a small process of this module, starts the daemon, and ends it when the launcher closes a pipe or
dies in any way. Without MPS, folds take turns on the GPU and end in the same bits.

From NVIDIA's documentation: the daemon numbers the GPUs that it sees anew, so daemon and folds name them by UUID.
`quit` waits for the clients, so folds that outlive a killed launcher can still save. Only memory is limited by fold.
CUDA_MPS_ACTIVE_THREAD_PERCENTAGE would change the number of multiprocessors, by which kernels divide sums: other bits.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from contrails.cluster.schedulers.devices import memory_mib, uuid_of
from contrails.errors import NodeError
from contrails.progress import tell

_CONTROL = "nvidia-cuda-mps-control"
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_PARENT = Path("/tmp")  # noqa: S108 - only for a private folder in it
"""Not TMPDIR, which can be too long: the path of a socket has at most 107 bytes."""

_RESERVED_MIB = 512
"""Memory of a GPU that driver and MPS server use themselves."""

_START_S, _SERVER_S, _QUIT_S, _KEEPER_S = 30.0, 20.0, 600.0, 20.0
"""Longest waits for an answer, for the server, for `quit` (folds that outlive the launcher save), and for a keeper."""

_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def sharing(gpus: Sequence[str | None], *, mps: bool) -> Iterator[list[dict[str, str]]]:
    """Yield the environment in which each fold uses its GPUs.

    Args:
        gpus: CUDA_VISIBLE_DEVICES of each fold, or None; two folds have the same GPUs or entirely different ones.
        mps: whether MPS runs during the body for GPUs that several folds use. It says so where it cannot be started.
    """
    found = {gpu: {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus}
    with ExitStack() as stack:
        for gpu, num_folds in Counter(gpus).items():
            if not mps or gpu is None or num_folds == 1:
                continue
            try:
                found[gpu] = stack.enter_context(_running(gpu, num_folds))
            except NodeError as error:
                tell(f"warning: no MPS is started for the {num_folds} folds on the GPU {gpu}: {error}")
        yield [found[gpu] for gpu in gpus]


@contextmanager
def _running(gpu: str, num_folds: int) -> Iterator[dict[str, str]]:
    """Run a daemon for GPUs during the body, and yield the environment of the folds that use them.

    Raises:
        NodeError: it could not be started.
    """
    if _PIPES in os.environ:
        raise NodeError(f"the job's environment sets {_PIPES}={os.environ[_PIPES]}, so that MPS is used")
    if shutil.which(_CONTROL) is None:
        raise NodeError(f"this node has no {_CONTROL}; load its module in the site profile, or remove mps = true")
    devices = [uuid_of(name) for name in gpu.split(",")]
    try:
        folder = Path(tempfile.mkdtemp(prefix="contrails-mps-", dir=_PARENT))
    except OSError as error:
        raise NodeError(f"no folder can be made in {_PARENT}: {error.strerror}") from error
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(devices), _PIPES: str(folder), _LOGS: str(folder / "log")}
    keeper = subprocess.Popen(
        [sys.executable, "-m", "contrails.cluster.job.mps"],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        answer = keeper.stdout.readline()
        if answer != "started\n":
            raise NodeError(answer.strip() or "it ended without a message")
        yield environment | _limit(devices, num_folds)
    finally:
        keeper.stdin.close()
        try:
            keeper.wait(_KEEPER_S)
        except subprocess.TimeoutExpired:  # it goes on by itself
            tell("warning: MPS has not ended yet; its keeper waits for it")
        keeper.stdout.close()


def _limit(devices: Sequence[str], num_folds: int) -> dict[str, str]:
    """Return the variable that limits a fold to an equal share of the memory; empty if the memory is unknown."""
    sizes = [memory_mib(device) for device in devices]
    shares = [f"{number}={(size - _RESERVED_MIB) // num_folds}M" for number, size in enumerate(sizes) if size]
    return {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": ",".join(shares)} if shares else {}


def main() -> None:
    """Start the daemon of the GPUs in CUDA_VISIBLE_DEVICES, print `started` or why not, and end it with the input."""
    for number in _IGNORED:  # daemon and server inherit this: a scheduler's signal reaches them as well as the folds
        signal.signal(number, signal.SIG_IGN)
    folder = Path(os.environ[_PIPES])
    try:
        problem = _start(folder)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(f"{problem or 'started'}\n")
            sys.stdout.flush()
        if not problem:
            sys.stdin.read()
    finally:
        _quit(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> str:
    """Start the daemon and its server; return why that failed, or an empty text."""
    logs, said = folder / "log", folder / "said"
    logs.mkdir()
    try:
        with said.open("w") as file:  # not a pipe, which the daemon would keep open
            done = subprocess.run(
                [_CONTROL, "-d"], stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=_START_S, check=False
            )
    except subprocess.TimeoutExpired:
        return f"`{_CONTROL} -d` gave no answer within {_START_S:.0f} s"
    if done.returncode:
        return f"`{_CONTROL} -d` ended with exit code {done.returncode}: {_last_line(said)}"
    # the daemon also starts where another process has the GPU for itself; only its server, which uses the GPU, does not
    _asked(f"start_server -uid {os.getuid()}", _START_S)
    end = time.monotonic() + _SERVER_S
    while not any(word.isdecimal() for word in (_asked("get_server_list", _START_S) or "").split()):
        if time.monotonic() > end:
            return f"its server does not start; another process may hold the GPU: {_last_line(*logs.iterdir())}"
        time.sleep(0.2)
    return ""


def _asked(command: str, seconds: float) -> str | None:
    """Return the answer of the daemon to a command, empty if there is no daemon; None if it does not answer."""
    try:
        return subprocess.run(
            [_CONTROL], input=f"{command}\n", capture_output=True, text=True, timeout=seconds, check=False
        ).stdout
    except subprocess.TimeoutExpired:
        return None


def _quit(folder: Path) -> None:
    """End the daemon and its server, after their clients; kill the daemon if it does not answer."""
    if _asked("quit", _QUIT_S) is None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / f"{_CONTROL}.pid").read_text()), signal.SIGKILL)


def _last_line(*paths: Path) -> str:
    lines = [line for path in sorted(paths) for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


if __name__ == "__main__":
    main()
