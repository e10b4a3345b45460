"""How weights are updated: the options, the optimisers, the course of the learning rate."""

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from finesight.config import Section

if TYPE_CHECKING:
    import torch

ScheduleName = Literal["constant", "cosine", "step", "plateau"]


class TrainConfig(Section):
    """How the weights are learned."""

    epochs: int = Field(10, ge=0, description="Passes over the training split; 0 measures the model as it is")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps, if that comes first")
    batch_size: int = Field(32, ge=1, description="Samples in one optimiser step, over all processes")
    accumulation: int = Field(
        1,
        ge=1,
        description="Micro-batches a batch is cut into, to save memory; exact without batch norm and dropout",
    )
    balance: int | None = Field(
        None,
        ge=1,
        description="Show exactly this many training samples of every class per epoch, drawn on the fly",
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Update rule")
    lr: float = Field(1e-3, gt=0, description="Base learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd; beta 1 of adam and adamw")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay (decoupled in adamw)")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient of one optimiser")
    schedule: ScheduleName = Field("constant", description="Course of the learning rate")
    warmup_steps: int = Field(0, ge=0, description="Optimiser steps of linear warm-up")
    decay_every: int = Field(1000, ge=1, description="step: optimiser steps between two reductions")
    decay: float = Field(0.5, gt=0, lt=1, description="step, plateau: factor of a reduction")
    plateau_patience: int = Field(5, ge=1, description="plateau: epochs without improvement before a reduction")
    min_lr: float = Field(0.0, ge=0, description="Learning rate that no schedule goes below")
    early_stop: int | None = Field(None, ge=1, description="Stop after this many epochs without improvement")
    select: str = Field(
        "accuracy",
        description="Validation metric that picks the best epoch and drives plateau and early stop",
    )
    selection_split: Literal["validation", "test"] = Field(
        "validation",
        description="Split that picks the epoch; 'test' is refused: it is for the final number only",
    )
    workers: int = Field(0, ge=0, description="Loader processes; 0 prepares batches in the training process")
    save_every: int | None = Field(None, ge=1, description="Also save a checkpoint every this many steps")
    save_minutes: float = Field(10.0, gt=0, description="Also save a checkpoint when the last is this old")
    compile: bool = Field(False, description="Use torch.compile")

    @model_validator(mode="after")
    def _selection_is_not_the_test(self) -> "TrainConfig":
        if self.selection_split == "test":
            raise ValueError(
                "train.selection_split: the test split must not choose the epoch, or its number is no test any more; "
                "use 'validation' (a share of the training images is held out where the data has none)"
            )
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"train.accumulation: {self.accumulation} micro-batches cannot be cut from a batch of "
                f"{self.batch_size}; lower it to at most train.batch_size"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"train.min_lr: {self.min_lr} is above train.lr ({self.lr}); give a smaller one")
        return self


def make_optimizer(parameters: "list[torch.nn.Parameter]", config: TrainConfig) -> "torch.optim.Optimizer":
    """The configured optimiser over the trainable parameters."""
    import torch

    # One pass over memory per parameter, on the CPU as on a GPU.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    betas = (config.momentum, 0.999)
    return kind(parameters, config.lr, betas, weight_decay=config.weight_decay, fused=fused)


def factor(
    name: ScheduleName,
    step: int,
    total: int,
    *,
    warmup: int = 0,
    every: int = 1,
    decay: float = 0.1,
    floor: float = 0.0,
) -> float:
    """The factor on the base learning rate for optimiser step `step` (from 0) of `total`.

    Linear warm-up over `warmup` steps first: step 0 gets 1/warmup. Then: `cosine` falls from 1
    towards `floor`, reached at step `total` (Loshchilov & Hutter 2017, without restarts), `step` multiplies by
    `decay` after each `every` steps, `constant` and `plateau` are 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    if name == "cosine":
        share = (step - warmup) / max(1, total - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if name == "step":
        return max(floor, decay ** ((step - warmup) // every))
    return 1.0


class Plateau:
    """Multiply the learning rate by `decay` after `patience` epochs in a row without a better value.

    The rule of Keras; torch's ReduceLROnPlateau (threshold 0) does the same with patience - 1.
    """

    def __init__(self, patience: int, decay: float, floor: float) -> None:
        self.patience, self.decay, self.floor = patience, decay, floor
        self.factor = 1.0
        self.bad_epochs = 0

    def update(self, improved: bool) -> bool:
        """Record an epoch; True when the rate was lowered."""
        self.bad_epochs = 0 if improved else self.bad_epochs + 1
        if self.bad_epochs < self.patience or self.factor <= self.floor:
            return False
        self.factor = max(self.floor, self.factor * self.decay)
        self.bad_epochs = 0
        return True

    def state(self) -> dict[str, Any]:
        return {"factor": self.factor, "bad_epochs": self.bad_epochs}

    def restore(self, state: dict[str, Any]) -> None:
        self.factor, self.bad_epochs = state["factor"], state["bad_epochs"]
