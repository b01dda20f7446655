"""The files of a submission, before and after it has an id.

Their names begin with a unique stem, which is also on qsub's command line, so that a job whose id was lost can be found
by it.
"""

import math
import shlex
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import DelayedSubmission, JobPaths

from contrails.errors import ClusterError
from contrails.files import fsync, storage
from contrails.submitit_pbs import client, script
from contrails.submitit_pbs.after import Unfulfilled, depends_on, links_to_wait_for

PYTHON = shlex.quote(sys.executable)


@dataclass(frozen=True)
class Staged:
    """The input of qsub: options, a script, and the pickles that the job will look for."""

    stem: str
    spec: script.Spec
    script: Path
    pickles: list[Path]

    def submit(self, options: Sequence[str] = (), patience_s: float | None = None) -> str:
        """Submit the job with additional options, and return its id; see `client.submit`.

        Raises:
            Refused, Unanswered: PBS refused or did not answer.
            ClusterError: a job that must succeed first has not succeeded.
        """
        try:
            links = links_to_wait_for(self.spec.after)
        except Unfulfilled as error:
            raise ClusterError(f"{error}; see its logs, and submit that job again first") from error
        return client.submit(
            [*self.spec.qsub, *options, *depends_on(links)],
            str(self.script),
            name=self.spec.name,
            marker=self.stem,
            patience_s=patience_s,
        )


def stage(
    folder: Path,
    group: Sequence[DelayedSubmission],
    parameters: script.Parameters,
    chain: str,
    *,
    max_num_timeout: int = 0,
    python: str = PYTHON,
) -> Staged:
    """Write the files of one job, or of an array.

    Args:
        folder: submitit's folder; created for the user alone.
        group: the callables, one per element of an array.
        parameters: checked parameters.
        chain: held, at_warning or none.
        max_num_timeout: how often a callable with checkpoint() may reach the walltime.
        python: shell command of the interpreter.

    Raises:
        StorageError: the files cannot be written.
    """
    own, stem = JobPaths.get_first_id_independent_folder(folder), uuid.uuid4().hex
    spec = script.make_spec(parameters, own, chain)
    path, pickles = own / f"{stem}.sh", [own / f"{stem}_{number}.pkl" for number in range(len(group))]
    with storage(own, "create"):
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        for delayed, pickle in zip(group, pickles, strict=True):
            delayed.set_timeout(math.ceil(parameters.walltime_s / 60), max_num_timeout)
            delayed.dump(pickle)
            fsync(pickle)
        path.write_text(render(folder, spec, parameters, python))
        fsync(path)
    return Staged(stem, spec, path, pickles)


def render(folder: Path, spec: script.Spec, parameters: script.Parameters, python: str = PYTHON) -> str:
    """Return the script of a job, which runs a link on submitit's folder."""
    command = f"{python} -u -m contrails.submitit_pbs.in_job.link {shlex.quote(str(folder))}"
    return script.render(spec, command, parameters.setup)


def name_script(folder: Path, pickle: Path, first_id: str) -> None:
    """Rename the script of a job, or of an array, to the name that its links look for; may be repeated.

    Args:
        folder: submitit's folder.
        pickle: any pickle of the submission.
        first_id: id of the job, or of the array's first element.
    """
    path = pickle.with_name(f"{pickle.stem.rpartition('_')[0]}.sh")
    if path.exists():
        JobPaths(folder, first_id).move_temporary_file(path, "submission_file")


def name_pickle(folder: Path, pickle: Path, job_id: str) -> None:
    """Rename a pickle to the name that its job waits for; may be repeated."""
    if pickle.exists():
        JobPaths(folder, job_id).move_temporary_file(pickle, "submitted_pickle")
