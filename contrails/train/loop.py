"""The training loop: reads from top to bottom, stops between any two steps, goes on where it stopped."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from contrails.config import Recipe
from contrails.data.batches import Batch, Source
from contrails.data.sampling import Sampler
from contrails.draws import derived_seed
from contrails.errors import RunError, Stopped, TrainingError
from contrails.files import append_json_line, fsync, sha256
from contrails.losses import binary_cross_entropy
from contrails.models.weights import save_weights
from contrails.runs import Attempt, Fold
from contrails.train.attempt import Heart
from contrails.train.evaluate import evaluate
from contrails.train.optim import learning_rate
from contrails.train.snapshot import prune_snapshots, save_snapshot
from contrails.train.state import KeptWeights, TrainState
from contrails.train.stop import StopFlag


class Pace:
    """How fast this attempt is: only telemetry, nothing that a result depends on."""

    def __init__(self, first_step: int) -> None:
        self._first_step, self._started, self.waited_s = first_step, time.monotonic(), 0.0

    def next_batch(self, stream: Iterator[Batch]) -> Batch:
        """Return the next batch and count the time that the step waited for it."""
        since = time.monotonic()
        batch = next(stream)
        self.waited_s += time.monotonic() - since
        return batch

    def seconds_per_step(self, step: int) -> float | None:
        """Return the mean since the attempt began, validation included; None before its first step."""
        steps = step - self._first_step
        return (time.monotonic() - self._started) / steps if steps else None

    def wait_share(self) -> float:
        """Return the share of the time that steps waited for data."""
        return self.waited_s / (time.monotonic() - self._started)


@dataclass
class Loop:
    """What the training of one fold works with; all that changes is in `state`."""

    fold: Fold
    attempt: Attempt
    recipe: Recipe
    source: Source
    sampler: Sampler
    validation_rows: np.ndarray
    state: TrainState
    heart: Heart
    stop: StopFlag

    def run(self) -> None:
        """Train from the state's position to the last epoch.

        Raises:
            Stopped: a signal asked for it; the position is saved.
            TrainingError: the loss is not finite.
        """
        state, section = self.state, self.recipe.train
        per_epoch = self.sampler.steps_per_epoch
        self._pace, self._last_snapshot = Pace(state.step), time.monotonic()
        self._report(status="running")
        stream = self.source.batches(map(self.sampler.part, itertools.count(state.step)))
        while state.epoch < section.epochs:
            while state.step < (state.epoch + 1) * per_epoch:
                self._step(self._pace.next_batch(stream))
                if state.step % section.log_every == 0:
                    self._log_training()
                if time.monotonic() - self._last_snapshot >= 60 * self.recipe.snapshot.every_min:
                    self._save()
                self._poll()
            self._end_epoch()
            self._poll()

    def _step(self, batch: Batch) -> None:
        state, section = self.state, self.recipe.train
        # dropout and the like draw from torch's generator: seeded by the step, never by what ran before
        torch.manual_seed(derived_seed(self.recipe.seed, "step", self.fold.key, state.step))
        rate = learning_rate(section, state.step, self.sampler.steps_per_epoch)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        loss = binary_cross_entropy(state.model(batch.inputs), batch.target, batch.valid)
        loss.backward()  # type: ignore[no-untyped-call]
        if section.grad_clip:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), section.grad_clip)
        state.optimizer.step()
        state.loss_sum += loss.detach()
        state.loss_steps += 1
        state.step += 1

    def _end_epoch(self) -> None:
        state = self.state
        self._require_finite()
        row: dict[str, Any] = {"step": state.step, "epoch": state.epoch + 1}
        if len(self.validation_rows):
            result = evaluate(
                state.model, self.source, self.validation_rows, self.recipe.train.batch_size, poll=self._poll
            )
            dice, threshold = result.histogram.best()
            row |= {"val/loss": result.loss, "val/dice": dice, "val/threshold": threshold}
        state.epoch += 1
        append_json_line(self.attempt.metrics, row)
        self._keep_weights(row.get("val/dice"), row.get("val/threshold"))
        self._save()

    def _keep_weights(self, dice: float | None, threshold: float | None) -> None:
        """Write the weights of this epoch; what is neither recent nor among the best is forgotten."""
        state, keep = self.state, self.recipe.snapshot
        path = self.fold.epoch_weights(state.epoch, self.attempt.number)
        about = {
            "recipe": self.recipe.model_dump(mode="json"),
            "composite": self.source.composite.to_dict(),
            "num_channels": self.source.num_channels,
            "fold": self.fold.key,
            "epoch": state.epoch,
            "step": state.step,
            "dice": dice,
            "threshold": threshold,
        }
        save_weights(path, state.model.state_dict(), about)
        kept = [*state.kept, KeptWeights(state.epoch, path.name, sha256(path), dice, threshold)]
        best = sorted((k for k in kept if k.dice is not None), key=lambda k: (-(k.dice or 0), k.epoch))
        stays = {k.epoch for k in (*kept[-keep.keep_last :], *best[: keep.keep_best])}
        state.kept = [k for k in kept if k.epoch in stays]

    def _save(self) -> None:
        """Write a snapshot; what it no longer refers to is removed after it is complete."""
        self._require_finite()
        if self.heart.superseded():
            raise RunError(
                f"a later attempt trains fold {self.fold.key}; this one (number {self.attempt.path.name}) ends"
            )
        for path in (self.attempt.metrics, self.attempt.telemetry):
            if path.exists():
                fsync(path)
        save_snapshot(self.fold, self.attempt.number, self.state.state_dict())
        prune_snapshots(self.fold)
        kept = {weights.file for weights in self.state.kept}
        for epoch, _, path in self.fold.all_weights():
            if path.name not in kept and epoch <= self.state.epoch:
                path.unlink(missing_ok=True)
        self._last_snapshot = time.monotonic()
        self._report()

    def _require_finite(self) -> None:
        if not self.state.is_finite():
            raise TrainingError(
                f"fold {self.fold.key}: the loss or the weights are no longer finite near step {self.state.step}; "
                "the last snapshot is from before; lower train.lr or check the data with `contrails data verify`, "
                "under a new --name"
            )

    def _poll(self) -> None:
        """Save and leave if a stop was asked for; called between steps and between batches of validation."""
        if self.stop.reason is not None:
            self._save()
            raise Stopped(
                f"fold {self.fold.key} stopped at step {self.state.step} ({self.stop.reason}); its position is saved, "
                "submit the run again to go on"
            )

    def _log_training(self) -> None:
        state = self.state
        row = {
            "step": state.step,
            "epoch": state.step / self.sampler.steps_per_epoch,
            "train/loss": float(state.loss_sum) / state.loss_steps,
            "train/lr": learning_rate(self.recipe.train, state.step - 1, self.sampler.steps_per_epoch),
        }
        append_json_line(self.attempt.metrics, row)
        state.loss_sum.zero_()
        state.loss_steps = 0
        pace = self._pace.seconds_per_step(state.step)
        telemetry = {
            "step": state.step,
            "time": time.time(),
            "seconds_per_step": pace,
            "images_per_s": self.sampler.batch_size / pace if pace else None,
            "data_wait_share": self._pace.wait_share(),
        }
        append_json_line(self.attempt.telemetry, telemetry)
        self._report()

    def _report(self, **state: Any) -> None:
        best = self.state.best
        self.heart.update(
            step=self.state.step,
            num_steps=self.recipe.train.epochs * self.sampler.steps_per_epoch,
            epoch=self.state.epoch,
            num_epochs=self.recipe.train.epochs,
            best_dice=best.dice if best else None,
            seconds_per_step=self._pace.seconds_per_step(self.state.step),
            **state,
        )
