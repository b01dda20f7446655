"""MPS for folds that share a GPU: a launcher with real children, and a stand-in for NVIDIA's control program.

The stand-in does what its documentation says: `-d` returns once a daemon listens in the pipe directory, and `quit`
returns after the daemon's clients have ended.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MakeRun

from contrails.cluster.job import mps
from contrails.runs.folder import Run

from local_site import eventually

CONTROL = """\
import os, socket, sys, time
folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
note = lambda text: open(EVENTS, "a").write(text + "\\n")
if sys.argv[1:] != ["-d"]:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(folder + "/control")
    except OSError:
        sys.exit("Cannot find MPS control daemon process")
    client.sendall(sys.stdin.read().encode())
    print(client.makefile().read(), end="")
    sys.exit()
if MODE == "refuses":
    print("An instance of this daemon is already running")
    sys.exit(1)
server = socket.socket(socket.AF_UNIX)
server.bind(folder + "/control")
server.listen()
if os.fork():
    sys.exit()
os.setsid()
open(folder + "/nvidia-cuda-mps-control.pid", "w").write(str(os.getpid()))
open(os.environ["CUDA_MPS_LOG_DIRECTORY"] + "/server.log", "w").write("the GPU is busy\\n")
note(f"daemon {os.getpid()} {folder} {os.environ['CUDA_VISIBLE_DEVICES']}")
has_server = False
while True:
    asker = server.accept()[0]
    said = asker.recv(99).decode().strip()
    has_server = has_server or (said == f"start_server -uid {os.getuid()}" and MODE != "busy")
    if said == "get_server_list" and has_server:
        asker.sendall(b"4711\\n")
    if said == "quit":
        while any(name.startswith("client") for name in os.listdir(folder)):
            time.sleep(0.02)
        os.remove(folder + "/nvidia-cuda-mps-control.pid")
        note(f"daemon {os.getpid()} ended")
        sys.exit()
    asker.close()
"""

CHILD = """\
import json, os, signal, sys, time
from contrails.processes import end_with
run, fold, job = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
note = lambda text: open(EVENTS, "a").write(text + "\\n")
def save(*_):
    time.sleep(0.3)
    end(75)
def end(code):
    note(f"fold {fold} ends")
    if client: os.remove(client)
    os._exit(code)
signal.signal(signal.SIGTERM, save)
folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
client = folder and f"{folder}/client-{fold}"
if client: open(client, "w")
told = {name: value for name, value in os.environ.items() if name.startswith("CUDA_")}
note(f"fold {fold} {json.dumps(told)}")
end_with(job["launcher_pid"], signal.SIGTERM)
if WAY == "done": end(0)
if WAY == "failure": end(4)
time.sleep(600)
"""

LAUNCHER = """\
import os, subprocess, sys
from pathlib import Path
from contrails.cluster.job.launch import launch
from contrails.cluster.schedulers.slots import Slot
from contrails.runs.folder import Run
from contrails.train.context import JobContext
original = subprocess.Popen
def start(command, **options):
    of_fold = "contrails.cluster.job.task" in command
    return original([sys.executable, sys.argv[2], *command[3:]] if of_fold else command, **options)
subprocess.Popen = start
run = Run(Path(sys.argv[1]))
slots = {Slot(path, name): os.open(path, os.O_CREAT | os.O_RDWR) for name in sys.argv[3].split(",")
         for path in [run.path / name]}
sys.exit(launch(run, run.read_config(), ["0", "1", "2"], JobContext(), slots))
"""


class Job:
    """A job of three folds with its own nvidia-cuda-mps-control, whose events it keeps."""

    def __init__(self, root: Path, run: Run, mode: str = "works", way: str = "done") -> None:
        self.events, commands = root / "events", root / "bin"
        self.events.touch()
        commands.mkdir()
        head = f"EVENTS, MODE, WAY = {str(self.events)!r}, {mode!r}, {way!r}\n"
        for name, text in (("nvidia-cuda-mps-control", CONTROL), ("child.py", CHILD)):
            (commands / name).write_text(f"#!{sys.executable} -I\n{head}{text}")
            (commands / name).chmod(0o755)
        (commands / "nvidia-smi").write_text("#!/bin/sh\necho 24564\n")
        (commands / "nvidia-smi").chmod(0o755)
        toml = run.toml.read_text().replace('device = "cpu"', 'device = "cuda"')
        run.toml.write_text(toml.replace('name = "local"', 'name = "local"\nmps = true'))
        self.run, self.commands = run, commands
        self.environment = dict(os.environ) | {"PATH": f"{commands}:{os.environ['PATH']}"}

    def start(self, gpus: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LAUNCHER, str(self.run.path), str(self.commands / "child.py"), gpus]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)

    def told(self) -> list[list[str]]:
        return [line.split(" ", 2) for line in self.events.read_text().splitlines()]

    def of_folds(self) -> dict[str, Any]:
        return {key: json.loads(more) for what, key, more in self.told() if what == "fold" and more != "ends"}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = set(mps._PARENT.glob("contrails-mps-*"))
    yield
    eventually(lambda: set(mps._PARENT.glob("contrails-mps-*")) <= before)


@pytest.mark.parametrize(
    ("way", "number", "code"),
    [("done", None, 0), ("failure", None, 4), ("signal", signal.SIGTERM, 75), ("signal", signal.SIGKILL, -9)],
    ids=["done", "failure", "stop", "the launcher is killed"],
)
def test_mps_lasts_from_before_the_first_fold_to_after_the_last(
    tmp_path: Path, make_run: MakeRun, way: str, number: signal.Signals | None, code: int
) -> None:
    job = Job(tmp_path, make_run(), way=way)
    with job.start("GPU-a") as launcher:
        if number is not None:
            eventually(lambda: len(job.of_folds()) == 3)
            if number == signal.SIGTERM:  # a scheduler signals every process of a job
                keeper = psutil.Process(launcher.pid).children()[0]
                for process in (keeper, psutil.Process(int(job.told()[0][1]))):
                    process.terminate()
            launcher.send_signal(number)
        _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == code, errors
    eventually(lambda: job.told()[-1][2] == "ended")
    (_, pid, where), *of_folds, last = job.told()
    folder, gpus = where.split()
    assert ([what for what, *_ in of_folds], last) == (["fold"] * 6, ["daemon", pid, "ended"])
    eventually(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE)
    limited = {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=8017M", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
    known = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_VISIBLE_DEVICES": gpus} | limited
    assert job.of_folds() == dict.fromkeys("012", known)
    assert (gpus, len(f"{folder}/control_privileged") < 108) == ("GPU-a", True)


def test_only_a_gpu_of_several_folds_is_shared(tmp_path: Path, make_run: MakeRun) -> None:
    job = Job(tmp_path, make_run())
    with job.start("GPU-a,GPU-b") as launcher:
        launcher.communicate(timeout=300)
    assert [more.split()[-1] for what, _, more in job.told() if what == "daemon"] == ["GPU-a", "ended"]
    assert job.of_folds()["1"] == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert job.of_folds()["2"]["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=12026M"


@pytest.mark.parametrize(
    ("mode", "variables", "reason"),
    [
        ("refuses", {}, "`nvidia-cuda-mps-control -d` ended with exit code 1: An instance of this daemon is already"),
        (
            "works",
            {"PATH": "/nowhere"},
            "this node has no nvidia-cuda-mps-control; load its module in the site profile",
        ),
        ("works", {"CUDA_MPS_PIPE_DIRECTORY": "/site"}, "sets CUDA_MPS_PIPE_DIRECTORY=/site, so that MPS is used"),
    ],
)
def test_without_mps_the_folds_share_the_gpu_and_the_reason_is_said(
    tmp_path: Path,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    variables: dict[str, str],
    reason: str,
) -> None:
    job = Job(tmp_path, make_run(), mode)
    for name, value in (job.environment | variables).items():
        monkeypatch.setenv(name, value)
    with mps.sharing(["GPU-a", "GPU-a"], mps=True) as environments:
        assert environments == [{"CUDA_VISIBLE_DEVICES": "GPU-a"}] * 2
    told = capsys.readouterr().err
    assert told.startswith("warning: no MPS is started for the 2 folds on the GPU GPU-a: ")
    assert reason in told


def test_a_daemon_whose_server_cannot_use_the_gpu_is_ended(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, folder = Job(tmp_path, make_run(), "busy"), Path(tempfile.mkdtemp(dir=mps._PARENT))
    variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder / "log"}
    for name, value in (job.environment | variables | {"CUDA_VISIBLE_DEVICES": "GPU-a"}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(mps, "_SERVER_S", 0.2)
    monkeypatch.setattr(sys, "stdin", None)
    handlers = {number: signal.getsignal(number) for number in mps._IGNORED}
    try:
        mps.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    told = capsys.readouterr().out
    assert told == "its server does not start; another process may hold the GPU: the GPU is busy\n"
    assert job.told()[-1][2] == "ended"
    assert not folder.exists()
