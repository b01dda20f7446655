"""Several processes that train one fold: real ones, over gloo on the CPU."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from contrails.dataset.store import open_dataset
from contrails.errors import RecipeError
from contrails.files import read_json, read_json_lines
from contrails.folds.filelists import read_filelist
from contrails.inputs.sampling import require_ranks_fit
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Fold, Run

from dataset_edits import set_row

MakeRun = Callable[..., Run]

RANK_0 = """
import os, signal, sys
from pathlib import Path
from contrails.errors import Stopped
from contrails.runs.folder import Run
from contrails.train.fold import train_fold
from contrails.train.loop import Loop

original, last, how = Loop._step, int(sys.argv[2]), sys.argv[3]
def step(loop, batches):
    original(loop, batches)
    if loop.state.step == last:
        os.kill(os.getpid(), getattr(signal, how))
Loop._step = step
try:
    train_fold(Run(Path(sys.argv[1])).fold("0"))
except Stopped:
    sys.exit(75)
"""


def run_of(make_run: MakeRun, name: str, num_ranks: int, **others: Any) -> Run:
    train = {"batch_size": 2 * num_ranks, "accumulate": 2, "swa_epochs": 1, "log_every": 1, "epochs": 4}
    run = make_run(name, train=train | others)
    run.toml.write_text(run.toml.read_text().replace("num_ranks = 1", f"num_ranks = {num_ranks}"))
    return run


def train(run: Run, last_step: int = -1, how: str = "SIGTERM") -> int:
    command = [sys.executable, "-c", RANK_0, str(run.path), str(last_step), how]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, timeout=200, check=False).returncode


def result(fold: Fold) -> Any:
    done = fold.read_done()
    assert done is not None
    rows: dict[int, dict[str, Any]] = {}
    for attempt in fold.attempts():
        for row in read_json_lines(attempt.metrics):
            rows.setdefault(row["step"], {}).update(row)
    return {name: entry["sha256"] for name, entry in done["weights"].items()}, rows


def test_ctrl_c_while_a_rank_is_imported_stops_all(make_run: MakeRun, tmp_path: Path) -> None:
    run = run_of(make_run, "run", 2)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'contrails.train.ranks.process' in sys.orig_argv: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", RANK_0, str(run.path), "-1", "SIGTERM"]
    done = subprocess.run(
        command,
        env=environment,
        timeout=200,
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    assert read_json(run.fold("0").attempt(1).state)["status"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "sync"), [(2, True), (3, False)])
def test_ranks_resume_exactly(
    make_run: MakeRun, num_ranks: int, sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(  # so that the tiny model has several buckets
        "from contrails.train.ranks import gradients\ngradients.BUCKET_BYTES = 4096\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    # 2 ranks are stopped in the middle of an epoch, once while the encoder is frozen and once after that
    train_keys = {"freeze": {"encoder": 1}, "sync_batch_norm": sync}
    undisturbed, run = (run_of(make_run, name, num_ranks, **train_keys) for name in ("undisturbed", "stopped"))
    assert train(undisturbed) == 0
    assert train(run, 1) == 75
    assert run.fold("0").all_snapshots()[0].step == 1
    assert train(run, 3, "SIGKILL") == -signal.SIGKILL
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(run.path) in (p.info["cmdline"] or [])]
    assert train(run) == 0
    assert result(run.fold("0")) == result(undisturbed.fold("0"))
    assert read_json(run.fold("0").attempt(1).job)["num_ranks"] == num_ranks


@pytest.mark.slow
def test_what_is_not_finite_on_another_rank_is_named_by_the_first(
    make_run: MakeRun, tiny_data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hot.h5"
    shutil.copy(tiny_data / "train.h5", path)
    record = read_filelist(tiny_data / "three.csv").validation("0")[1]  # the second rank's first
    set_row(path, "bands", int(open_dataset(path).rows((record,))[0]), 32_000, digest=True)
    data = {"dataset": str(path), "composite": ["(b14 - 273.15) * 1000"]}
    run = make_run("hot", data=data, train={"batch_size": 4, "precision": "fp16"})
    run.toml.write_text(run.toml.read_text().replace("num_ranks = 1", "num_ranks = 2"))
    command = [sys.executable, "-c", RANK_0, str(run.path), "-1", "SIGTERM"]
    done = subprocess.run(command, timeout=200, check=False, capture_output=True, text=True)
    assert f"output is not finite for 1 of 4 records ({record})" in done.stderr.splitlines()[-1]
    assert "train.precision to 'bf16'" in done.stderr.splitlines()[-1]


def test_a_step_needs_records_for_every_rank() -> None:
    data = {"dataset": "d", "filelist": "f"}
    for section in ({"batch_size": 3}, {"batch_size": 4, "drop_last": False}, {"batch_size": 7, "accumulate": 2}):
        with pytest.raises(RecipeError, match=r"4 ranks with . pieces each need train.drop_last = true"):
            require_ranks_fit(Recipe.model_validate({"data": data, "train": section}), 4)
    require_ranks_fit(Recipe.model_validate({"data": data, "train": {"batch_size": 4}}), 4)
