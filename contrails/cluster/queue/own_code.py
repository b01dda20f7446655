"""Running commands with a run's own frozen code, which submits, resumes and follows its jobs.

Each command is a separate process, so that an update of the clone does not change an existing run. The interface is a
command line, since that stays stable when modules and formats change.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import tomli_w

from contrails.cluster.queue.freeze import imported_code, job_environment, require_unchanged
from contrails.errors import ContrailsError, RunError
from contrails.files import read_toml, write_atomic
from contrails.runs.folder import Run

if TYPE_CHECKING:
    from contrails.runs.config import RunConfig


def is_imported(config: "RunConfig") -> bool:
    """Return whether this process imports the code frozen in a run, and can serve the run itself."""
    return imported_code() == config.code


def become(run: Run, config: "RunConfig", words: Sequence[str]) -> NoReturn:
    """Replace this process by `contrails WORDS` with the run's own code.

    Raises:
        RunError: that code was changed.
    """
    sys.stdout.flush()
    command, environment = _command(run, config, words)
    os.execve(command[0], command, environment)  # noqa: S606


def submit(
    run: Run,
    config: "RunConfig",
    folds: Sequence[str],
    folds_per_job: int = 1,
    *,
    site: str | None = None,
    after: str | None = None,
    then: str | None = None,
) -> dict[str, str]:
    """Submit folds with `contrails submit` of the run's own code; return the outcome of each as `submit_folds` does.

    Args:
        run: the existing run.
        config: its frozen configuration.
        folds: keys of the folds.
        folds_per_job: folds that train side by side in one job.
        site: name of the site for the command, which must be that of `after`.
        after: name or path of a run whose jobs must have succeeded before.
        then: the command that follows the last fold.

    Raises:
        ContrailsError: the command failed and has printed why; the class is that of its exit code.
    """
    words = ["submit", own_recipe(run), "--name", run.name, "--fold", ",".join(folds), "--json"]
    words += ["--folds-per-job", str(folds_per_job)]
    for option, value in (("--site", site), ("--after", after), ("--then", then)):
        words += [option, value] if value is not None else []
    command, environment = _command(run, config, words)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        kinds = {kind.exit_code: kind for kind in ContrailsError.__subclasses__()}
        raise kinds.get(done.returncode, RunError)(
            f"{run.name} was not submitted by the code frozen in it; see its message above"
        )
    outcomes: dict[str, str] = json.loads(done.stdout)[run.name]["folds"]
    return outcomes


def own_recipe(run: Run) -> str:
    """Return the path of the run's recipe as its own code wrote it; newer code might write it differently."""
    write_atomic(run.recipe, tomli_w.dumps(read_toml(run.toml, "a run")["recipe"]))
    return str(run.recipe)


def _command(run: Run, config: "RunConfig", words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    require_unchanged(run, config)
    environment = dict(os.environ) | job_environment(run, config.compute.num_threads)
    return [sys.executable, "-m", "contrails", *words], environment
