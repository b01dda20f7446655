"""Whether the data that a fold trains on are what was written, and what becomes of what was trained where they are not.

Every job compares the rows that its folds read with their digests while it trains (see `contrails.dataset.verify`), and
no fold is finished before they all are intact. `attempts/<nnn>/verified.json` says how that ended: the step at which
all were known to be intact, or which one was not.

Damage may be as old as the last moment at which the data were known to be intact. Snapshots from after that moment are
not trusted: they are set aside as `*.distrusted`, and the next attempt goes on from an older one, or from the start. So
a fold ends in the bits of a training on intact data, or not at all.

A job looks at each row once. What is damaged later is found by the next job that reads it; what was damaged and put
back in between is not noticed.
"""

from pathlib import Path

from contrails.dataset.residency import discard_copy
from contrails.dataset.verify import Poll, RowCheck, put_back
from contrails.errors import ContrailsError, DataError, NodeError
from contrails.files import read_hint, storage, to_json, write_atomic
from contrails.runs.folder import Attempt, Fold


class Verification:
    """What an attempt finds out about its data, asked between steps."""

    def __init__(self, fold: Fold, attempt: Attempt, check: RowCheck) -> None:
        self._fold, self._attempt, self._check = fold, attempt, check
        self._is_noted = False

    @property
    def failed(self) -> bool:
        """Whether a row is not what was written."""
        return self._check.damage is not None

    def note(self, step: int) -> None:
        """Write down, once, that all rows are intact; `step` is the one that training has reached."""
        if self._check.intact and not self._is_noted:
            write_atomic(self._attempt.verified, to_json({"step": step, "damage": None}))
            self._is_noted = True

    def finish(self, poll: Poll) -> None:
        """Compare now what the background has left; `poll` may raise to stop."""
        self._check.finish(poll)

    def error(self, step: int) -> ContrailsError:
        """Set aside what is not trusted any more; return what to raise about the row that is not intact.

        Nothing writes snapshots of the attempt any more.
        """
        damage = self._check.damage
        assert damage is not None
        write_atomic(self._attempt.verified, to_json({"step": step, "damage": str(damage)}))
        distrusted, path = distrust(self._fold), damage.dataset.path
        trusted = self._fold.all_snapshots()
        goes_on = f"goes on from step {trusted[0].step}" if trusted else "begins again"
        aside = f" ({len(distrusted)} snapshots are now called *.distrusted)" if distrusted else ""
        what = f"What fold {self._fold.key} has trained since is not trusted{aside}, it {goes_on}"
        resume = f"`contrails resume {self._fold.run.typed}`"
        if damage.is_in_copy_alone:
            discard_copy(damage.dataset)
            return NodeError(
                f"the copy of {path} on this node ({damage.dataset.mapped}) is damaged, the file is not: {damage}. "
                f"{what}; on another node the same job can succeed: {resume}"
            )
        return DataError(f"{path} is damaged: {damage}. {what}; {put_back(path)}, then {resume}")


def distrust(fold: Fold) -> list[Path]:
    """Set aside the snapshots that may come from damaged data, as far as attempts have found any; return them.

    Normalisation that may have been fitted on such data goes too: it is fitted again.
    """
    intact, damage, distrusted = (0, 0), None, list[Path]()
    for attempt in fold.attempts():
        found = read_hint(attempt.verified)
        if not found:
            continue
        damage = found["damage"]
        if damage is None:
            intact = (attempt.number, found["step"])
            continue
        for name in fold.all_snapshots():
            if intact < (name.attempt, name.step) and name.attempt <= attempt.number:
                with storage(name.path, "rename"):
                    distrusted.append(name.path.replace(name.distrusted))
    if damage is not None and intact == (0, 0):
        with storage(fold.composite, "remove"):
            fold.composite.unlink(missing_ok=True)
    return distrusted
