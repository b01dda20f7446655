"""`contrails submit --dry-run`: the checks of a real submission, what would happen to each fold, and no trace left."""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.cli.train.submit import _command
from contrails.cluster.schedulers.sites import find_site
from contrails.cluster.submit.create import create_run
from contrails.errors import ContrailsError, DataError, RecipeError, RunError
from contrails.files import to_json, write_atomic
from contrails.recipe.recipe import load_recipe, to_toml
from contrails.runs.folder import Run


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of the recipe recipe.toml in the current folder, under the runs' root."""
    run = make_run()
    (tmp_path / "recipe.toml").write_text(to_toml(run.read_config().recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path))
    return run


def dry_run(*arguments: str) -> None:
    cli(["submit", "recipe.toml", "--dry-run", *arguments], standalone_mode=False)


def finish(run: Run, key: str) -> None:
    run.fold(key).path.mkdir(parents=True)
    write_atomic(run.fold(key).done, to_json({"attempt": 1, "step": 8, "epoch": 2, "best_dice": 0.5}))


def test_it_prints_a_recipe_with_its_site_and_leaves_no_trace(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run("--name", "new", "--folds", "3", "--folds-per-job", "2", "-o", "seed=5")
    text = capsys.readouterr().out
    assert text.splitlines()[:4] == [
        f"# {run.path.parent}/new: a new run",
        "#   fold 0: not submitted, would be submitted in job 1",
        "#   fold 1: not submitted, would be submitted in job 1",
        "#   fold 2: not submitted, would be submitted in job 2",
    ]
    shown = tomllib.loads(text)
    assert shown["seed"] == 5
    assert shown["site"]["name"] == "local"
    assert not (run.path.parent / "new").exists()


@pytest.mark.usefixtures("run")
def test_folds_of_several_nodes_share_no_job(tmp_path: Path) -> None:
    (tmp_path / "jobs/sites").mkdir(parents=True)
    (tmp_path / "jobs/sites/two.toml").write_text('scheduler = "slurm"\nnum_nodes = 2\nnum_ranks = 2\n')
    with pytest.raises(RecipeError, match="--folds-per-job 3: expected 1 at the site two, where a fold has 2 nodes of"):
        dry_run("--name", "new", "--folds", "3", "--folds-per-job", "3", "--site", "two")


def test_it_says_which_folds_of_a_run_would_go_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    finish(run, "1")
    dry_run("--name", "run", "--folds", "3", "--json")
    shown = json.loads(capsys.readouterr().out)["run"]
    assert shown["path"] == str(run.path)
    assert shown["folds"] == {
        "0": "not submitted, would be submitted in job 1",
        "1": "done, stays as it is",
        "2": "not submitted, would be submitted in job 2",
    }
    assert shown["recipe"]["train"]["epochs"] == 3
    assert shown["site"] == {"name": "local"}
    assert [fold.key for fold in run.folds()] == ["1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.composite=ashh", "did you mean 'ash'"),
        ("data.frames=[3]", "expected frames of"),
        ("data.crop=33", "records of .*, 32 x 32 pixels"),
        ("data.dataset=none.h5", "expected a dataset file at .*none.h5"),
        ("model.encoder=resnet19", "model.encoder = 'resnet19': did you mean 'resnet18'"),
        ("model.architecture=Unett", "model.architecture = 'Unett': did you mean 'Unet'"),
        ("init.run=missing", "expected a run called 'missing'"),
    ],
)
def test_it_refuses_what_a_submission_refuses(run: Run, override: str, message: str) -> None:
    with pytest.raises(ContrailsError, match=message):
        dry_run("--name", "new", "-o", override)
    assert not (run.path.parent / "new").exists()


def test_pretrained_weights_are_needed_and_frozen_by_their_digest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = run.path.parent / "weights" / "tu-test_resnet.r160_in1k.safetensors"
    monkeypatch.setenv("CONTRAILS_WEIGHTS", str(weights.parent))
    for arguments in ((), ("--dry-run",)):
        with pytest.raises(DataError, match="no such file; run `contrails weights fetch tu-test_resnet` on"):
            cli(["submit", "recipe.toml", "--name", "new", "-o", "model.pretrained=default", *arguments],
                standalone_mode=False)  # fmt: skip
        assert not (run.path.parent / "new").exists()
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    dry_run("--name", "new", "-o", "model.pretrained=default")
    recipe = load_recipe(Path("recipe.toml"), ["model.pretrained=default"])
    new, _ = create_run(recipe, find_site("local"), "new")
    frozen = new.read_config().pretrained
    assert frozen is not None
    assert (frozen.path, frozen.sha256) == (weights, hashlib.sha256(b"weights").hexdigest())


def test_it_refuses_a_run_of_another_recipe(run: Run) -> None:
    with pytest.raises(RunError, match=r"epochs = 4, was 3\); give --name .*: `contrails resume run`"):
        dry_run("--name", "run", "-o", "train.epochs=4")


def test_paths_of_another_recipe_are_shown_as_paths(run: Run) -> None:
    other = run.path.parent / "other.h5"
    other.write_bytes(run.read_config().recipe.data.dataset.read_bytes())
    with pytest.raises(RunError, match=r"\(data.dataset = /\S+/other.h5, was /\S+/train.h5\)"):
        dry_run("--name", "run", "-o", f"data.dataset={other}")


def test_it_imports_nothing_heavy(run: Run) -> None:
    code = (
        "import sys; from contrails.cli.main import cli; cli(sys.argv[1:], standalone_mode=False); "
        "sys.exit(', '.join({'torch', 'timm', 'segmentation_models_pytorch'} & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", code, "submit", "recipe.toml", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("", "expected 'aggregate', optionally followed by its options"),
        ("predict", "expected 'aggregate', optionally followed by its options"),
        ("aggregate 'x", "No closing quotation"),
        ("aggregate --nonsense", "No such option"),
        ("aggregate --help", "expected a command that does something"),
        ("aggregate --data missing.h5", "expected a dataset file at missing.h5, found none"),
        ("aggregate --data {data} --sample missing.csv", "missing.csv"),
        ("aggregate --sample missing.csv", "give --data too"),
        ("aggregate --tta d5", "expected words joined by +"),
        ("aggregate --merge meen", "did you mean 'mean'"),
        ("aggregate --weights bets", "did you mean 'best'"),
        ("aggregate --gate none", "expected a run called 'none'"),
        ("aggregate none", "expected a run called 'none'"),
        ("aggregate --shard 3/2", "expected I/N"),
        ("aggregate --site local", "--site is for --jobs"),
    ],
)
def test_what_cannot_follow_is_refused_before_anything_is_made(
    run: Run, then: str, message: str, arguments: tuple[str, ...]
) -> None:
    said = then.format(data=run.read_config().recipe.data.dataset)
    with pytest.raises(click.UsageError, match=r"^--then '") as refused:
        cli(["submit", "recipe.toml", "--name", "new", "--then", said, *arguments], standalone_mode=False)
    assert f"--then '{said}': " in refused.value.format_message()
    assert message in refused.value.format_message()
    assert not (run.path.parent / "new").exists()


def test_what_follows_is_asked_for_with_absolute_paths(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.read_config().recipe.data.dataset.parent)
    words = _command("aggregate run --data train.h5 --tta d4 --fit-weights", run.path)
    assert words[:3] == ["aggregate", str(run.path), str(run.path)]
    options = words[3:]
    assert options[options.index("--data") + 1] == str(Path("train.h5").absolute())
    assert options[options.index("--tta") + 1] == "d4"
    assert "--fit-weights" in options
