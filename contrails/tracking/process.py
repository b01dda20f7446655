"""The worker process of `contrails sync`, which must answer in time, and is killed with its children if it does not.

Only the worker uses wandb, so that any failure of the network or of wandb-core becomes one error here.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO

import psutil

from contrails.errors import TrackingError
from contrails.files import storage
from contrails.runs.folder import Run
from contrails.tracking.account import Account
from contrails.tracking.messages import Answer, Task

_FOLDERS = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR")
_COMMAND = [sys.executable, "-m", "contrails.tracking.worker"]


class Worker:
    """A process of `contrails.tracking.worker` for a run."""

    def __init__(self, run: Run, account: Account) -> None:
        files = run.wandb_files  # in the run folder, since home folders of clusters have small quotas
        with storage(files, "create"):
            files.mkdir(exist_ok=True)
        environment = {"WANDB_INIT_TIMEOUT": "60"} | dict(os.environ) | dict.fromkeys(_FOLDERS, str(files))
        self._read = b""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the worker
        self._process = subprocess.Popen(
            [*_COMMAND, str(os.getpid())],
            env=environment | account.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def answers(self, tasks: Sequence[Task], deadline_s: float) -> Iterator[Answer]:
        """Yield the answer to each task; each must come within `deadline_s` of the previous one.

        Raises:
            TrackingError: an answer did not come; the worker is ended.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the worker has ended, which reading the answer reports
            self._process.stdin.write(json.dumps([task.to_json() for task in tasks]).encode() + b"\n")
            self._process.stdin.flush()
        for _ in tasks:
            yield Answer.from_json(self._line(deadline_s))

    def _line(self, deadline_s: float) -> str:
        assert self._process.stdout is not None
        end = time.monotonic() + deadline_s
        while b"\n" not in self._read:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self.end()
                raise TrackingError(f"no answer within {deadline_s:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 65_536)
            if not piece:
                self._process.wait()
                said = self._last_words()
                self.end()
                raise TrackingError(f"the process that talks to W&B ended: {said}")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def _last_words(self) -> str:
        code = self._process.returncode
        if code < 0:
            return f"it was killed ({signal.Signals(-code).name})"
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"code {code}"

    def end(self) -> None:
        """Kill it and wandb-core, which would otherwise report an end of runs that another process may continue."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            for each in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                assert stream is not None
                stream.close()
