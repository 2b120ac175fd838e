"""Recipes of vision transformers, of which the thesis has none."""

from __future__ import annotations

import dataclasses

from locallearn.config import AugmentConfig, RunConfig, ScheduleConfig, TrainConfig
from locallearn.recipes.common import METHODS, OWN, SELF_SUPERVISED, adam, held_out
from locallearn.recipes.without_labels import self_supervised


def vit(model: str, method: str) -> RunConfig:
    """Adam with a warm-up and a cosine: 200 epochs with labels, 800 without, as others use for small images.

    ``mae`` has the augmentation of He et al. (2022), crops and flips; methods on two views that of Fig. A.2.
    """
    if method in SELF_SUPERVISED:
        config = self_supervised(model, method)
    else:
        depth, width = METHODS.get(method, OWN)
        crops = AugmentConfig(resized_crop=(0.2, 1.0), flip=0.5) if method == "mae" else AugmentConfig()
        train = TrainConfig(epochs=800 if method == "mae" else 200, batch_size=256)
        data = held_out("cifar10")
        config = RunConfig(
            method=method, model=model, depth=depth, width=(width,), data=data, augment=crops, train=train
        )
    schedule = ScheduleConfig(warmup_epochs=config.train.epochs // 20, warmup_rate=0.0)
    return dataclasses.replace(config, optimizer=adam(1e-3), schedule=schedule)
