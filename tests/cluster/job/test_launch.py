"""The launcher: real folds that finish, vanish and stop side by side, and the reason of each."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from contrails.cluster.job.launch import launch
from contrails.cluster.schedulers.slots import Slot
from contrails.files import read_hint, read_json, read_toml
from contrails.recipe.reading import parse
from contrails.runs.config import RunConfig
from contrails.runs.folder import Fold, Run
from contrails.train.context import JobContext

from dataset_edits import flip_a_bit
from local_site import Site, eventually

LONG = ("-o", "train.epochs=2000")
VANISHED = "dataset vanished or I/O error: the mapped file {0} was truncated"


@pytest.fixture
def site(tmp_path: Path, tiny_data: Path) -> Iterator[Site]:
    site = Site(tmp_path, tiny_data)
    yield site
    site.end_everything()


def submit(site: Site, folds: str, *arguments: str) -> None:
    done = site.run("submit", "tiny.toml", "--fold", folds, "--folds-per-job", "3", *arguments)
    assert done.returncode == 0, done.stderr


def digests(fold: Fold) -> dict[str, str]:
    done = fold.read_done()
    assert done is not None
    return {name: entry["sha256"] for name, entry in done["weights"].items()}


def state(fold: Fold) -> dict[str, Any]:
    return read_hint(fold.attempts()[-1].state)


def wait_until(fold: Fold, status: str) -> None:
    eventually(lambda: state(fold).get("status") == status, 30)


def pid(fold: Fold) -> int:
    number: int = read_json(fold.attempts()[-1].job)["pid"]
    return number


def test_folds_of_one_job_end_in_the_bits_of_folds_alone(site: Site) -> None:
    submit(site, "0,1", "--wait")
    alone = site.run("submit", "tiny.toml", "--name", "alone", "--fold", "0,1", "--wait")
    assert alone.returncode == 0, alone.stderr
    jobs = [read_json(site.fold(key).attempt(1).job)["job_id"] for key in "01"]
    assert jobs[0] == jobs[1]
    for key in "01":
        assert digests(site.fold(key)) == digests(site.fold(key, "alone"))
        assert "error" not in site.fold(key).attempt(1).stderr.read_text()


def test_a_killed_fold_leaves_the_other_alone(site: Site) -> None:
    arguments = ("-o", "train.epochs=40")
    submit(site, "0,1", *arguments)
    killed, other = site.fold("0"), site.fold("1")
    eventually(killed.attempts)
    wait_until(killed, "running")
    os.kill(pid(killed), signal.SIGKILL)
    wait_until(killed, "failed")
    assert state(killed)["reason"].startswith("killed (SIGKILL): it had used at most ")
    eventually(other.done.exists)
    assert state(killed)["status"] == "failed"
    assert len(other.attempts()) == 1
    submit(site, "0,1", *arguments, "--wait")
    assert [len(fold.attempts()) for fold in (killed, other)] == [2, 1]


def test_a_dataset_that_vanishes_is_said(site: Site, tiny_data: Path) -> None:
    copy = shutil.copy(tiny_data / "train.h5", site.root / "copy.h5")
    submit(site, "0,1", *LONG, "-o", f"data.dataset={copy}")
    folds = [site.fold(key) for key in "01"]
    site.wait_for_snapshot(*folds)
    os.truncate(copy, 4096)
    for fold in folds:
        wait_until(fold, "failed")
        assert state(fold)["reason"].startswith(VANISHED.format(copy))
    told = site.states()["0"]
    assert told["state"] == "failed"
    assert f"`contrails data verify {copy}`, then go on with `contrails resume tiny`" in told["reason"]


def test_a_dataset_that_vanishes_in_the_foreground_is_said_there(site: Site, tiny_data: Path) -> None:
    copy = shutil.copy(tiny_data / "train.h5", site.root / "copy.h5")
    with site.start("train", "tiny.toml", *LONG, "-o", f"data.dataset={copy}") as training:
        site.wait_for_snapshot(site.fold("0"))
        os.truncate(copy, 4096)
        _, errors = training.communicate(timeout=60)
    assert training.returncode == 128 + signal.SIGBUS
    assert f"error: fold 0, attempt 1: {VANISHED.format(copy)}" in errors
    assert state(site.fold("0"))["status"] == "failed"


def test_damaged_data_end_every_fold_that_reads_them_until_they_are_put_back(site: Site, tiny_data: Path) -> None:
    """The records were damaged after they were written; a submission reads no more than the header."""
    copy = site.root / "copy.h5"
    shutil.copy(tiny_data / "train.h5", copy)
    flip_a_bit(copy, "votes", 8)
    arguments = ("-o", f"data.dataset={copy}")
    waited = site.run("submit", "tiny.toml", "--fold", "0,1", "--folds-per-job", "2", *arguments, "--wait")
    assert waited.returncode == 8, waited.stderr
    eventually(lambda: all(state["cause"] == "data" for state in site.states().values()))
    for key, state in site.states().items():
        assert state["state"] == "failed"
        assert f"{copy} is damaged: record 1008: /votes is not what was written" in state["reason"]
        assert not site.fold(key).done.exists()
    (verify,) = {command for command in re.findall("`contrails (.*?)`", state["reason"]) if "verify" in command}
    named = site.run(*verify.split())
    assert (named.returncode, "record 1008: /votes" in named.stderr) == (4, True)
    foreground = site.run("train", "tiny.toml", "--name", "foreground", *arguments)
    assert foreground.returncode == 4
    assert "record 1008: /votes is not what was written" in foreground.stderr
    flip_a_bit(copy, "votes", 8)
    assert site.run("resume", "tiny").returncode == 0
    eventually(lambda: all(site.fold(key).done.exists() for key in "01"))
    for key in "01":
        assert [read_json(each.verified)["damage"] is None for each in site.fold(key).attempts()] == [False, True]


def test_ctrl_c_in_the_foreground_saves(site: Site) -> None:
    with site.start("train", "tiny.toml", *LONG) as training:
        site.wait_for_snapshot(site.fold("0"))
        os.killpg(training.pid, signal.SIGINT)
        _, errors = training.communicate(timeout=60)
    assert training.returncode == 75
    assert "(SIGINT); its position is saved; go on with `contrails resume tiny`" in errors
    assert "Traceback" not in errors
    assert site.fold("0").all_snapshots()[0].step == state(site.fold("0"))["step"]


def test_ctrl_c_while_a_training_starts_is_no_traceback(site: Site) -> None:
    for delay_s in (
        0,
        0.2,
        0.5,
        0.8,
    ):  # before the launcher is imported, while it is, while it starts the training, ...
        with site.start("train", "tiny.toml", *LONG) as training:
            command = Path(f"/proc/{training.pid}/cmdline")
            eventually(lambda command=command: b"contrails.cluster.job.launch" in command.read_bytes())  # type: ignore[misc]
            time.sleep(delay_s)
            os.killpg(training.pid, signal.SIGINT)
            _, errors = training.communicate(timeout=60)
        assert training.returncode in (-signal.SIGINT, 75), errors
        assert "Traceback" not in errors
        assert (training.returncode == -signal.SIGINT) or "go on with `contrails resume tiny`" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_signal_stops_every_fold(site: Site, number: signal.Signals) -> None:
    arguments = ("-o", "train.epochs=60")
    submit(site, "0,1", *arguments)
    folds = [site.fold(key) for key in "01"]
    site.wait_for_snapshot(*folds)
    os.kill(psutil.Process(pid(folds[0])).ppid(), number)
    for fold in folds:
        wait_until(fold, "stopped")
        assert number.name in state(fold)["reason"]
        assert fold.all_snapshots()[0].step == state(fold)["step"]
    if number == signal.SIGTERM:
        submit(site, "0,1,2", *arguments, "--wait")
        assert [len(site.fold(key).attempts()) for key in "012"] == [2, 2, 1]
        assert len({read_json(site.fold(key).attempts()[-1].job)["job_id"] for key in "012"}) == 1


def test_folds_stop_by_themselves_when_the_launcher_is_killed(site: Site) -> None:
    submit(site, "0,1", *LONG)
    folds = [site.fold(key) for key in "01"]
    site.wait_for_snapshot(*folds)
    os.kill(psutil.Process(pid(folds[0])).ppid(), signal.SIGKILL)
    for fold in folds:
        wait_until(fold, "stopped")
        assert fold.all_snapshots()[0].step == state(fold)["step"]


def test_a_launcher_imports_nothing_heavy(site: Site) -> None:
    submit(site, "0", "--wait", "-o", "train.epochs=1")
    run = site.fold("0").run
    code = (
        "import sys\nfrom contrails.cluster.job.launch import main\ntry:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'numpy', 'h5py'} & set(sys.modules)))"
    )
    environment = dict(os.environ) | {"PYTHONPATH": str(run.code), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, str(run.path), "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.fixture
def config(site: Site, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The configuration of a run of fold 0 on a GPU; a child does what stands in `child.py` beside the run."""
    submit(site, "0", "--wait", "-o", "train.epochs=1")
    toml = site.fold("0").run.toml
    toml.write_text(toml.read_text().replace('device = "cpu"', 'device = "cuda"'))
    original = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return original([sys.executable, str(site.root / "child.py"), *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    return parse(RunConfig, read_toml(toml, "a run"), str(toml))


@pytest.mark.usefixtures("restore_process")
def test_children_share_memory_and_the_slots_of_the_job(site: Site, config: RunConfig) -> None:
    (site.root / "child.py").write_text(
        "import json, os, sys\n"
        "run, fold, job = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        "held = [n for n in os.listdir('/proc/self/fd') if os.path.realpath(f'/proc/self/fd/{n}').endswith('lock')]\n"
        "told = [os.environ['CUDA_VISIBLE_DEVICES'], os.fstat(job['ram_fd']).st_ino, len(held), os.getppid()]\n"
        "assert job['launcher_pid'] == os.getppid()\n"
        "open(f'{run}/told-{fold}', 'w').write(json.dumps(told))\n"
    )
    run = Run(site.root / "runs" / "tiny")
    slots = {
        Slot(lock, f"GPU-{lock.stem}"): os.open(lock, os.O_CREAT | os.O_RDWR)
        for lock in (site.root / "2.lock", site.root / "5.lock")
    }
    assert launch(run, config, ["0", "1", "2"], JobContext(), slots) == 0
    told = [json.loads((run.path / f"told-{key}").read_text()) for key in "012"]
    assert [gpu for gpu, *_ in told] == ["GPU-2", "GPU-5", "GPU-2"]
    assert len({memory for _, memory, *_ in told}) == 1
    assert [held for *_, held, _ in told] == [1, 1, 1]
    for descriptor in slots.values():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


@pytest.mark.usefixtures("restore_process")
@pytest.mark.parametrize(
    ("ends", "code"),
    [(["exit(0)", "exit(0)"], 0), (["exit(75)", "exit(0)"], 75), (["exit(75)", "exit(4)"], 4),
     (["exit(0)", "kill(9)"], 137)],
)  # fmt: skip
def test_the_exit_code_is_that_of_a_failure_before_that_of_a_stop(
    site: Site, config: RunConfig, ends: list[str], code: int
) -> None:
    (site.root / "child.py").write_text(
        f"import os, sys\nexit = os._exit\ndef kill(number): os.kill(os.getpid(), number)\n"
        f"eval({ends!r}[int(sys.argv[2])])\n"
    )
    assert launch(Run(site.root / "runs" / "tiny"), config, ["0", "1"], JobContext(), {}) == code


@pytest.mark.usefixtures("restore_process")
def test_a_child_that_had_no_attempt_or_ended_its_own_is_only_told(
    site: Site, config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    fold = site.fold("0")
    (site.root / "child.py").write_text(
        "import json, os, sys\nfrom pathlib import Path\n"
        "path = Path(sys.argv[1], 'folds', '0', 'attempts', '001', 'job.json')\n"
        "if sys.argv[2] == '0':\n"
        "    path.write_text(json.dumps(json.loads(path.read_text()) | {'pid': os.getpid()}))\n"
        "os.kill(os.getpid(), 11)\n"
    )
    assert launch(fold.run, config, ["0", "all"], JobContext(), {}) == 139
    told = capfd.readouterr().err
    assert f"error: fold 0, attempt 1: ended by SIGSEGV; go on with `contrails resume {fold.run.typed}`" in told
    assert "error: fold all, before it began an attempt: ended by SIGSEGV" in told
    assert state(fold)["status"] == "done"
