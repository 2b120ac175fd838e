"""Small runs for tests."""

import dataclasses

from locallearn.config import CheckpointConfig, DataConfig, RunConfig, ScheduleConfig, TrainConfig
from locallearn.data.store import Batch
from locallearn.training.observer import Quiet

TRAIN = TrainConfig(epochs=2, batch_size=32, precision="fp32", device="cpu", threads=1)


def config(method="gn-dgl", depth=2, width=(2,), **changes):
    """A run on 160 digits that takes a second."""
    base = RunConfig(
        method=method,
        model="tiny-resnet",
        depth=depth,
        width=width,
        data=DataConfig(train_limit=160, test_limit=60),
        train=TRAIN,
        schedule=ScheduleConfig(name="constant"),  # a cosine by epoch has a rate of 0 in the second of two
        checkpoint=CheckpointConfig(every_steps=2),
    )
    return dataclasses.replace(base, **changes)


def batch_of(images, labels):
    """A batch as a store gives it."""
    return Batch(images, labels, images, 0)


class Killed(BaseException):
    """Ends a training as a kill does."""


class KillAt(Quiet):
    """Dies at a step as a kill does: nothing is written on the way out."""

    def __init__(self, step):
        self.at = step

    def on_step(self, step):
        if step == self.at:
            raise Killed
