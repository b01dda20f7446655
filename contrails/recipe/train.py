"""The training in a recipe: batches, optimiser, schedule, weight averages and snapshots."""

import math
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from contrails.recipe.base import Section, is_asked


class TrainSection(Section):
    """The length, batches, optimiser and schedule of a training."""

    steps: int | None = Field(None, ge=1, description="length in steps, instead of epochs; empty: use epochs")
    epochs: int | None = Field(
        20, ge=1, validate_default=True, description="passes over the training records; not used if steps is set"
    )
    batch_size: int = Field(16, ge=1, description="records per step")
    accumulate: int = Field(
        1, ge=1, description="number of pieces that a batch is processed in, one after another, to save memory"
    )
    drop_last: bool = Field(True, description="leave out the last incomplete batch of an epoch")
    positive_share: float | None = Field(
        None, gt=0, lt=1, description="fraction of positive records in every batch; empty: not controlled"
    )
    balance_groups: bool = Field(
        False, description="draw every group (such as a location) equally often, whatever its number of records"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or stochastic gradient descent")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="momentum of sgd; one_cycle varies it (and AdamW's) between 0.95 and 0.85"
    )
    nesterov: bool = Field(True, description="use Nesterov momentum with sgd")
    weight_decay: float = Field(1e-2, ge=0, description="weight decay; decoupled with adamw")
    decay_on: Literal["weights", "all"] = Field(
        "weights", description="parameters with weight decay: weights without norms and biases, or all"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "one_cycle", "cyclical", "plateau", "constant"] = Field(
        "cosine", description="schedule of the learning rate after the warm-up"
    )
    min_lr: float = Field(0.0, ge=0, description="lowest learning rate of cosine and cyclical")
    cycle_epochs: float = Field(10.0, gt=0, description="length of a cycle of cyclical, from peak to peak, in epochs")
    plateau_patience: int = Field(
        5, ge=0, description="epochs without a better Dice before plateau lowers the learning rate"
    )
    plateau_factor: float = Field(0.1, gt=0, lt=1, description="factor by which plateau lowers the learning rate")
    warmup_epochs: float | None = Field(
        None, ge=0, description="linear warm-up before the schedule, in epochs; empty: 0 for one_cycle, otherwise 1"
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="linear warm-up before the schedule, in steps; empty: warmup_epochs"
    )
    grad_clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0: off")
    early_stopping: int = Field(0, ge=0, description="end after this many epochs without a better Dice; 0: off")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the exponential moving average of the weights; 0: off"
    )
    swa_epochs: int = Field(0, ge=0, description="number of last epochs whose weights are averaged (SWA); 0: off")
    freeze: dict[str, int] = Field(
        {},
        description="number of first epochs in which a module stays frozen, such as {encoder = 3}; for nested modules "
        "the longest name applies",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the model (autocast)")
    channels_last: bool = Field(False, description="use the channels-last memory format for inputs and weights")
    compile: bool = Field(False, description="use torch.compile; the results differ slightly from those without it")
    cuda_graph: bool = Field(
        False, description="launch the kernels of a pass as one CUDA graph, which is faster for small models on a GPU"
    )
    deterministic: bool = Field(True, description="use only kernels whose results are byte-identical every time")
    sync_batch_norm: bool = Field(
        False,
        description="take batch-norm statistics over the pieces of all ranks, not of each rank alone; without effect "
        "with num_ranks = 1",
    )
    log_every: int = Field(10, ge=1, description="steps between two rows of metrics")

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, epochs: int | None, info: ValidationInfo) -> int | None:
        """Set `epochs` to None if `steps` is set, so that no report shows an unused length."""
        if info.data.get("steps") is not None:
            return None
        if epochs is None:
            raise ValueError("expected a number of epochs or steps, found neither; set one of them")
        return epochs

    @field_validator("warmup_epochs")
    @classmethod
    def _usual(cls, epochs: float | None, info: ValidationInfo) -> float | None:
        """Replace 1, the former default, by None, so that runs frozen with either of them have equal recipes."""
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
                f"{key} = {value}: expected no warm-up with one_cycle, which has its own; leave {key} out, or give "
                f"-o train.{key}="
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
    def _can_be_captured(self) -> Self:
        found = {"compile": self.compile, "accumulate": self.accumulate > 1, "freeze": bool(self.freeze)}
        if self.cuda_graph and any(found.values()):
            wrong = ", ".join(f"{key} = {getattr(self, key)}" for key, is_given in found.items() if is_given)
            raise ValueError(
                f"cuda_graph = true: expected compile = false, accumulate = 1 and no freeze, found {wrong}; change "
                "that, or leave cuda_graph out"
            )
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate: expected at most batch_size = {self.batch_size} pieces, found {self.accumulate}"
            )
        if self.positive_share is not None:
            positive = math.floor(self.positive_share * self.batch_size + 0.5)
            if positive in (0, self.batch_size):
                raise ValueError(
                    f"positive_share = {self.positive_share} of batch_size = {self.batch_size} rounds to {positive} "
                    "positive records per batch; expected at least one positive and one negative record"
                )
        if any(epochs < 0 for epochs in self.freeze.values()):
            raise ValueError(f"freeze = {self.freeze}: expected numbers of epochs, from 0 on")
        if self.sync_batch_norm and self.compile:
            raise ValueError("sync_batch_norm and compile exclude each other; leave one of them out")
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: expected at most lr = {self.lr}, found {self.min_lr}")
        return self


class SnapshotSection(Section):
    """Snapshots and the weights that are kept on disk."""

    every_min: float = Field(
        10.0, gt=0, description="minutes between snapshots; another one is written after each epoch"
    )
    keep_last: int = Field(5, ge=1, description="number of last epochs whose weights are kept")
    keep_best: int = Field(5, ge=1, description="number of best epochs whose weights are kept")
