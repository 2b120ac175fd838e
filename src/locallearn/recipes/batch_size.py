"""A batch that fits the data set."""

from __future__ import annotations

import dataclasses

from locallearn.config import RunConfig

FEW_STEPS = 20
"""Epochs of fewer steps are not worth their name: batches are then too large for the data set."""


def fitted(config: RunConfig, images: int) -> RunConfig:
    """The configuration with a batch that is small enough for the training set; only the rate changes with it.

    The batch is halved until an epoch has 20 steps or the batch 16 images; the rate of SGD goes with it (Goyal et
    al., 2017), that of other optimizers stays.

    Args:
        config: a recipe.
        images: in the training set.
    """
    batch = config.train.batch_size
    while batch > 16 and images < FEW_STEPS * batch:
        batch //= 2
    share = batch / config.train.batch_size if config.optimizer.name == "sgd" else 1
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=batch),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=config.optimizer.learning_rate * share),
    )
