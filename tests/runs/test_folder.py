"""The run folder: names that cannot be mistaken, and everything found again that was put there."""

import stat
from pathlib import Path

import pytest

from contrails.errors import RunError
from contrails.files import write_atomic
from contrails.runs.folder import Attempt, Fold, Run, SnapshotName, all_runs, new_run_path, open_run, runs_root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def run(root: Path) -> Run:
    run = Run(new_run_path("first"))
    run.create_folder()
    write_atomic(run.toml, "")
    return run


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_root_is_the_environment_s_or_beside_you(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTRAILS_RUNS", "elsewhere")
    assert runs_root() == tmp_path / "elsewhere"
    for unset in ("", None):
        monkeypatch.setenv("CONTRAILS_RUNS", "") if unset == "" else monkeypatch.delenv("CONTRAILS_RUNS")
        assert runs_root() == tmp_path / "runs"


def test_a_run_is_opened_by_name_or_path(run: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_run("first") == run
    assert open_run(str(run.path)) == run
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path / "other"))
    monkeypatch.chdir(root)
    assert open_run("first") == run
    assert open_run("./first").name == "first"


def test_a_run_that_is_not_there_names_the_nearest(run: Run, root: Path) -> None:
    write_atomic(root / "second" / "run.toml", "")
    (root / "no-run").mkdir()
    assert [known.name for known in all_runs()] == ["first", "second"]
    with pytest.raises(RunError) as caught:
        open_run("frist")
    assert str(caught.value) == (
        f"expected a run called 'frist' in {root} ($CONTRAILS_RUNS), found none; "
        "did you mean 'first'? Known: first, second"
    )


def test_without_a_root_there_is_no_run(root: Path) -> None:
    assert all_runs() == []
    with pytest.raises(RunError, match=r"found none; Known: \(none\)"):
        open_run("")


@pytest.mark.parametrize("name", ["a", "default-s3", "x_1.5+b", "Überflug 2", "7"])
def test_a_name_is_a_folder_of_the_root(name: str, root: Path) -> None:
    assert new_run_path(name) == root / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", ".hidden", "-f", "+x", " a", "a\n", "$(rm)", "a;b", "a'b", "a\\b", "*"]
)
def test_a_name_that_is_none_is_refused(name: str, run: Run) -> None:
    with pytest.raises(RunError, match=r"expected letters, digits, space and \._\+- only, beginning with a letter"):
        new_run_path(name)
    with pytest.raises(RunError, match=r"^aggregation name ['\"].*['\"]: expected letters, digits, space"):
        run.aggregate(name)


@pytest.mark.parametrize("name", ["a" * 201, "ü" * 101])
def test_a_name_is_no_longer_than_file_systems_allow(name: str, run: Run) -> None:
    message = f"name '{name[:40]}...': expected at most 200 bytes, found 20[12]$"
    with pytest.raises(RunError, match=f"^run {message}"):
        new_run_path(name)
    with pytest.raises(RunError, match=f"^aggregation {message}"):
        run.aggregate(name)
    assert run.aggregate("ü" * 100).name == "ü" * 100


def test_a_run_is_its_user_s_alone(run: Run) -> None:
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    run.create_folder()


def test_folds_are_numbers_or_all_in_order(run: Run) -> None:
    assert run.folds() == []
    for key in ("10", "all", "2", "0"):
        run.fold(key).path.mkdir(parents=True)
    for other in ("00", "-1", "x", ".2", "all2"):
        (run.path / "folds" / other).mkdir()
    assert [fold.key for fold in run.folds()] == ["0", "2", "10", "all"]
    assert run.fold("2").run == run


@pytest.mark.parametrize("key", ["-1", "01", "x", "", "1.0", "..", "²", "１", "all "])
def test_a_fold_that_is_none_is_refused(key: str, run: Run) -> None:
    with pytest.raises(RunError, match=f"fold '{key}': expected a number from 0, or 'all'"):
        run.fold(key)


def test_attempts_are_found_in_order(run: Run) -> None:
    fold = run.fold("0")
    assert fold.attempts() == []
    for number in (2, 1000, 1, 11):
        fold.attempt(number).path.mkdir(parents=True)
    (fold.path / "attempts" / "tmp").mkdir()
    assert [attempt.number for attempt in fold.attempts()] == [1, 2, 11, 1000]
    assert fold.attempt(7) == Attempt(fold.path / "attempts" / "007")


def test_snapshots_are_found_newest_first(run: Run) -> None:
    fold = run.fold("all")
    assert fold.all_snapshots() == []
    digest = "0123456789abcdef" * 4
    paths = [fold.snapshot(step, attempt, digest) for step, attempt in ((90, 1), (100, 1), (100, 2), (100_000_000, 1))]
    touch(*paths, fold.snapshots / ".step00000001-a001-0123456789abcdef.pt.1-2.tmp", fold.snapshots / "notes")
    assert [(name.step, name.attempt) for name in fold.all_snapshots()] == [
        (100_000_000, 1),
        (100, 2),
        (100, 1),
        (90, 1),
    ]
    assert fold.all_snapshots()[2] == SnapshotName(100, 1, digest[:16], paths[1])


def test_weights_are_found_in_order(run: Run) -> None:
    fold = run.fold("0")
    assert fold.all_weights() == []
    wanted = [(1, 1), (1, 2), (2, 1), (10_000, 1)]
    touch(
        *(fold.weights_file(f"epoch{epoch:04d}", attempt) for epoch, attempt in reversed(wanted)),
        fold.weights / "x.safetensors",
    )
    assert [(epoch, attempt) for epoch, attempt, _ in fold.all_weights()] == wanted
    assert fold.all_weights()[0][2] == fold.weights_file("epoch0001", 1)


def test_done_is_read_where_it_is(run: Run) -> None:
    fold = run.fold("0")
    assert fold.read_done() is None
    write_atomic(fold.done, '{"attempt": 2, "step": 4, "epoch": 1}')
    assert fold.read_done() == {"attempt": 2, "step": 4, "epoch": 1, "best_dice": None}


def test_every_path_lies_in_the_folder_of_the_run() -> None:
    """The layout that the README promises: nobody else composes it."""
    run = Run(Path("/runs/x"))
    fold = Fold(Path("/runs/x/folds/0"))
    attempt = fold.attempt(1)
    found = {
        str(path.relative_to(run.path))
        for owner in (run, fold, attempt)
        for name, value in vars(type(owner)).items()
        if isinstance(value, property) and isinstance(path := getattr(owner, name), Path)
    }
    assert found >= {
        "run.toml",
        "provenance.json",
        "code",
        "journal.jsonl",
        "submitit",
        "folds/0/done.json",
        "folds/0/cancelled",
        "folds/0/wandb.json",
        "folds/0/snapshots",
        "folds/0/weights",
        "folds/0/attempts/001/job.json",
        "folds/0/attempts/001/state.json",
        "folds/0/attempts/001/metrics.jsonl",
        "folds/0/attempts/001/telemetry.jsonl",
        "folds/0/attempts/001/stdout.log",
        "folds/0/attempts/001/stderr.log",
    }
    assert run.aggregate("default") == run.path / "aggregate" / "default"
