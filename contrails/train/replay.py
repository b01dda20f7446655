"""The search for the cause of NaN or infinity, by repeating the training from the last snapshot.

Training is byte-identical when repeated, so the step, validation or average that was not finite fails again, and its
records can be named. If everything is finite the second time, the machine was at fault.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from contrails.errors import ContrailsError, NodeError, Stopped, TrainingError
from contrails.inputs.batches import Batch
from contrails.models.weights import save_tensors
from contrails.train.loop import Loop
from contrails.train.saved.averages import Average
from contrails.train.saved.finite import NotFiniteError, OutputNotFiniteError, advice, require_finite
from contrails.train.saved.state import KeptWeights

_SWITCHES = {"ema": "train.ema_decay", "swa": "train.swa_epochs"}
"""The recipe key that switches on each average."""

log = logging.getLogger(__name__)


@contextmanager
def explained(loop: Loop) -> Iterator[None]:
    """Turn a NotFiniteError of the body, which trains with `loop`, into an error that names its cause and the remedy.

    Raises:
        DataError: the data are damaged.
        TrainingError: a step, a validation or an average is not finite again when it is repeated.
        NodeError: everything is finite when it is repeated.
        Stopped: a stop was asked for while steps were repeated.
    """
    try:
        yield
    except NotFiniteError as error:
        loop.require_intact(lambda: _leave_if_asked(loop))
        raise _reason(loop, error) from error


def _reason(loop: Loop, error: NotFiniteError) -> ContrailsError:
    what, end = f"fold {loop.fold.key}: {error}", loop.state.step
    if loop.ranks.count > 1:  # the other ranks wait in a collective operation and cannot take part in a replay
        return TrainingError(f"{what}, near step {end}; {_change(loop, error)}, and submit under a new --name")
    same = {field.name: getattr(loop, field.name) for field in fields(Loop)} | {"heart": None, "state": loop.rebuild()}
    replay = _Replay(**same, end=end)
    begin = replay.state.step
    log.warning("%s near step %d; training again from step %d to find the cause", what, end, begin)
    try:
        replay.run()
        replay.averaged_weights()
    except _AtStep as found:
        ids = loop.source.dataset.record_ids
        records = [ids[row] for row in np.concatenate([batch.rows for batch in found.batches])]
        return TrainingError(
            f"{what}: it began in step {replay.state.step - 1}, with the records {', '.join(records)} (the batch is in "
            f"{_keep(loop, found.batches)}); check these records, or {_change(loop)}, and submit under a new --name"
        )
    except NotFiniteError as again:
        change = _change(loop, again)
        if replay.average is not None:
            change += f", or leave out {_SWITCHES[replay.average]}"
        return TrainingError(
            f"fold {loop.fold.key}: {again}, in {replay.doing} after step {replay.state.step}, while the loss and the "
            f"weights in training are finite; {change}, and submit under a new --name"
        )
    except _Reached:
        pass
    return _once(loop, f"{what} near step {end}, but finite when the training was repeated from step {begin}")


def _leave_if_asked(loop: Loop) -> None:
    if loop.stop.asked():
        raise Stopped(
            f"fold {loop.fold.key} stopped ({loop.stop.reason}) during the search for the cause of a loss that is not "
            f"finite; continue from its last snapshot with `contrails resume {loop.fold.run.typed}`"
        )


def _change(loop: Loop, error: NotFiniteError | None = None) -> str:
    """Return the advice on the recipe; only an OutputNotFiniteError says whether fp32 would be finite."""
    overflows = error.overflows if isinstance(error, OutputNotFiniteError) else None
    return advice(loop.recipe.train.precision, overflows=overflows)


def _once(loop: Loop, what: str) -> ContrailsError:
    if not loop.recipe.train.deterministic:
        return TrainingError(
            f"{what}: without deterministic kernels a repeated training can differ; {_change(loop)}, or set "
            "train.deterministic to true, and submit under a new --name"
        )
    return NodeError(
        f"{what}: the memory or the GPU of this node is at fault; the same job can succeed on another node: "
        f"`contrails resume {loop.fold.run.typed}`"
    )


def _keep(loop: Loop, batches: list[Batch]) -> Path:
    tensors = {
        "inputs": torch.cat([batch.inputs for batch in batches]),
        "target": torch.cat([batch.target for batch in batches]),
        "valid": torch.cat([batch.valid for batch in batches]),
    }
    save_tensors(loop.attempt.bad_batch, tensors)
    return loop.attempt.bad_batch


class _AtStep(Exception):
    """The last step left a state that is not finite."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__()
        self.batches = batches


class _Reached(Exception):
    """The repeated training has reached the step at which it failed before."""


@dataclass
class _Replay(Loop):
    """The same training up to step `end` and the validation after it, without writing metrics and snapshots."""

    end: int
    doing: str = "training"
    average: str | None = None

    def _step(self, batches: Iterator[Batch]) -> None:
        kept = list(batches)
        super()._step(iter(kept))
        try:
            require_finite(self.state.state_dict())
        except NotFiniteError as error:
            raise _AtStep(kept) from error

    def _end_epoch(self) -> None:
        self.doing = f"the validation of epoch {self.state.epoch + 1}"
        self._validate()
        self.doing = "training"

    def _averaged(self, kind: str, average: Average) -> KeptWeights:
        self.doing, self.average = f"the validation of the {kind.upper()} weights", kind
        return super()._averaged(kind, average)

    def _log_training(self) -> None:
        """Write no metrics, and keep the running sums."""

    def _save(self, *, wait: bool = False) -> None:
        """Write no snapshot."""

    def _poll(self) -> None:
        _leave_if_asked(self)
        state, course = self.state, self._course
        # the validation of an epoch belongs to its last step
        is_whole = state.step < course.end_of(state.epoch) or state.epoch == course.epochs
        if state.step >= self.end and is_whole and self.average is None:
            raise _Reached
