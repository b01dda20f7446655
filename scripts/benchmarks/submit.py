"""What starting `contrails` costs, submit and status beside bare sbatch and qsub, and what a hand-over costs.

On a Slurm cluster of the tests' own, where this machine can have one (root, and the packages of
tests/cluster/slurm_cluster.py), and on the tests' fake PBS, or a real one with CONTRAILS_TEST_PBS=1. The jobs that are
counted in never start: their partition is down, or their time has not come.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from table import Result, rates, show

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "cluster")]

from contrails.files import read_json_lines, to_json, write_atomic  # noqa: E402
from contrails.runs.folder import Fold  # noqa: E402

from fake_pbs import FakePbs  # noqa: E402
from local_site import eventually  # noqa: E402
from pbs_runs import PbsRuns  # noqa: E402
from pbs_site import REAL  # noqa: E402
from slurm_cluster import SlurmCluster, why_not  # noqa: E402
from slurm_site import SlurmSite, fresh_path, only_cluster  # noqa: E402

ROUNDS = 5
LATER = "12312359"
"""For qsub: not before the last minute of the year."""
COMMAND = [sys.executable, "-m", "contrails"]


def main() -> None:
    results = []
    reason = why_not()
    if reason is None:
        results += on_slurm()
    else:
        print(f"scripts/bench submit: no Slurm here: {reason}", file=sys.stderr)
    show("submit, status and hand-over", [*results, *on_pbs()])


def on_slurm() -> list[Result]:
    with only_cluster() as cluster, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster.start()
        environment = cluster.environment()
        prepare(folder, environment, SlurmSite.PROFILE)
        cost = preemption(folder, cluster)
        cluster.command("scontrol", "update", "partitionname=low", "state=down")
        bare = ["sbatch", "-o", "/dev/null", "bare.sh"]
        return [*submission(folder, environment, bare), status(folder, environment), cost]


def on_pbs() -> list[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fake = None if REAL else FakePbs(folder / "pbs")
        path = os.environ["PATH"]
        environment = {"PATH": f"{fake.bin}:{path}" if fake else path}
        try:
            prepare(folder, environment, PbsRuns.PROFILE | {"scheduler_arguments": {"a": LATER}})
            bare = ["qsub", "-a", LATER, "-j", "oe", "-o", "/dev/null", "bare.sh"]
            cost = submission(folder, environment, bare)
            return [*start(folder), *cost, hand_over(folder, fake)]
        finally:
            for toml in folder.glob("runs/*/run.toml"):
                run(folder, environment, "cancel", toml.parent.name)
            if fake is not None:
                fake.stop()


def prepare(folder: Path, environment: dict[str, str], profile: dict[str, Any]) -> None:
    """Make a small dataset, a recipe and a site."""
    import tomli_w

    run(folder, environment, "demo", "raw", "--size", "32", "--train", "10", "--validation", "1", "--test", "1")
    run(folder, environment, "prepare", "raw", "train.h5")
    run(folder, environment, "split", "train.h5", "--folds", "5", "-o", "five.csv")
    run(folder, environment, "split", "train.h5", "--folds", "3", "-o", "three.csv")
    (folder / "recipe.toml").write_text(tomli_w.dumps({"data": {"dataset": "train.h5", "filelist": "five.csv"}}))
    (folder / "jobs/sites").mkdir(parents=True)
    (folder / "jobs/sites/test.toml").write_text(tomli_w.dumps(profile))


def submission(folder: Path, environment: dict[str, str], command: list[str]) -> list[Result]:
    """Five folds by contrails beside five bare submissions, in turn."""
    (folder / "bare.sh").write_text("#!/bin/bash\ntrue\n")

    def bare() -> None:
        for _ in range(5):
            own = dict(os.environ) | environment
            subprocess.run(command, cwd=folder, env=own, capture_output=True, check=True)

    ours, peer = [], []
    for number in range(ROUNDS + 1):  # the first warms the caches
        name = f"run{number}"
        ours.append(seconds(partial(run, folder, environment, "submit", "recipe.toml", "--name", name, "--folds", "5")))
        peer.append(seconds(bare))
    bare_name, theirs = command[0], statistics.median(peer[1:])
    more = statistics.median(ours[1:]) - theirs
    memory = peak_memory_mb(folder, environment, "submit", "recipe.toml", "--name", "memory", "--folds", "5")
    modules = (
        "contrails.cluster.submit.folds, contrails.cluster.schedulers.pbs, contrails.cluster.schedulers.slurm, submitit"
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    torch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    return [
        Result(f"submit 5 folds over 5 {bare_name}", more, "s", "1.0 s", more <= 1.0, {bare_name: theirs}),
        Result(f"memory of submit, {bare_name}", memory, "MB", "120 MB", memory < 120),
        Result("torch imported by submit", float(torch), "", "0", not torch),
    ]


def start(folder: Path) -> list[Result]:
    """`--help`, and `status` of a run of this machine, beside a Python that imports click and does nothing."""
    run_path = folder / "alone/run"
    for fold in range(5):
        (run_path / f"folds/{fold}").mkdir(parents=True)
    toml = (folder / "runs/run1/run.toml").read_text()
    (run_path / "run.toml").write_text(toml.replace('scheduler = "pbs"', 'scheduler = "local"'))
    environment = {"CONTRAILS_RUNS": str(run_path.parent)}

    def once(*command: str) -> Callable[[], int]:
        def call() -> int:
            subprocess.run([*command], env=dict(os.environ) | environment, capture_output=True, check=True)
            return 1

        return call

    contestants = {
        "import click": once(sys.executable, "-c", "import click"),
        "--help": once(*COMMAND, "--help"),
        "status": once(*COMMAND, "status", "run"),
    }
    took = {name: 1 / rate for name, rate in rates(contestants, 3 * ROUNDS).items()}
    peer = took["import click"]
    results = [
        Result(f"{name} over import click", took[name] / peer, "x", f"{goal}x", took[name] <= goal * peer, {"s": peer})
        for name, goal in (("--help", 4), ("status", 5))
    ]
    return [Result("contrails --help", took["--help"], "s", "0.3 s", took["--help"] <= 0.3), *results]


def preemption(folder: Path, cluster: SlurmCluster) -> Result:
    """Three preemptions: the first new step, less the new start of a bare job preempted with it and the way to a step.

    What Slurm takes to start a preempted job again (its delay, its rounds) counts for both.
    """
    (folder / "site").mkdir()
    site = SlurmSite(folder / "site", folder, cluster)
    starts, bare_starts = folder / "starts", folder / "bare_starts"
    site.profile("test", prologue=[f"date +%s.%N >> {starts}"])
    site.submit("preempted", "-o", "train.epochs=100000", "-o", "snapshot.every_min=0.05")
    (folder / "bare.sh").write_text(f"#!/bin/bash\ndate +%s.%N >> {bare_starts}\nsleep 10000\n")
    cluster.command("sbatch", "--requeue", "--mem=100", "-o", "/dev/null", str(folder / "bare.sh"))
    (folder / "first.sh").write_text("#!/bin/bash\nsleep 2\n")
    fold = site.fold("0", "preempted")
    for number in (1, 2, 3):
        eventually(lambda number=number: len(moments(bare_starts)) == number)  # type: ignore[misc]
        eventually(lambda number=number: len(first_steps(fold)) == number)  # type: ignore[misc]
        nodes = ",".join({*site.squeue("--states=R", "--format=%N")})
        cluster.command(
            "sbatch", "-p", "high", "--exclusive", "-w", nodes, "-N", str(nodes.count(",") + 1), "-o", "/dev/null",
            str(folder / "first.sh"),
        )  # fmt: skip
    eventually(lambda: len(first_steps(fold)) == 4)
    to_a_step = first_steps(fold)[0] - moments(starts)[0]
    pairs = zip(first_steps(fold)[1:], moments(bare_starts)[1:], strict=True)
    cost = statistics.median(step - bare - to_a_step for step, bare in pairs)
    site.end_everything()
    peers = {"start to a step, s": to_a_step}
    return Result("preemption to a step, without Slurm's delay and a start", cost, "s", "3 s", cost <= 3, peers)


def moments(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def first_steps(fold: Fold) -> list[float]:
    """Return when each attempt has made its first step."""
    rows = [read_json_lines(attempt.telemetry) for attempt in fold.attempts() if attempt.telemetry.exists()]
    return [of_attempt[0]["time"] for of_attempt in rows if of_attempt]


def hand_over(folder: Path, fake: FakePbs | None) -> Result:
    """Three walltimes in a row: from the last step of a link to the first of the next, less the queue and a start."""
    (folder / "site").mkdir()
    site = PbsRuns(folder / "site", folder, fake)
    site.submit("chain", "-o", "train.epochs=200")
    fold, costs = site.fold("0", "chain"), []
    for number in (1, 2, 3):
        site.wait_for_attempt(fold, number)
        write_atomic(fold.run.clock(site.job("chain")), to_json({"end": 0.0}))
    site.wait_for_done("chain")
    rows = read_json_lines(next(fold.run.submitit.rglob("*_chain.jsonl")))
    starts = [row["time"] for row in rows if row["event"] == "start"]
    ends = [row["time"] for row in rows if row["event"] == "ended"]
    steps = [[row["time"] for row in read_json_lines(attempt.telemetry)] for attempt in fold.attempts()]
    start = steps[0][0] - starts[0]
    for number, ended in enumerate(ends):
        queue = starts[number + 1] - ended
        costs.append(steps[number + 1][0] - steps[number][-1] - queue - start)
    cost = statistics.median(costs)
    return Result("hand-over, without queue and start", cost, "s", "5 s", cost <= 5)


def status(folder: Path, environment: dict[str, str]) -> Result:
    """`contrails status` of 200 runs with five jobs each, the scheduler's answer replayed."""
    toml = (folder / "runs/run1/run.toml").read_text()
    lines = []
    for number in range(200):
        path = folder / "many" / f"run{number}"
        (path / "folds").mkdir(parents=True)
        (path / "run.toml").write_text(toml)
        rows = []
        for fold in range(5):
            (path / f"folds/{fold}").mkdir()
            job = {"name": f"ct{number:06x}f{fold}a1", "job_id": str(5 * number + fold)}
            intent = {"event": "intent", "name": job["name"], "folds": [str(fold)], "exclude": [], "time": 0.0}
            rows += [to_json(intent), to_json({"event": "submitted", **job})]
            lines.append(f"{job['job_id']}|{job['name']}|PENDING|Priority|")
        write_atomic(path / "journal.jsonl", "\n".join(rows) + "\n")
    (folder / "squeue.txt").write_text("\n".join(lines) + "\n")
    replay = fresh_path(folder / "replay", squeue=f"cat {folder}/squeue.txt", sacct="exit 1")
    fast = environment | {"PATH": replay, "CONTRAILS_RUNS": str(folder / "many")}
    answer = json.loads(run(folder, fast, "status", "--json"))
    assert sum(row["state"] == "waiting" for rows_of in answer.values() for row in rows_of) == 1000
    took = statistics.median(seconds(lambda: run(folder, fast, "status", "--json")) for _ in range(ROUNDS))
    return Result("status of 1,000 jobs", took, "s", "1 s", took < 1)


def run(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    own = dict(os.environ) | environment
    done = subprocess.run([*COMMAND, *arguments], cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def peak_memory_mb(folder: Path, environment: dict[str, str], *arguments: str) -> float:
    """Return the largest resident memory of one command."""
    own = dict(os.environ) | environment
    process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=own, stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024


def seconds(action: Callable[[], object]) -> float:
    since = time.perf_counter()
    action()
    return time.perf_counter() - since


if __name__ == "__main__":
    main()
