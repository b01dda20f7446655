"""What `contrails submit` and `contrails status` cost beside bare sbatch, on a Slurm cluster of the tests' own.

Needs root and the packages of tests/cluster/slurm_cluster.py. The run's jobs end at once: their partition is down.
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

from table import Result, show

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "cluster")]

from contrails.files import to_json, write_atomic  # noqa: E402

from slurm_cluster import why_not  # noqa: E402
from slurm_site import PROFILE, fresh_path, only_cluster  # noqa: E402

ROUNDS = 5
COMMAND = [sys.executable, "-m", "contrails"]


def main() -> None:
    reason = why_not()
    if reason is not None:
        sys.exit(f"scripts/bench submit: {reason}")
    with only_cluster() as cluster, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster.start()
        cluster.command("scontrol", "update", "partitionname=low", "state=down")
        environment = cluster.environment()
        prepare(folder, environment)
        show("submit and status", [*submission(folder, environment), status(folder, environment)])


def prepare(folder: Path, environment: dict[str, str]) -> None:
    """Make a small dataset, a recipe and a site."""
    import tomli_w

    run(folder, environment, "demo", "raw", "--size", "32", "--train", "10", "--validation", "1", "--test", "1")
    run(folder, environment, "prepare", "raw", "train.h5")
    run(folder, environment, "split", "train.h5", "--folds", "5", "-o", "five.csv")
    (folder / "recipe.toml").write_text(tomli_w.dumps({"data": {"dataset": "train.h5", "filelist": "five.csv"}}))
    (folder / "jobs/sites").mkdir(parents=True)
    (folder / "jobs/sites/test.toml").write_text(tomli_w.dumps(PROFILE))


def submission(folder: Path, environment: dict[str, str]) -> list[Result]:
    """Five folds by contrails beside five bare sbatch, in turn."""
    (folder / "bare.sh").write_text("#!/bin/bash\ntrue\n")

    def bare() -> None:
        for _ in range(5):
            subprocess.run(["sbatch", "-o", "/dev/null", "bare.sh"], cwd=folder, env=environment, capture_output=True)

    ours, peer = [], []
    for number in range(ROUNDS + 1):  # the first warms the caches
        name = f"run{number}"
        ours.append(seconds(partial(run, folder, environment, "submit", "recipe.toml", "--name", name, "--folds", "5")))
        peer.append(seconds(bare))
    mine, theirs = statistics.median(ours[1:]), statistics.median(peer[1:])
    memory = peak_memory_mb(folder, environment, "submit", "recipe.toml", "--name", "memory", "--folds", "5")
    code = "import sys; from contrails.cluster import dispatch, slurm; import submitit; print('torch' in sys.modules)"
    torch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    return [
        Result("submit 5 folds over 5 sbatch", mine - theirs, "s", "1.0 s", mine - theirs <= 1.0, {"sbatch": theirs}),
        Result("memory of submit", memory, "MB", "120 MB", memory < 120),
        Result("torch imported by submit", float(torch), "", "0", not torch),
    ]


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
