"""Recipes of methods without labels: two views as in Chapter 4, and masked autoencoding."""

from __future__ import annotations

import dataclasses

from locallearn.config import (
    AugmentConfig,
    MaskingConfig,
    ModificationConfig,
    ObjectiveConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from locallearn.nn.backbones import build_backbone
from locallearn.recipes.common import METHODS, adam, held_out


def self_supervised_digits(method: str) -> RunConfig:
    """ResNet-8 on scikit-learn's digits: mild crops only, for digits are grey and no two ways round.

    The scorer of ``dgssl-llm`` is a moving average, which needs no run beforehand.
    """
    modification = ModificationConfig(scorer="ema" if method == "dgssl-llm" else "pretrained")
    objective = ObjectiveConfig(temperature=0.5, modification=modification)
    return RunConfig(
        method=method,
        model="resnet8",
        depth=METHODS[method][0],
        objective=_projected(objective, 128) if method == "blockwise-ssl" else objective,
        data=held_out("digits"),
        augment=AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0),
        optimizer=dataclasses.replace(adam(1e-3), weight_decay=1e-6),
        schedule=ScheduleConfig(name="constant"),
        train=TrainConfig(epochs=20, batch_size=128, precision="fp32"),
    )


def _projected(objective: ObjectiveConfig, size: int) -> ObjectiveConfig:
    """Wide projectors of Siddiqui et al. (2023), for small images of this size instead of 2048, 8192 and 8192."""
    options = {"channels": size, "hidden": size}
    return dataclasses.replace(objective, head="wide-projector", head_options=options, projection=size)


def self_supervised(model: str, method: str) -> RunConfig:
    """Chapter 4: Adam at a constant 1e-3, weight decay 1e-6, batch 256, the augmentation of Fig. A.2.

    VGGs are cut after every block and have ``0c2f`` heads (Sec. 4.3.1), ResNets the cuts of Fig. A.1 and ``1c2f``
    heads; ``blockwise-ssl`` has its own. The thesis gives neither the temperature nor the number of epochs: 0.5 is
    customary on CIFAR-10, and 800 epochs are what Figs. A.4 and A.5 leave room for and the most that is customary.
    """
    is_vgg = model.startswith("vgg")
    depth = METHODS[method][0]
    if is_vgg and depth > 1:
        depth = len(build_backbone(model, 3, 32).blocks)
    objective = ObjectiveConfig(head="0c2f" if is_vgg and method != "greedy-infomax" else "1c2f", temperature=0.5)
    return RunConfig(
        method=method,
        model=model,
        depth=depth,
        objective=_projected(objective, 2048) if method == "blockwise-ssl" else objective,
        data=held_out("cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
        augment=AugmentConfig(resized_crop=(0.08, 1.0), flip=0.5, jitter=0.8, grey=0.2),
        optimizer=dataclasses.replace(adam(1e-3), weight_decay=1e-6),
        schedule=ScheduleConfig(name="constant"),
        train=TrainConfig(epochs=800, batch_size=256),
    )


def masked_digits() -> RunConfig:
    """``vit-nano`` on scikit-learn's digits, 16 patches each, of which 6 are shown."""
    masking = MaskingConfig(ratio=0.6, decoder_width=64)
    return RunConfig(
        method="mae",
        model="vit-nano",
        objective=ObjectiveConfig(masking=masking),
        data=held_out("digits"),
        augment=AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0),
        optimizer=adam(1e-3),
        schedule=ScheduleConfig(warmup_epochs=2, warmup_rate=0.0, unit="step"),
        train=TrainConfig(epochs=30, batch_size=32, precision="fp32"),
    )
