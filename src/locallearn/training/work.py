"""What a training trains, and on what: the same for a network that the package builds and for a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.optim.lr_scheduler import LRScheduler

from locallearn.core.image_shape import ImageShape
from locallearn.core.network import LocalNetwork, OptimizerFactory
from locallearn.data.store import Batch
from locallearn.training.evaluate import Evaluation
from locallearn.training.scorers import Scorer

ScheduleFactory = Callable[[torch.optim.Optimizer], LRScheduler]
"""Makes the scheduler of one stage's optimizer."""


class BatchSource(Protocol):
    """Training examples in batches."""

    def steps(self, batch_size: int) -> int | None:
        """Batches of an epoch; None where that is not known before it has ended."""

    def smallest(self, batch_size: int) -> int:
        """Examples of an epoch's smallest batch; 0 where that is not known."""
        ...

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, counted from 0, from a step on."""
        ...


@dataclass
class Work:
    """What a training trains on, and by what.

    Attributes:
        network: all stages.
        train: batches of training examples.
        evaluate: evaluates the network; None where there is nothing to evaluate on.
        source: where the data come from, in words.
        scorer: scores pairs of views for the losses that choose among them.
        image: what a network that the package builds is built for.
        optimizer: makes a stage's optimizer from its parameters; None for the configuration's.
        schedule: makes the scheduler of a stage's optimizer; None for the configuration's schedule.
        every_epoch: whether the schedule is stepped after every epoch, in place of every update.
        accumulate: batches that an update follows.
        average: decay of a moving average of the weights; 0 keeps none.
        identity: names what is trained, which a checkpoint must agree with; by default the configuration's digest.
        resume: how to continue a run that was interrupted, in words.
        validate: evaluates the network on examples that only choose the best checkpoint; None where those of
            ``evaluate`` do.
    """

    network: LocalNetwork
    train: BatchSource
    evaluate: Callable[[LocalNetwork], Evaluation] | None
    source: str
    scorer: Scorer = field(default_factory=Scorer)
    image: ImageShape | None = None
    optimizer: OptimizerFactory | None = None
    schedule: ScheduleFactory | None = None
    every_epoch: bool = False
    accumulate: int = 1
    average: float = 0.0
    identity: str = ""
    resume: str = ""
    validate: Callable[[LocalNetwork], Evaluation] | None = None
