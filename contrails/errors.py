"""The project's exceptions: one family, each kind with the exit code that the command line returns.

A message says what was expected, what was found, where (file, key, record) and what to do next.
jobs/sites/README.md documents the codes; 1 is a bug (a traceback), 2 is click's code for wrong usage.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_MOST_SHOWN, _FIRST = 16, 3


class ContrailsError(Exception):
    """Anything that a user can cause or mend.

    `exit_code` is what the process returns; `code` is the name of the kind, which no version changes.
    """

    exit_code = 1
    code = "error"


class RecipeError(ContrailsError):
    """A recipe, a site profile or an override that is wrong in itself."""

    exit_code = 3
    code = "recipe"


class DataError(ContrailsError):
    """Raw records, a dataset file or a file list that is wrong, damaged or does not fit."""

    exit_code = 4
    code = "data"


class RunError(ContrailsError):
    """A run folder that is missing, belongs to another recipe, or is in use."""

    exit_code = 5
    code = "run"


class ClusterError(ContrailsError):
    """A scheduler that refuses, does not answer or cannot be found."""

    exit_code = 6
    code = "scheduler"


class LimitReached(ClusterError):
    """A limit of the site on queued jobs: the same is taken once others have ended."""

    code = "limit"


class StorageError(ContrailsError):
    """The file system: no space, no permission, an I/O error."""

    exit_code = 7
    code = "storage"


class TrainingError(ContrailsError):
    """A training that cannot go on: a loss that is not finite, a model that does not fit."""

    exit_code = 8
    code = "training"


class GpuMemoryError(TrainingError):
    """A model, or a step of it, that does not fit in the GPU's memory."""

    exit_code = 11
    code = "gpu_memory"


class NodeError(ContrailsError):
    """A node without what the job asked for; the same job can succeed elsewhere."""

    exit_code = 9
    code = "node"


class TrackingError(ContrailsError):
    """Weights & Biases refuses, or does not answer in time; nothing is lost, the same command again goes on."""

    exit_code = 10
    code = "tracking"


class Stopped(ContrailsError):
    """Not an error: the work stopped between two steps and its position is saved (sysexits' EX_TEMPFAIL)."""

    exit_code = 75
    code = "stopped"


def choices(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest of `known` to `name`, then all of them.

    >>> choices("ashh", ["ash", "bands"])
    "did you mean 'ash'? Known: ash, bands"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names) or '(none)'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the nearest of `known` to `name`, where there are too many to list them all.

    >>> nearest("resnet81", ["resnet18", "resnet101", "vgg11"])
    "did you mean 'resnet18' or 'resnet101'?"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    if not close:
        return f"expected one of {len(names)} names, such as '{names[0]}'"
    return f"did you mean {' or '.join(repr(other) for other in close)}?"


def names_in(names: Sequence[str]) -> str:
    """Return names for a message: all of a few, the first of many."""
    if len(names) <= _MOST_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[:_FIRST])} and {len(names) - _FIRST} more"
