"""Optimizer, schedule, loop and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from locallearn.arguments import checked_fields
from locallearn.config.checks import (
    STRICT,
    check,
    choice,
    count,
    fraction,
    is_int,
    is_real,
    non_negative,
    positive_int,
)
from locallearn.config.components import Defaults, of, settle_named
from locallearn.errors import ConfigError


@checked_fields
@dataclass(frozen=True)
class OptimizerConfig:
    """Every node's own optimizer."""

    __pydantic_config__ = STRICT

    name: str = "sgd"
    """sgd (with momentum), adam, adamw, lars, a plugin's, or any torch optimizer by its import path, such as
    torch.optim.RAdam."""
    learning_rate: float = 0.1
    """Initial (peak) learning rate."""
    momentum: float = 0.9
    """Momentum of SGD and LARS."""
    nesterov: bool = True
    """Nesterov's momentum (SGD)."""
    weight_decay: float = 1e-4
    """L2 penalty on every parameter; with adamw and lars decay as these have it."""
    clip_norm: float = 0.0
    """Largest gradient norm of one node; 0 means no clipping."""
    options: Any = field(default=Defaults(), metadata=of("optimizer.name", by="name"))
    """Settings of the optimizer's own; of one that is named by its import path, arguments of its class."""

    def __post_init__(self) -> None:
        settle_named(self, "optimizer", "optimizer.name")
        non_negative("optimizer.learning_rate", self.learning_rate)
        fraction("optimizer.momentum", self.momentum)
        non_negative("optimizer.weight_decay", self.weight_decay)
        non_negative("optimizer.clip_norm", self.clip_norm)
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ConfigError("optimizer.nesterov", True, "false where optimizer.momentum is 0")


@checked_fields
@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes over a run."""

    __pydantic_config__ = STRICT

    name: str = "cosine"
    """cosine (to zero), milestones, constant, a plugin's, or a class of torch.optim.lr_scheduler, such as
    ExponentialLR."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up; a training that is shorter is all warm-up [epochs]."""
    warmup_rate: float = 0.01
    """Learning rate that the warm-up starts from."""
    milestones: tuple[int, ...] = ()
    """Epochs (counted from 1) after which the rate changes [epochs]."""
    factors: tuple[float, ...] = ()
    """What the initial rate is multiplied by after each milestone."""
    unit: Literal["epoch", "step"] = "epoch"
    """Change the rate once an epoch (as the thesis does) or at every step."""
    options: Any = field(default=Defaults(), metadata=of("schedule.name", by="name"))
    """Settings of the schedule's own; of a class of torch's, its arguments."""

    def __post_init__(self) -> None:
        settle_named(self, "schedule", "schedule.name")
        choice("schedule.unit", self.unit, "epoch", "step")
        count("schedule.warmup_epochs", self.warmup_epochs)
        non_negative("schedule.warmup_rate", self.warmup_rate)
        for milestone in self.milestones:
            positive_int("schedule.milestones", milestone)
        for factor in self.factors:
            non_negative("schedule.factors", factor)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError("schedule.milestones", self.milestones, "rising epochs")
        if len(self.factors) != len(self.milestones):
            raise ConfigError("schedule.factors", self.factors, f"one factor for each of {self.milestones}")


@checked_fields
@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    __pydantic_config__ = STRICT

    epochs: int = 10
    """Passes over the training images [epochs]."""
    batch_size: int = 128
    """Images a step [images]."""
    accumulate: int = 1
    """Batches whose mean gradient an update follows: memory of one batch, update of several, and batch norm of one
    batch [batches]."""
    evaluate_every: int = 1
    """Evaluate on the test images after every N epochs [epochs]; 0 means at the end only."""
    evaluate_batch_size: int = 500
    """Images a forward pass in evaluation [images]."""
    knn_neighbours: int = 200
    """k: nearest training images that vote, where a network without a classifier is evaluated [images]."""
    knn_temperature: float = 0.1
    """T: a neighbour of cosine similarity s has exp(s / T) votes."""
    knn_bank: int = 10_000
    """Look for neighbours among the first N training images, whose features of all modules are held [images]; 0 means
    all."""
    device: str | None = None
    """Device to train on, cpu or cuda[:N]; by default the GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """fp32, or bf16 autocast; by default bf16 where the device computes it faster."""
    channels_last: bool | None = None
    """Keep images channels-last in memory; by default on, but for large batches where torch's batch norm is then
    inaccurate (on CPUs without our kernels)."""
    threads: int | None = None
    """CPU threads; by default as many as torch chooses."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "evaluate_batch_size", "knn_neighbours"):
            positive_int(f"train.{name}", getattr(self, name))
        check("train.threads", self.threads, lambda v: is_int(v) and v >= 1, "a whole number of at least 1")
        check("train.batch_size", self.batch_size, lambda v: v >= 2, "at least 2 (batch norm needs two images)")
        count("train.evaluate_every", self.evaluate_every)
        count("train.knn_bank", self.knn_bank)
        expected = "a finite number above 0"
        check("train.knn_temperature", self.knn_temperature, lambda v: is_real(v) and v > 0, expected)
        choice("train.precision", self.precision, "fp32", "bf16", "fp16")


@checked_fields
@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run while it trains. There is always a checkpoint at the end of every epoch."""

    __pydantic_config__ = STRICT

    every_steps: int = 0
    """Also write a checkpoint every N steps [steps]; 0 means at the end of epochs only."""
    keep_last: int = 2
    """How many of the newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint of the last layer's best accuracy on the images of data.validation, or where none are
    held out on the test images."""
    keep_epochs: int = 0
    """Also keep the checkpoint at the end of every Nth epoch [epochs]; 0 means none."""

    def __post_init__(self) -> None:
        count("checkpoint.every_steps", self.every_steps)
        count("checkpoint.keep_epochs", self.keep_epochs)
        positive_int("checkpoint.keep_last", self.keep_last)
