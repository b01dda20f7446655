"""Which further arguments of sbatch and qsub a site profile may set: `scheduler_arguments`."""

import re
from collections.abc import Mapping

_OURS = {
    "array", "begin", "chdir", "cpus-per-task", "dependency", "error", "exclude", "export", "gpus-per-node", "input",
    "job-name", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal",
    "time", "wrap",
}  # fmt: skip
"""Arguments of sbatch that contrails sets itself."""

_QSUB = {"M", "P", "a", "l", "m", "p", "v"}
"""Options of qsub that a profile may set: mail address, project, start time, resources of the whole job, mail events,
priority, variables for hooks of the server."""

_OUR_RESOURCES = {"mem", "ncpus", "ngpus", "nodes", "select", "walltime"}
"""Resources of PBS that contrails requests itself."""

_VARIABLES = re.compile(r"""[A-Za-z_]\w*=[^\s,'"\\]*(,[A-Za-z_]\w*=[^\s,'"\\]*)*""")
"""What qsub -v takes without changing it: it strips quotes, doubles backslashes and splits at commas."""


def require_for_sbatch(arguments: Mapping[str, object]) -> None:
    """Check the names of further arguments of sbatch.

    Raises:
        ValueError: one is not a long name, or contrails sets it itself.
    """
    for name in arguments:
        if not name.replace("-", "").isalnum() or not name.islower() or name.startswith("-"):
            raise ValueError(f"'{name}': expected the long name of an argument without dashes, such as reservation")
        if name in _OURS:
            raise ValueError(f"'{name}' is set by contrails itself; see the other keys of a site profile")


def require_for_qsub(arguments: Mapping[str, object]) -> None:
    """Check further options of qsub, which have one letter.

    Raises:
        ValueError: an option is not allowed, requests what contrails requests itself, or would be changed by qsub.
    """
    if wrong := [name for name in arguments if name not in _QSUB]:
        raise ValueError(
            f"scheduler_arguments: expected an option of qsub ({', '.join(sorted(_QSUB))}), found '{wrong[0]}'"
        )
    job_wide, variables = str(arguments.get("l", "")), arguments.get("v")
    if ours := sorted(_OUR_RESOURCES & {part.partition("=")[0] for part in job_wide.split(",")}):
        raise ValueError(
            f"l = '{job_wide}': expected a resource of the whole job, such as place=exclhost, found {ours[0]}, "
            "which contrails sets itself from the other keys"
        )
    if variables is not None and not _VARIABLES.fullmatch(str(variables)):
        raise ValueError(
            f"v = '{variables}': expected NAME=VALUE, with commas between several, and no quotes, blanks or "
            "backslashes; variables for the job itself belong in its environment script"
        )
