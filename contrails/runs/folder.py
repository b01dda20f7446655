"""The run folder; only this module composes its paths.

`<root>/<name>/` holds one experiment. All paths inside are obtained from `Run`, `Fold` and `Attempt`. Only names and
small JSON files are read, so a login node can look at a run without torch.
"""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrails.errors import RunError, StorageError, choices
from contrails.files import LONGEST_NAME, read_json, read_toml, storage, typed

if TYPE_CHECKING:
    from contrails.runs.config import RunConfig

ALL = "all"
"""Name of the fold that trains on every record that is not held out."""

_NAME = re.compile(r"\w[\w .+-]*")
_SHOWN = 40
_FOLD = re.compile(r"0|[1-9][0-9]*|all")
_WEIGHTS = re.compile(r"epoch(\d+)-a(\d+)\.safetensors")
_SNAPSHOT = re.compile(r"step(\d+)-a(\d+)-([0-9a-f]{16})\.pt")


def runs_root() -> Path:
    """Return `$CONTRAILS_RUNS`, or `runs` in the current folder.

    Raises:
        RunError: it is not a folder.
    """
    root = Path(os.environ.get("CONTRAILS_RUNS") or "runs").absolute()
    if root.is_file():
        raise RunError(
            f"expected a folder for runs at {root}, found a file; "
            + ("correct $CONTRAILS_RUNS" if os.environ.get("CONTRAILS_RUNS") else "move it, or set $CONTRAILS_RUNS")
        )
    return root


def open_run(name: str) -> "Run":
    """Return the run called `name` under the root, or at the path `name`.

    Raises:
        RunError: there is no such run; the message lists the nearest names.
    """
    for path in (runs_root() / name, Path(name).absolute()):
        if (path / "run.toml").is_file():
            return Run(path)
    known = [run.path.name for run in all_runs()]
    raise RunError(
        f"expected a run called '{name}' in {runs_root()} ($CONTRAILS_RUNS), found none; {choices(name, known)}"
    )


def all_runs() -> list["Run"]:
    """Return every run under the root, by name.

    Raises:
        RunError, StorageError: the root is not a folder, or may not be read.
    """
    root = runs_root()
    with storage(root, "read"):
        if root.exists():
            next(root.iterdir(), None)  # raises if the folder may not be read, where glob would find nothing
    return [Run(path.parent) for path in sorted(root.glob("*/run.toml"))]


def run_of(path: Path) -> "Run | None":
    """Return the run that a path lies in; None outside of runs."""
    return next((Run(folder) for folder in path.absolute().parents if (folder / "run.toml").is_file()), None)


def new_run_path(name: str) -> Path:
    """Return the folder for a new run called `name`.

    Raises:
        RunError: the name cannot be that of a folder.
    """
    _require_name("run", name)
    return runs_root() / name


def _require_name(what: str, name: str) -> None:
    size = len(name.encode())
    if size > LONGEST_NAME:
        raise RunError(f"{what} name '{name[:_SHOWN]}...': expected at most {LONGEST_NAME} bytes, found {size}")
    if not _NAME.fullmatch(name):
        raise RunError(
            f"{what} name {name!r}: expected letters, digits, space and ._+- only, beginning with a letter or digit"
        )


@dataclass(frozen=True)
class Run:
    """One experiment; `path` is its absolute folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def typed(self) -> str:
        """The run on a command line, quoted: its name if it lies under the root, else its path."""
        return shlex.quote(self.name if self.path == runs_root() / self.name else str(self.path))

    @property
    def toml(self) -> Path:
        return self.path / "run.toml"

    def read_config(self) -> "RunConfig":
        """Return the content of `run.toml`, written by this or an earlier version."""
        # imported here, so that commands that only read small files start without them
        from contrails.recipe.migrations import migrated
        from contrails.recipe.reading import parse
        from contrails.runs.config import RunConfig

        values = read_toml(self.toml, "a run")
        if isinstance(recipe := values.get("recipe"), dict):
            values["recipe"] = migrated(recipe)
        return parse(RunConfig, values, str(self.toml))

    @property
    def recipe(self) -> Path:
        """The recipe of `run.toml` in a file of its own, for commands of the run's own code."""
        return self.path / "recipe.toml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def code(self) -> Path:
        """Folder for PYTHONPATH, which holds the frozen copy of the package."""
        return self.path / "code"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def submitit(self) -> Path:
        return self.path / "submitit"

    def job_folder(self, name: str) -> Path:
        """Return submitit's folder of a job; one per job, since its file names begin with an id that may be reused."""
        return self.submitit / name

    def clock(self, job_id: str) -> Path:
        """Return the file in which a job's launcher writes the end of its walltime (see `contrails.train.stop`)."""
        return self.submitit / f"{job_id}_clock.json"

    def job_over(self, job_id: str) -> Path:
        """Return the file in which a job's launcher tells those on its other nodes that it has ended."""
        return self.submitit / f"{job_id}_over.json"

    def slot(self, name: str) -> Path:
        """Return the lock file of a slot of a machine, shared by all runs below one root."""
        return self.path.parent / ".places" / f"{name}.lock"

    @property
    def lock(self) -> Path:
        """Lock held while jobs of this run are submitted."""
        return self.path / ".submit.lock"

    @property
    def then(self) -> Path:
        """The command that follows the last fold."""
        return self.path / "then.json"

    @property
    def then_claim(self) -> Path:
        return self.path / "then.claim"

    @property
    def notes(self) -> Path:
        """Notes and leaderboard scores, added by hand."""
        return self.path / "notes.jsonl"

    @property
    def wandb_files(self) -> Path:
        """Files of wandb itself: caches, and files that offline runs refer to."""
        return self.path / "wandb"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def aggregate(self, name: str) -> Path:
        """Return the folder of the aggregation `name`.

        Raises:
            RunError: the name cannot be that of a folder.
        """
        _require_name("aggregation", name)
        return self.path / "aggregate" / name

    def aggregations(self) -> list[Path]:
        """Return the folders of the existing aggregations, by name."""
        return sorted(path.parent for path in (self.path / "aggregate").glob("*/ensemble.json"))

    def fold(self, key: str) -> "Fold":
        """Return fold `key`: a number or "all"."""
        if not _FOLD.fullmatch(key):
            raise RunError(f"fold '{key}': expected a number from 0, or '{ALL}'")
        return Fold(self.path / "folds" / key)

    def folds(self) -> list["Fold"]:
        """Return the folds that were submitted so far, in order."""
        found = [Fold(path) for path in (self.path / "folds").glob("*") if _FOLD.fullmatch(path.name)]
        return sorted(found, key=lambda fold: (fold.key == ALL, fold.key.zfill(9)))

    def create_folder(self) -> None:
        """Create the folder for the user alone, since write access to it means running code as the user."""
        with storage(self.path, "create"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)


@dataclass(frozen=True)
class Fold:
    """One training of a run."""

    path: Path

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def run(self) -> Run:
        return Run(self.path.parent.parent)

    @property
    def done(self) -> Path:
        return self.path / "done.json"

    @property
    def sync_log(self) -> Path:
        """Output of the `contrails sync` beside the job."""
        return self.path / "sync.log"

    @property
    def cancelled(self) -> Path:
        return self.path / "cancelled"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb.json"

    @property
    def composite(self) -> Path:
        """Input channels with the normalisation that was fitted for this fold."""
        return self.path / "composite.json"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    def weights_file(self, kind: str, attempt: int) -> Path:
        """Return the weights file of an attempt; `kind` is epoch0012, ema or swa."""
        return self.weights / f"{kind}-a{attempt:03d}.safetensors"

    def all_weights(self) -> list[tuple[int, int, Path]]:
        """Return (epoch, attempt, path) of the epochs' weights on disk, in that order."""
        return sorted((int(m[1]), int(m[2]), path) for path, m in _matches(self.weights, _WEIGHTS))

    def snapshot(self, step: int, attempt: int, digest: str) -> Path:
        return self.snapshots / f"step{step:08d}-a{attempt:03d}-{digest[:16]}.pt"

    def all_snapshots(self) -> list["SnapshotName"]:
        """Return the snapshots on disk, newest first: by step, then by attempt."""
        names = [SnapshotName(int(m[1]), int(m[2]), m[3], path) for path, m in _matches(self.snapshots, _SNAPSHOT)]
        return sorted(names, key=lambda name: (name.step, name.attempt), reverse=True)

    def distrusted_snapshots(self) -> list[Path]:
        return sorted(self.snapshots.glob("step*.distrusted"))

    def attempt(self, number: int) -> "Attempt":
        return Attempt(self.path / "attempts" / f"{number:03d}")

    def attempts(self) -> list["Attempt"]:
        """Return the attempts claimed so far, first to last."""
        found = [Attempt(path) for path in (self.path / "attempts").glob("*") if path.name.isdecimal()]
        return sorted(found, key=lambda attempt: attempt.number)

    def read_done(self) -> dict[str, Any] | None:
        """Return the content of `done.json`; None if the fold is not finished.

        Raises:
            StorageError: the file is damaged.
        """
        content = read_json(self.done)
        if content is None:
            return None
        found = typed(content)
        if missing := [name for name in ("attempt", "step", "epoch") if name not in found]:
            raise StorageError(
                f"{self.done} is not the result of a fold, it lacks {', '.join(missing)}: it was damaged outside of "
                f"contrails; restore it, or remove it and go on with `contrails resume {self.run.typed}`"
            )
        return {"best_dice": None} | found


@dataclass(frozen=True)
class SnapshotName:
    """The parts of a snapshot's name; the digest is the first 16 hexadecimal digits of its SHA-256."""

    step: int
    attempt: int
    digest: str
    path: Path

    @property
    def distrusted(self) -> Path:
        """New name of a snapshot that must not be resumed from (see `contrails.train.verification`)."""
        return self.path.with_name(f"{self.path.name}.distrusted")


@dataclass(frozen=True)
class Attempt:
    """One start of a fold; everything that it writes lies in its folder, or has its number in the name."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def ended(self) -> Path:
        """Why it ended, written by a process that outlived it; see `contrails.cluster.ends`."""
        return self.path / "ended.json"

    @property
    def verified(self) -> Path:
        """The result of verifying its data; see `contrails.train.verification`."""
        return self.path / "verified.json"

    @property
    def stdout(self) -> Path:
        return self.path / "stdout.log"

    @property
    def stderr(self) -> Path:
        return self.path / "stderr.log"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def telemetry(self) -> Path:
        return self.path / "telemetry.jsonl"

    @property
    def meeting(self) -> Path:
        """Where the other ranks find rank 0, until all are there; see `contrails.train.ranks.meeting`."""
        return self.path / "meeting.json"

    def node_log(self, index: int) -> Path:
        """Return the output of the ranks on the node of this index, from 1 on."""
        return self.path / f"node{index}.log"

    @property
    def bad_batch(self) -> Path:
        """The batch of the step whose loss or weights were not finite."""
        return self.path / "not_finite.safetensors"


def local_log(job_folder: Path) -> Path:
    """Return the log of submitit's local controller."""
    return job_folder.parent / "local.log"


def job_log(job_folder: Path, job_id: str, stream: str = "err") -> Path:
    """Return submitit's log of a job; `stream` is out or err."""
    return job_folder / f"{job_id}_0_log.{stream}"


def job_pickle(job_folder: Path, job_id: str) -> Path:
    """Return the pickle of the function that a job runs."""
    return job_folder / f"{job_id}_submitted.pkl"


def _matches(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in folder.glob("*"):
        if match := pattern.fullmatch(path.name):
            yield path, match
