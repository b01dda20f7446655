"""Whether all attempts of a fold ran on the same kind of machine, with the same code and libraries.

Only then is the result of an interrupted fold byte-identical to that of an undisturbed one.
"""

from typing import Any

from contrails.files import read_hint
from contrails.runs.folder import Fold

_DECISIVE = ("code", "recipe", "device", "num_threads", "num_nodes", "cpu", "simd", "gpu", "driver", "python")


def differences(fold: Fold) -> tuple[str, ...]:
    """Return how later attempts that trained differ from the first one; empty if the result is exact."""
    owners = [(a.number, read_hint(a.job)) for a in fold.attempts() if read_hint(a.state).get("step")]
    known = [(number, _decisive(owner)) for number, owner in owners if owner]
    if not known:
        return ()
    first = known[0][1]
    found: list[str] = []
    for number, values in known[1:]:
        shared = sorted(first.keys() & values.keys())  # older versions recorded fewer of them
        differing = [name for name in shared if values[name] != first[name]]
        found += [f"attempt {number}: {_difference(name, str(values[name]), str(first[name]))}" for name in differing]
    return tuple(found)


def _difference(name: str, value: str, first: str) -> str:
    if name == "simd":
        unshared = " ".join(sorted(set(value.split()) ^ set(first.split())))
        return f"{name} {_short(unshared)} on only one of the two machines"
    return f"{name} {_short(value)}, was {_short(first)}"


def _decisive(owner: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: owner[name] for name in _DECISIVE if name in owner}
    versions: dict[str, Any] = owner.get("versions", {})
    return found | versions


def _short(value: str) -> str:
    return value[:40]
