"""The project's exceptions: one base class, and one class for each exit code of the command line.

A message says what was expected, what was found, where (file, key, record) and what to do next.
jobs/sites/README.md documents the exit codes. 1 means a bug (a traceback); 2 is click's code for wrong usage.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_MOST_SHOWN, _FIRST = 16, 3


class ContrailsError(Exception):
    """An error that the user can cause or fix.

    `exit_code` is the exit code of the process; `code` is the name of the kind, which is the same in every version.
    """

    exit_code = 1
    code = "error"


class RecipeError(ContrailsError):
    """A recipe, a site profile or an override is invalid."""

    exit_code = 3
    code = "recipe"


class DataError(ContrailsError):
    """Raw records, a dataset file or a file list is invalid, damaged or does not match."""

    exit_code = 4
    code = "data"


class RunError(ContrailsError):
    """A run folder is missing, belongs to another recipe, or is in use."""

    exit_code = 5
    code = "run"


class ClusterError(ContrailsError):
    """The scheduler refuses a request, does not answer or cannot be found."""

    exit_code = 6
    code = "scheduler"


class LimitReached(ClusterError):
    """A limit of the site on queued jobs is reached; the same job is accepted once other jobs have ended."""

    code = "limit"


class StorageError(ContrailsError):
    """The file system fails: no space, no permission, an I/O error."""

    exit_code = 7
    code = "storage"


class TrainingError(ContrailsError):
    """Training cannot continue: the loss is not finite, or the model does not fit."""

    exit_code = 8
    code = "training"


class GpuMemoryError(TrainingError):
    """A model, or one step of its training, does not fit in the GPU's memory."""

    exit_code = 11
    code = "gpu_memory"


class NodeError(ContrailsError):
    """The node lacks what the job asked for; the same job can succeed on another node."""

    exit_code = 9
    code = "node"


class RankError(ContrailsError):
    """Another process that trains the same fold has ended; the same job can succeed again."""

    exit_code = 12
    code = "rank"


class TrackingError(ContrailsError):
    """Weights & Biases refuses or does not answer in time; nothing is lost, the same command continues."""

    exit_code = 10
    code = "tracking"


class Stopped(ContrailsError):
    """Not an error: the work stopped between two steps and its position is saved (sysexits' EX_TEMPFAIL)."""

    exit_code = 75
    code = "stopped"


def choices(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known name nearest to `name`, then all known names.

    >>> choices("ashh", ["ash", "bands"])
    "did you mean 'ash'? Known: ash, bands"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names) or '(none)'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest of `known` to `name`, where all of them are too many to list.

    >>> nearest("resnet81", ["resnet18", "resnet101", "vgg11"])
    "did you mean 'resnet18' or 'resnet101'?"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    if not close:
        return f"expected one of {len(names)} names, such as '{names[0]}'"
    return f"did you mean {' or '.join(repr(other) for other in close)}?"


def names_in(names: Sequence[str]) -> str:
    """Return names as text for a message: all of them if they are few, else the first and the number of the others."""
    if len(names) <= _MOST_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[:_FIRST])} and {len(names) - _FIRST} more"
