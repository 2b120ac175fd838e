"""Recipes: functions that return a complete configuration, by name.

``METHOD`` alone (``gn-dgl``) is a quick run on the embedded digits; ``MODEL-METHOD`` (``resnet32-gn-dgl``) follows
the thesis: Sec. 3.3.2 for ResNets, Sec. 3.3.1 for VGGs, on CIFAR-10. Every setting can then be changed.
"""

from __future__ import annotations

import dataclasses

from locallearn.config import (
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from locallearn.core.methods import methods
from locallearn.errors import UsageError
from locallearn.nn.backbones import backbones, build_backbone

_DEPTH_WIDTH = {"e2e": (1, 1), "dgl": (4, 1), "gn-dgl": (4, 2), "single-thread": (1, 2)}
"""K and G of each method's recipe."""


def digits(method: str) -> RunConfig:
    """ResNet-8 on scikit-learn's digits: seconds to train, above 97 % with every method."""
    depth, width = _DEPTH_WIDTH[method]
    return RunConfig(
        method=method,
        model="resnet8",
        depth=depth,
        width=(width,),
        optimizer=OptimizerConfig(learning_rate=0.1, weight_decay=5e-4),
        schedule=ScheduleConfig(warmup_epochs=2, unit="step"),
        train=TrainConfig(epochs=15, batch_size=64, precision="fp32"),
    )


def resnet(model: str, method: str) -> RunConfig:
    """Sec. 3.3.2: SGD with Nesterov momentum, batch 1024, 160 epochs, cosine with 10 epochs of warm-up."""
    depth, width = _DEPTH_WIDTH[method]
    return RunConfig(
        method=method,
        model=model,
        depth=depth,
        width=(width,),
        data=DataConfig(name="cifar10"),
        optimizer=OptimizerConfig(learning_rate=0.8, weight_decay=1e-4),
        schedule=ScheduleConfig(warmup_epochs=10),
        train=TrainConfig(epochs=160, batch_size=1024),
    )


def vgg(model: str, method: str) -> RunConfig:
    """Sec. 3.3.1: Adam, batch 128, 150 epochs, 1e-3, then 5e-4 after epoch 50 and 1e-4 after 100, dropout 0.01.

    Every block is a module (but for e2e and single-thread); GN-DGL splits the first three convolutions into
    (2, 4, 2) groups. The loss is cross entropy through a ``0c2f`` head, not the thesis's predsim.
    """
    blocks = len(build_backbone(model, 3, 32).blocks)
    depth, width = (1, (2,)) if method == "single-thread" else (1, (1,)) if method == "e2e" else (blocks, (1,))
    if method == "gn-dgl":
        width = (2, 4, 2, *[1] * (blocks - 3))
    return RunConfig(
        method=method,
        model=model,
        depth=depth,
        width=width,
        dropout=0.01,
        objective=ObjectiveConfig(head="0c2f"),
        data=DataConfig(name="cifar10"),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
        schedule=ScheduleConfig(name="milestones", milestones=(50, 100), factors=(0.5, 0.1)),
        train=TrainConfig(epochs=150, batch_size=128),
    )


def recipe(name: str) -> RunConfig:
    """The configuration of a recipe: a method, or a model and a method (``resnet32-gn-dgl``).

    Raises:
        UsageError: no such recipe.
    """
    if name in methods:
        return digits(name)
    for method in methods:
        model = name.removesuffix(f"-{method}")
        if model != name and method in _DEPTH_WIDTH and not (method == "dgl" and model.endswith("-gn")):
            build_backbone(model, 3, 32)
            if model.startswith("tiny"):
                return dataclasses.replace(digits(method), model=model)
            return (vgg if model.startswith("vgg") else resnet)(model, method)
    raise UsageError(
        f"RECIPE: {name!r} is not known; expected a method ({', '.join(methods)}) for the embedded digits, or "
        "MODEL-METHOD such as resnet32-gn-dgl; all of them: locallearn recipes"
    )


def recipe_names() -> list[str]:
    """Every recipe by name. Models also take a width factor, as in ``resnet32x2-gn-dgl``."""
    return [*_DEPTH_WIDTH, *(f"{model}-{method}" for model in backbones for method in _DEPTH_WIDTH)]
