"""Interruptions: a training killed more than fifty times at random moments beside the same one undisturbed."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from table import Result, show

from contrails.cluster.check.drill import make_data
from contrails.files import read_json, read_json_lines
from contrails.runs.folder import Run

KILLS = 54


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        show("resume: a small U-Net with EMA and SWA, snapshots every 1.2 s", [*drilled(folder), *started(folder)])


def drilled(folder: Path) -> list[Result]:
    outcome = json.loads(contrails(folder, "drill", "--kills", str(KILLS), "--seed", "0", "--json"))
    kills: list[dict[str, Any]] = outcome["kills"]
    by_signal = [kill for kill in kills if not kill["way"].startswith("SIGKILL")]
    by_kill = [kill for kill in kills if kill["way"].startswith("SIGKILL")]
    step_s = outcome["undisturbed_s"] / outcome["steps"]
    lost = max(kill["steps_lost"] for kill in by_kill)
    seconds = statistics.median(kill["seconds_lost"] for kill in kills)
    return [
        Result("interruptions survived", len(kills), "", "50", len(kills) >= 50, {"steps": outcome["steps"]}),
        Result("bits equal to the undisturbed training", outcome["equal"], "", "1", outcome["equal"]),
        Result(
            "steps lost after a signal, most",
            max(kill["steps_lost"] for kill in by_signal),
            "",
            "0",
            not any(kill["steps_lost"] for kill in by_signal),
            {"kills": len(by_signal)},
        ),
        # a snapshot every 1.2 s, half a second to write one, each epoch
        Result("steps lost after SIGKILL, most", lost, "", f"{3 / step_s:.0f}", lost <= 3 / step_s),
        Result("kill to the first new step, median, submission and imports included", seconds, "s", "", None),
    ]


def started(folder: Path) -> list[Result]:
    """From the start of a resumed process to its first step, over a process that imports and loads the same."""
    data = folder / "data"
    make_data(data)
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[data]\ndataset = "{data}/train.h5"\nfilelist = "{data}/folds.csv"\n'
        "[train]\nepochs = 10000\nbatch_size = 2\nlog_every = 1\n[snapshot]\nevery_min = 0.02\n"
    )
    run = Run(folder / "runs" / "recipe")
    seconds, peers = [], []
    for number in range(1, 6):
        with subprocess.Popen(
            [sys.executable, "-m", "contrails", "train", str(recipe)],
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            attempt = run.fold("0").attempt(number)
            while not read_json_lines(attempt.telemetry) or not run.fold("0").all_snapshots():
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
        if number > 1:
            first = read_json_lines(attempt.telemetry)[0]["time"]
            seconds.append(first - (psutil.boot_time() + read_json(attempt.job)["pid_uptime"]))
            peers.append(load(run, folder))
    over = statistics.median(seconds) - statistics.median(peers)
    costs = {"resumed, s": statistics.median(seconds), "imports and loading, s": statistics.median(peers)}
    return [
        Result(
            "start of a resumed process to its first step, over imports and loading", over, "s", "1 s", over <= 1, costs
        )
    ]


def load(run: Run, folder: Path) -> float:
    """Return the seconds of a process that imports and loads what training needs, and makes one step."""
    code = (
        "import sys\nfrom pathlib import Path\nimport torch\nfrom contrails.runs.folder import Run\n"
        "from contrails.dataset.store import open_dataset\nfrom contrails.models.build import build_model\n"
        "import contrails.train.fold\nfrom contrails.train.saved.snapshot import load_snapshot\n"
        "from contrails.train.saved.state import new_state\nfrom contrails.train.objective import Objective\n"
        "run = Run(Path(sys.argv[1]))\nrecipe = run.read_config().recipe\nopen_dataset(recipe.data.dataset)\n"
        "state = new_state(build_model(recipe, 3), Objective(recipe), recipe.train, torch.device('cpu'))\n"
        "state.load_state_dict(load_snapshot(run.fold('0'))[1])\n"
        "loss = state.model(torch.zeros(2, 3, 64, 64)).mask.mean()\nloss.backward()\nstate.optimizer.step()\n"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(run.path)], env=environment(folder), check=True)
    return time.perf_counter() - started


def contrails(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "contrails", *arguments]
    return subprocess.run(
        command, env=environment(folder), cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def environment(folder: Path) -> dict[str, str]:
    return dict(os.environ) | {"CONTRAILS_RUNS": str(folder / "runs")}


if __name__ == "__main__":
    main()
