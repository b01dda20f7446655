"""The training loop of a fold, which can stop between any two steps and continue from there."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from contrails.draws import derived_seed
from contrails.errors import RunError, Stopped, StorageError, TrainingError
from contrails.files import append_json_line, fsync
from contrails.inputs.batches import Batch, Source, in_order
from contrails.inputs.sampling import Sampler
from contrails.metrics import Histogram
from contrails.models.adjust import has_batch_norm
from contrails.models.outputs import Outputs
from contrails.models.segmenter import autocast
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Attempt, Fold
from contrails.train.attempt import Heart
from contrails.train.evaluate import Evaluation, evaluate
from contrails.train.graphs import Forward, GraphedForward
from contrails.train.optim import course_of, epochs_without_gain, freeze, learning_rate, set_rates
from contrails.train.pace import Pace
from contrails.train.ranks.batch_norm import leave_ranks
from contrails.train.ranks.gradients import GradientSums
from contrails.train.ranks.group import Ranks
from contrails.train.saved.averages import Average
from contrails.train.saved.finite import OutputNotFiniteError, advice, require_finite
from contrails.train.saved.snapshot import SnapshotWriter
from contrails.train.saved.state import KeptWeights, TrainState
from contrails.train.saved.weights import WeightsFiles
from contrails.train.stop import StopFlag
from contrails.train.verification import Verification

_SMOOTHING = 0.98
"""Decay per step of the smoothed loss."""

_SMALLEST_SCALE = 2.0**-14
"""Loss scale below which most gradients underflow in fp16; the scale begins at 65536."""

_EXPLODED = 3.0
"""Batch norm is suspected if the validation loss exceeds this many nats and this multiple of the training loss."""

_SPARE_S = 5.0
"""Spare time before the end of the walltime, in seconds, in addition to a step and a snapshot."""

_RETRY_S = 60.0
"""Time after which a failed snapshot is tried again, in seconds."""

log = logging.getLogger(__name__)


@dataclass
class Loop:
    """The training of one fold; everything that a snapshot must restore is in `state`.

    `rebuild` returns the state of the newest snapshot, or the initial state. Only the first rank has a heart and a
    verification of the data.
    """

    fold: Fold
    attempt: Attempt
    recipe: Recipe
    source: Source
    sampler: Sampler
    training_rows: np.ndarray
    validation_rows: np.ndarray
    state: TrainState
    heart: Heart | None
    stop: StopFlag
    rebuild: Callable[[], TrainState]
    ranks: Ranks
    weights: WeightsFiles
    verification: Verification | None

    def run(self) -> None:
        """Train from the state's position to the last epoch.

        Raises:
            Stopped: a signal came or the walltime ends; the position is saved.
            NotFiniteError: the loss, the weights or the output are not finite (see `contrails.train.replay`).
        """
        self._writer = SnapshotWriter(self.fold, self.attempt.number, self._before_save, self.weights.forget)
        self._course = course_of(self.recipe.train, self.sampler.steps_per_epoch)
        self._pace, self._next_save = Pace(self.state.step), time.monotonic() + 60 * self.recipe.snapshot.every_min
        self._forward = self._forward_of(self.state.model)
        self._parameters = list(self.state.model.parameters())  # to list them takes 0.2 ms or more
        self._gradients = GradientSums(self.state.model, self.ranks)
        if self._course.warmup >= self._course.steps and self.ranks.first:
            log.warning(
                "the warm-up takes all of the %d steps, so that train.lr is not reached; lower train.warmup_epochs or "
                "train.warmup_steps, or raise train.epochs or train.steps",
                self._course.steps,
            )
        self._report(status="running")
        if self.heart is not None:
            self.heart.passed("open")
        self._epochs()

    def _epochs(self) -> None:
        state, section = self.state, self.recipe.train
        stream = self._stream()
        while state.epoch < self._course.epochs and not self._gains_no_more():
            freeze(state.model, section.freeze, state.epoch)
            while state.step < self._course.end_of(state.epoch):
                with self._pace.step():
                    self._step(self._next_batches(stream))
                if self.heart is not None and self._pace.steps(state.step) == 1:
                    self.heart.passed("first_step")
                if state.step % section.log_every == 0:
                    self._log_training()
                self._poll()
            self._end_epoch()
            self._poll()
        self._save(wait=True)

    def _stream(self) -> Iterator[Batch]:
        """Yield this rank's pieces of all steps, from the state's step on."""
        selections = self.sampler.selections(
            self.state.step, self.recipe.train.accumulate, self.ranks.number, self.ranks.count
        )
        return self.source.batches(selections)

    def _next_batches(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the pieces of one step."""
        count = min(self.recipe.train.accumulate, self.sampler.num_records(self.state.step))
        for number in range(1, count + 1):
            with self._pace.waiting():
                batch = next(stream)
            # with it, backward has collective operations of its own, whose order sums that start there could change
            if number == count and not self.recipe.train.sync_batch_norm:
                self._gradients.arm()
            yield batch

    def _step(self, batches: Iterator[Batch]) -> None:
        state, section = self.state, self.recipe.train
        self._seed("step", state.step)
        rate = learning_rate(section, state.step, self._course, state.scores)
        set_rates(state.optimizer, section, state.step, self._course, rate)
        state.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros_like(state.loss_sum)
        for batch in batches:
            total, terms = self._loss(batch)
            state.scaler.scale(total * batch.fraction).backward()  # type: ignore[no-untyped-call]
            loss += torch.stack([total, *terms.values()]).detach() * batch.fraction
        self._gradients.finish()
        self.ranks.add(loss)
        state.loss.end_step(self.ranks.add)
        # unscaled before clipping, as the norm would be that of the scaled gradient
        state.scaler.unscale_(state.optimizer)
        self._grad_norm = nn.utils.clip_grad_norm_(self._parameters, section.grad_clip or math.inf)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update_exponential(section.ema_decay)
        state.loss_sum += loss
        state.loss_smooth.lerp_(loss[0], 1 - _SMOOTHING)
        state.loss_steps += 1
        state.step += 1

    def _seed(self, purpose: str, *position: int) -> None:
        """Seed torch (for dropout and the like) by the position in training, so no draw depends on earlier ones."""
        seed = derived_seed(self.recipe.seed, purpose, self.fold.key, *position)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 0.2 ms: it seeds every kind of device
        if self.source.device.type == "cuda":
            torch.cuda.default_generators[self.source.device.index].manual_seed(seed)

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        inputs = batch.inputs
        if self.recipe.train.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        total, terms = self.state.loss(self._forward(inputs), batch)
        return total, terms

    def _autocast(self) -> torch.autocast:
        return autocast(self.source.device, self.recipe.train.precision)

    def _forward_of(self, model: nn.Module) -> Forward:
        """Return the forward pass in training, with autocast; compiled, or as a CUDA graph, if the recipe says so."""
        run: Forward = torch.compile(model) if self.recipe.train.compile else model

        def forward(inputs: torch.Tensor) -> Outputs:
            with self._autocast():
                return run(inputs)

        return GraphedForward(forward, model, self.sampler.batch_size) if self.recipe.train.cuda_graph else forward

    def _end_epoch(self) -> None:
        row, state = self._validate(), self.state
        if self.ranks.first:
            append_json_line(self.attempt.metrics, row)
            self._say(row)
            self._warn_of_batch_norm(row.get("val/loss", 0.0))
            state.kept = self.weights.of_epoch(state, row.get("val/dice"), row.get("val/threshold"))
        self._save()

    def _validate(self) -> dict[str, Any]:
        """Score the model, increment the epoch, and return the epoch's row of metrics."""
        state = self.state
        row: dict[str, Any] = {"step": state.step, "epoch": state.epoch + 1}
        if len(self.validation_rows):
            result = self._evaluate(state.model)
            dice, threshold = result.histogram.best()
            row |= {"val/loss": result.loss, "val/dice": dice, "val/threshold": threshold}
            state.scores.append(dice)
        state.epoch += 1
        if state.swa is not None and state.epoch > self._course.epochs - self.recipe.train.swa_epochs:
            state.swa.update_mean()
        return row

    def _gains_no_more(self) -> bool:
        patience = self.recipe.train.early_stopping
        return bool(patience) and epochs_without_gain(self.state.scores) >= patience

    def _save(self, *, wait: bool = False) -> None:
        """Start to write a snapshot, one at a time; `wait` for it if the process is about to end."""
        if not self.ranks.first:
            return
        if self._writer.busy and not wait:
            self._next_save = time.monotonic()  # retried by the next poll after the current one is complete
            return
        self._saved(must=False)
        self._writer.start(self.state.state_dict())
        self._next_save = time.monotonic() + 60 * self.recipe.snapshot.every_min
        if wait:
            self._saved(must=True)
        self._report()

    def _saved(self, *, must: bool) -> None:
        """Wait for the current snapshot. If that failed, raise with `must`, else log the error and retry later."""
        try:
            self._writer.wait()
        except StorageError as error:
            if must:
                raise
            log.warning("no snapshot was written, the previous one stays: %s", error)
            self._next_save = time.monotonic() + _RETRY_S

    def _before_save(self) -> None:
        self._require_newest()
        for path in (self.attempt.metrics, self.attempt.telemetry):
            if path.exists():
                fsync(path)

    def _require_newest(self) -> None:
        if self.heart is not None and self.heart.superseded():
            raise RunError(
                f"a later attempt trains fold {self.fold.key}, so this one ({self.attempt.path.name}) ends; see "
                f"`contrails status {self.fold.run.typed}`"
            )

    def averaged_weights(self) -> dict[str, KeptWeights]:
        """Write the weight averages (EMA, SWA) after training, scored like every epoch.

        SWA weights get new batch-norm statistics. Only the first rank calls this.

        Raises:
            Stopped: a stop was asked for; the averages are computed again after resuming.
            NotFiniteError: an average, its batch-norm statistics or its output are not finite.
        """
        self.ranks = Ranks()  # the other ranks have left: a collective operation would wait for ever
        averages = {"ema": self.state.ema, "swa": self.state.swa}
        return {kind: self._averaged(kind, average) for kind, average in averages.items() if average and average.count}

    def _averaged(self, kind: str, average: Average) -> KeptWeights:
        model = copy.deepcopy(self.state.model).requires_grad_(requires_grad=False)
        model.load_state_dict(average.tensors)
        leave_ranks(model)
        if kind == "swa":
            self._seed("batch_norm")
            update_bn(self._training_inputs(), model)
            require_finite(model.state_dict(), "the SWA weights with their new batch-norm statistics are not")
        dice = threshold = None
        if len(self.validation_rows):
            dice, threshold = self._evaluate(model).histogram.best()
        return self.weights.write(kind, self.state, model.state_dict(), dice, threshold)

    def _training_inputs(self) -> Iterator[torch.Tensor]:
        """Yield the training records without augmentation, in the order of the file."""
        for batch in in_order(self.source, self.training_rows, self.recipe.train.batch_size):
            yield batch.inputs
            self._poll()

    def _evaluate(self, model: nn.Module) -> Evaluation:
        """Evaluate a model on the validation records, divided among the ranks.

        Raises:
            OutputNotFiniteError: the logits of a record are not finite; raised on every rank.
        """
        self.ranks.share_buffers(model)
        rows = self.validation_rows[self.ranks.number :: self.ranks.count]
        # no poll with several ranks: it is a collective operation, and ranks can have different numbers of batches here
        poll = self._poll if self.ranks.count == 1 else lambda: None
        bad: list[tuple[tuple[str, ...], bool]] = []
        try:
            with self._autocast():
                own = evaluate(model, self.source, rows, self.recipe.train.batch_size, poll)
        except OutputNotFiniteError as error:
            bad = [(error.records, error.overflows)]
        if bad := self.ranks.collect(bad):
            records = list(chain.from_iterable(records for records, _ in bad))
            overflows = all(overflows for _, overflows in bad)
            raise OutputNotFiniteError(records, len(self.validation_rows), overflows=overflows)
        if self.ranks.count == 1:
            return own
        counts = torch.from_numpy(np.stack([own.histogram.positive, own.histogram.negative]))
        losses = torch.tensor([own.loss * float(counts.sum())], dtype=torch.float64)
        counts, losses = (self.ranks.add(tensor.to(self.source.device)).cpu() for tensor in (counts, losses))
        return Evaluation(float(losses) / max(int(counts.sum()), 1), Histogram(*counts.numpy()))

    def _poll(self) -> None:
        """Write a snapshot if one is due, and stop if asked; called between steps and between validation batches.

        Raises:
            Stopped: a stop was asked for; the position is saved.
            DataError, NodeError: the data are damaged.
        """
        self._look_at_data()
        if self._writer.finished:
            self._saved(must=False)
        # time that a stop takes: up to two steps, the snapshot that is being written, and one more snapshot
        needed_s = 2 * self._pace.longest_s + 2 * self._writer.seconds + _SPARE_S
        if self.ranks.agree(asked=self.stop.asked(needed_s)):
            self._save(wait=True)
            why = self.stop.reason or "another rank was asked to stop"
            raise Stopped(f"fold {self.fold.key} stopped at step {self.state.step} ({why}); its position is saved")
        if time.monotonic() >= self._next_save and not self._writer.busy:
            self._save()

    def _log_training(self) -> None:
        state, step = self.state, self.state.step
        per_epoch = self.sampler.steps_per_epoch
        loss, *terms = (state.loss_sum / state.loss_steps).tolist()
        state.loss_sum.zero_()
        state.loss_steps = 0
        self._require_progress()
        if not self.ranks.first:
            return
        row = {
            "step": step,
            "epoch": step / per_epoch,
            "train/loss": loss,
            **_by_name(state.loss.names, terms),
            "train/loss_smooth": self._smooth_loss(),
            "train/lr": learning_rate(self.recipe.train, step - 1, self._course, state.scores),
            "train/grad_norm": float(self._grad_norm),
        }
        append_json_line(self.attempt.metrics, row)
        append_json_line(self.attempt.telemetry, self._pace.row(step, self.sampler.batch_size, self.source.device))
        self._report()

    def _require_progress(self) -> None:
        """Check that steps still change the weights: with fp16, a step whose gradient overflows is skipped.

        Raises:
            TrainingError: every step is skipped.
        """
        scaler = self.state.scaler
        if scaler.is_enabled() and scaler.get_scale() < _SMALLEST_SCALE:
            raise TrainingError(
                f"fold {self.fold.key}: the gradient overflows in fp16 at every step near step {self.state.step}, even "
                f"with a loss scale of {scaler.get_scale():.1g}, so the weights no longer change; {advice('fp16')}, "
                "and submit under a new --name"
            )

    def _say(self, row: dict[str, Any]) -> None:
        """Log a line about an epoch."""
        left = (self._course.steps - self.state.step) * (self._pace.seconds_per_step(self.state.step) or 0)
        score = f"validation loss {row['val/loss']:.4f}, Dice {row['val/dice']:.4f}, " if "val/dice" in row else ""
        log.info(
            "epoch %d of %d, step %d: training loss %.4f, %s%s left",
            *(self.state.epoch, self._course.epochs, self.state.step, self._smooth_loss(), score),
            timedelta(seconds=round(left)),
        )

    def _warn_of_batch_norm(self, loss: float) -> None:
        """Warn if batch-norm statistics seem wrong: from too few records, or from a model that has changed since."""
        trained = self._smooth_loss()
        if loss < max(_EXPLODED, _EXPLODED * trained) or not has_batch_norm(self.state.model):
            return
        section = self.recipe.train
        norm_ranks = 1 if section.sync_batch_norm else self.ranks.count
        log.warning(
            "the validation loss is %.3g while the training loss is %.3g: the batch-norm statistics, from pieces of %d "
            "records, are probably inaccurate; set model.norm = 'group' and model.encoder_norm = 'group' (or 'frozen' "
            "with pretrained weights), raise train.batch_size, lower train.accumulate, or lower train.lr",
            *(loss, trained, self.sampler.batch_size // section.accumulate // norm_ranks),
        )

    def _smooth_loss(self) -> float:
        # bias correction, as in Adam: the average began at zero
        return float(self.state.loss_smooth) / (1 - _SMOOTHING**self.state.step)

    def _look_at_data(self) -> None:
        if self.verification is None:
            return
        if self.verification.failed:
            self._require_newest()
            self._saved(must=False)  # wait for the writer first, so that its snapshot is set aside too
            raise self.verification.error(self.state.step)
        self.verification.note(self.state.step)

    def require_intact(self, poll: Callable[[], None] | None = None) -> None:
        """Verify the remaining rows now; `poll` is called meanwhile, by default the poll between steps.

        Raises:
            DataError, NodeError: the data are damaged.
        """
        if self.verification is not None:
            self.verification.finish(poll or self._poll)
            self._look_at_data()

    def _report(self, **state: Any) -> None:
        if self.heart is None:
            return
        best = self.state.best
        self.heart.update(
            step=self.state.step,
            num_steps=self._course.steps,
            epoch=self.state.epoch,
            num_epochs=self._course.epochs,
            best_dice=best.dice if best else None,
            seconds_per_step=self._pace.seconds_per_step(self.state.step),
            **state,
        )


def _by_name(names: list[str], terms: list[float]) -> dict[str, float]:
    """Return the metrics of the parts of a loss by name; empty for a single part, which is the loss itself."""
    return {f"train/loss/{name}": term for name, term in zip(names, terms, strict=True)} if len(names) > 1 else {}
