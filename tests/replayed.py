"""A scheduler's commands that print what a test says, and jobs of a Slurm and a PBS that are replayed so."""

import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from contrails.files import to_json
from contrails.submitit_pbs.chain import Chain
from contrails.submitit_pbs.job import PbsJob
from contrails.submitit_pbs.watcher import PbsInfoWatcher

_NO_ANSWER = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class Replayed:
    """The commands of a scheduler in a folder that comes first on the PATH; what nobody has said fails."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log, self._answers, self._cases = folder / "asked.log", folder / "answers.sh", list[str]()
        folder.mkdir()
        self._log.touch()
        (folder / "scheduler").write_text(
            f'#!/bin/bash\nasked="${{0##*/}} $*"; log={shlex.quote(str(self._log))}\n'
            f'echo "$asked" >> "$log"\n. {shlex.quote(str(self._answers))}\n'
        )
        (folder / "scheduler").chmod(0o755)
        for name in (
            "squeue",
            "sacct",
            "scontrol",
            "sinfo",
            "sbatch",
            "scancel",
            "qsub",
            "qstat",
            "qselect",
            "pbsnodes",
        ):
            (folder / name).symlink_to("scheduler")
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def say(self, answers: Mapping[str, str], code: int = 0) -> None:
        """Have command lines that begin with these words, `*` for any, print a text; what was said last counts."""
        out = " >&2" if code else ""
        self._add(
            *(
                f"{_pattern(words)}) printf %s {shlex.quote(said)}{out}; exit {code};;"
                for words, said in answers.items()
            )
        )

    def take_jobs(self, first_id: int, refused: range = range(0), said: str = "") -> None:
        """Have sbatch and qsub number jobs from `first_id` on, and sbatch refuse these calls, counted from 1."""
        number = f'count=$(grep -c "^${{asked%% *}} " "$log"); number=$(({first_id} + count - 1))'
        refuse = f"echo {shlex.quote(f'sbatch: error: {said}')} >&2; exit 1"
        is_refused = f"[ $count -ge {refused.start} ] && [ $count -lt {refused.stop} ]"
        self._add(
            f'qsub*) {number}; echo "$number.h"; exit;;',
            f'sbatch*) {number}; {is_refused} && {{ {refuse}; }}; echo "Submitted batch job $number"; exit;;',
        )

    def asked(self, *words: str) -> list[str]:
        """Return the command lines that begin with one of these."""
        return [line for line in self._log.read_text().splitlines() if line.startswith(words)]

    def _add(self, *cases: str) -> None:
        self._cases[:0] = reversed(cases)
        lines = ['case "$asked" in', *self._cases, "esac", f"echo {shlex.quote(_NO_ANSWER)} >&2", "exit 1"]
        self._answers.write_text("\n".join(lines) + "\n")


def _pattern(words: str) -> str:
    return "*".join(map(shlex.quote, words.split("*"))) + "*"


def shown(state: str, restarts: int = 0, minutes: str = "00:00", **fields: str) -> str:
    """Return what `scontrol --oneliner show job 7` says of the job ctf0a1, which may run for an hour.

    Args:
        state: its JobState.
        restarts: how often Slurm has started it again.
        minutes: when it ends, as MM:SS after its start; 60:00 is its limit.
        **fields: others than those of a job that nothing has happened to.
    """
    minute, second = map(int, minutes.split(":"))
    end = f"2026-11-21T{8 + minute // 60:02}:{minute % 60:02}:{second:02}"
    told = {"Reason": "None", "ExitCode": "0:0"} | fields
    words = " ".join(f"{name}={value}" for name, value in told.items())
    return (
        f"JobId=7 JobName=ctf0a1 UserId=user(1000) GroupId=user(1000) MCS_label=N/A Priority=4294901758 Nice=0 "
        f"Account=(null) QOS=(null) JobState={state} Dependency=(null) Requeue=1 Restarts={restarts} BatchFlag=1 "
        f"Reboot=0 {words} RunTime=00:01:04 TimeLimit=01:00:00 TimeMin=N/A SubmitTime=2026-11-21T07:59:58 "
        f"StartTime=2026-11-21T08:00:00 EndTime={end} Deadline=N/A PreemptEligibleTime=2026-11-21T08:00:00 "
        f"PreemptTime=None Partition=low AllocNode:Sid=login:4711 NodeList=n1 BatchHost=n1 NumNodes=1 NumCPUs=1 "
        f"MinMemoryNode=2G Command=/home/user/runs/r/submitit/ctf0a1/submission_file_1.sh Power= \n"
    )


STANDINGS = {
    "runs": shown("RUNNING", minutes="60:00"),
    "time is over": shown("COMPLETING", minutes="60:04", Reason="TimeLimit", ExitCode="0:15"),
    "cancelled": shown("COMPLETING", minutes="01:04", ExitCode="0:15"),
    "requeued": shown("COMPLETING", restarts=1, minutes="01:04"),
    "shell killed": shown("COMPLETING", minutes="01:04", Reason="JobLaunchFailure", ExitCode="0:9"),
    "another's": shown("COMPLETING", minutes="60:04").replace("JobName=ctf0a1 ", "JobName=another "),
}
"""How Slurm may show the job, by what has happened to it; of `another's` it has given away the number."""


@pytest.fixture
def restore_signals() -> Iterator[None]:
    """Undo that the end of a job takes no signals any more."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore_signals: None) -> Replayed:
    """A Slurm on which the job 7, ctf0a1, runs on n1, and which does all that it is asked for.

    The test's process is in that job.
    """
    slurm = Replayed(tmp_path / "bin", monkeypatch)
    slurm.say(
        {
            "squeue --me --noheader --states=all": "7|ctf0a1|RUNNING|None|n1\n",
            "squeue --me --noheader --states=PENDING": "",
            "scontrol --oneliner show job 7": STANDINGS["runs"],
            "scontrol --oneliner show partition": "PartitionName=low Default=YES MaxTime=1-00:00:00 Nodes=n[1-3]\n",
            "scontrol requeue": "",
            "scontrol update": "",
            "scontrol ping": "Slurmctld(primary) at login is UP\n",
            "sinfo": "8000\n8000\n4000+\n",
            "scancel": "",
        }
    )
    slurm.take_jobs(20)
    monkeypatch.setenv("SLURM_JOB_NAME", "ctf0a1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    return slurm


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replayed:
    """A PBS on which the job 7.h, ctf0a1, runs, whose first link this is; the test's process is in it."""
    pbs = Replayed(tmp_path / "bin", monkeypatch)
    pbs.take_jobs(20)
    pbs.say({"qstat": "qstat: Unknown Job Id"}, code=153)
    pbs.say({"qselect": ""})
    pbs.say({"qstat -f -F dsv 7.h": "Job Id: 7.h|Job_Name=ctf0a1|job_state=R|substate=42|run_count=1\n"})
    (tmp_path / "jobs").mkdir()
    spec = {"qsub": [], "name": "ctf0a1", "walltime_s": 3600, "margin_s": 60, "chain": "held", "max_links": 100}
    spec |= {"budgets": {}, "num_tasks": 1, "stderr_to_stdout": False, "teardown": [], "after": []}
    words = {"SPEC": to_json(spec), "STARTED": f"{time.time():.0f}", "JOB_ID": "7.h", "RESTARTS": "0"}
    for name, word in words.items():
        monkeypatch.setenv(f"SUBMITIT_PBS_{name}", word)
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path / "jobs"))
    monkeypatch.setenv("PBS_JOBID", "7.h")
    monkeypatch.setattr(PbsJob, "watcher", PbsInfoWatcher())
    return pbs


@pytest.fixture
def chain(tmp_path: Path, pbs: Replayed) -> Chain:
    """What the links of that job have written."""
    return Chain(tmp_path / "jobs", "7.h")
