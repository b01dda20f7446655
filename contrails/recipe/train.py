"""The training in a recipe: batches, optimiser, schedule, averages, and what is kept on disk."""

import math
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from contrails.recipe.base import Section, is_asked


class TrainSection(Section):
    """The optimiser and its schedule."""

    steps: int | None = Field(None, ge=1, description="length in steps, whatever the size of the fold; empty: epochs")
    epochs: int | None = Field(
        20, ge=1, validate_default=True, description="passes over the training records; not used where steps is set"
    )
    batch_size: int = Field(16, ge=1, description="records a step")
    accumulate: int = Field(1, ge=1, description="pieces that a batch passes through the model in, to save memory")
    drop_last: bool = Field(True, description="leave out the last incomplete batch of an epoch")
    positive_share: float | None = Field(
        None, gt=0, lt=1, description="share of positive records in every batch; empty: as they come"
    )
    balance_groups: bool = Field(False, description="draw every place equally often, however many records show it")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or stochastic gradient descent")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="momentum of sgd; one_cycle moves it (and AdamW's) between 0.95 and 0.85"
    )
    nesterov: bool = Field(True, description="Nesterov's form of the momentum of sgd")
    weight_decay: float = Field(1e-2, ge=0, description="weight decay, decoupled with adamw")
    decay_on: Literal["weights", "all"] = Field(
        "weights", description="what weight decay acts on: weights without norms and biases, or all parameters"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "one_cycle", "cyclical", "plateau", "constant"] = Field(
        "cosine", description="course of the learning rate after the warm-up, step by step"
    )
    min_lr: float = Field(0.0, ge=0, description="where cosine ends and cyclical turns")
    cycle_epochs: float = Field(10.0, gt=0, description="length of a cycle of cyclical, from peak to peak")
    plateau_patience: int = Field(5, ge=0, description="epochs without a better Dice before plateau lowers the rate")
    plateau_factor: float = Field(0.1, gt=0, lt=1, description="what plateau multiplies the rate with")
    warmup_epochs: float | None = Field(
        None, ge=0, description="linear warm-up before the schedule, in epochs; empty: 0 for one_cycle, otherwise 1"
    )
    warmup_steps: int | None = Field(None, ge=0, description="the warm-up in steps; empty: warmup_epochs")
    grad_clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0: off")
    early_stopping: int = Field(0, ge=0, description="end after this many epochs without a better Dice; 0: off")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay a step of the weights' exponential average; 0: off")
    swa_epochs: int = Field(0, ge=0, description="last epochs whose weights are averaged (SWA); 0: off")
    freeze: dict[str, int] = Field(
        {}, description="first epochs in which a part does not change, such as {encoder = 3}; the longest name decides"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the model's arithmetic (autocast)")
    channels_last: bool = Field(False, description="memory format of inputs and weights")
    compile: bool = Field(False, description="torch.compile the model; other bits than without")
    deterministic: bool = Field(True, description="only kernels that give the same bits every time")
    log_every: int = Field(10, ge=1, description="steps between two rows of metrics")

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, epochs: int | None, info: ValidationInfo) -> int | None:
        """Forget the length that does not hold, so that nothing shows it."""
        if info.data.get("steps") is not None:
            return None
        if epochs is None:
            raise ValueError("expected a number of epochs or steps, found neither")
        return epochs

    @field_validator("warmup_epochs")
    @classmethod
    def _usual(cls, epochs: float | None, info: ValidationInfo) -> float | None:
        """Take what empty means for empty: runs that were frozen when it was a number are of the same recipe."""
        return None if epochs == 1 and info.data.get("schedule") != "one_cycle" else epochs

    @model_validator(mode="after")
    def _warm_up(self, info: ValidationInfo) -> Self:
        if not is_asked(info):
            return self
        given = {"warmup_epochs": self.warmup_epochs, "warmup_steps": self.warmup_steps}
        given = {key: value for key, value in given.items() if value is not None}
        if given and self.schedule == "one_cycle":
            key, value = next(iter(given.items()))
            raise ValueError(
                f"{key} = {value}: one_cycle begins with a rise of its own; leave {key} out, or give it without a "
                f"value (-o train.{key}=)"
            )
        if len(given) == 2:
            raise ValueError("warmup_epochs and warmup_steps exclude each other; leave one of them empty")
        for kind, length in (("epochs", self.epochs), ("steps", self.steps)):
            if length is not None and (warmup := given.get(f"warmup_{kind}", 0) or 0) > length:
                raise ValueError(
                    f"warmup_{kind} = {warmup:g} is longer than the training ({kind} = {length}), which would never "
                    f"reach lr; lower warmup_{kind}, or raise {kind}"
                )
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate = {self.accumulate} pieces of batch_size = {self.batch_size} records")
        if self.positive_share is not None:
            positive = math.floor(self.positive_share * self.batch_size + 0.5)
            if positive in (0, self.batch_size):
                raise ValueError(
                    f"positive_share = {self.positive_share} of batch_size = {self.batch_size} rounds to {positive} "
                    "positive records a batch; expected at least one of each kind"
                )
        if any(epochs < 0 for epochs in self.freeze.values()):
            raise ValueError(f"freeze = {self.freeze}: expected numbers of epochs, from 0 on")
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} is larger than lr = {self.lr}")
        return self


class SnapshotSection(Section):
    """What is kept on disk."""

    every_min: float = Field(10.0, gt=0, description="minutes between snapshots; one ends each epoch too")
    keep_last: int = Field(5, ge=1, description="weights of the last epochs that stay")
    keep_best: int = Field(5, ge=1, description="weights of the best epochs that stay")
