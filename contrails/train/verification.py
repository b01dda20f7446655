"""Verification of a fold's data during training, and the snapshots that are distrusted after damage.

Every job compares the rows that its folds read with their digests while it trains (see `contrails.dataset.verify`). A
fold finishes only after all its rows were found intact. `attempts/<nnn>/verified.json` holds the result: the step at
which all rows were known to be intact, or the damaged row.

The damage can have happened at any time since the data were last known to be intact. Snapshots written since then are
not trusted: they are renamed to `*.distrusted`, and the next attempt resumes from an older snapshot or from the start.
So a fold ends with the weights of a training on intact data, or not at all.

A job checks each row once. Damage that happens later is found by the next job that reads the row; damage that was
repaired in between is not noticed.
"""

from pathlib import Path

from contrails.dataset.residency import discard_copy
from contrails.dataset.verify import Poll, RowCheck, put_back
from contrails.errors import ContrailsError, DataError, NodeError
from contrails.files import read_hint, storage, to_json, write_atomic
from contrails.runs.folder import Attempt, Fold


class Verification:
    """The result of the background check of an attempt's data, polled between steps."""

    def __init__(self, fold: Fold, attempt: Attempt, check: RowCheck) -> None:
        self._fold, self._attempt, self._check = fold, attempt, check
        self._is_noted = False

    @property
    def failed(self) -> bool:
        """Whether a damaged row was found."""
        return self._check.damage is not None

    def note(self, step: int) -> None:
        """Write `verified.json` once all rows are known to be intact; `step` is the current step."""
        if self._check.intact and not self._is_noted:
            write_atomic(self._attempt.verified, to_json({"step": step, "damage": None}))
            self._is_noted = True

    def finish(self, poll: Poll) -> None:
        """Compare the remaining rows now; `poll` may raise to stop."""
        self._check.finish(poll)

    def error(self, step: int) -> ContrailsError:
        """Set distrusted snapshots aside and return the error to raise about the damaged row.

        No snapshot of the attempt may be written during or after this call.
        """
        damage = self._check.damage
        assert damage is not None
        write_atomic(self._attempt.verified, to_json({"step": step, "damage": str(damage)}))
        distrusted, path = distrust(self._fold), damage.dataset.path
        trusted = self._fold.all_snapshots()
        goes_on = f"resumes from step {trusted[0].step}" if trusted else "starts again"
        aside = f" ({len(distrusted)} renamed to *.distrusted)" if distrusted else ""
        what = f"The snapshots of fold {self._fold.key} since then are not trusted{aside}; it {goes_on}"
        resume = f"`contrails resume {self._fold.run.typed}`"
        if damage.is_in_copy_alone:
            discard_copy(damage.dataset)
            return NodeError(
                f"the copy of {path} on this node ({damage.dataset.mapped}) is damaged, the file is not: {damage}. "
                f"{what}; the same job can succeed on another node: {resume}"
            )
        return DataError(f"{path} is damaged: {damage}. {what}; {put_back(path)}, then {resume}")


def distrust(fold: Fold) -> list[Path]:
    """Rename the snapshots that may come from damaged data, as `verified.json` of all attempts says; return the paths.

    If the data were never known to be intact, the fitted normalisation is removed too, to be fitted again.
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
