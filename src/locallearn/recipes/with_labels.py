"""Recipes of methods with labels: ResNets as Sec. 3.3.2 has them, VGGs as Sec. 3.3.1, ResNet-8 on digits."""

from __future__ import annotations

from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from locallearn.nn.backbones import build_backbone
from locallearn.recipes.common import METHODS, OWN, adam, held_out


def labelled_digits(method: str) -> RunConfig:
    """ResNet-8 on scikit-learn's digits: seconds to train, above 97 % with every method."""
    depth, width = METHODS.get(method, OWN)
    return RunConfig(
        method=method,
        model="resnet8",
        depth=depth,
        width=(width,),
        data=held_out("digits"),
        optimizer=adam(2e-2) if method == "predsim" else OptimizerConfig(learning_rate=0.1, weight_decay=5e-4),
        schedule=ScheduleConfig(warmup_epochs=2, unit="step"),
        train=TrainConfig(epochs=30, batch_size=64, precision="fp32"),
    )


def resnet(model: str, method: str) -> RunConfig:
    """Sec. 3.3.2: SGD with Nesterov momentum, batch 1024, 160 epochs, cosine with 10 epochs of warm-up.

    The thesis has predsim on VGGs only, and trains it with Adam; so does this recipe.
    """
    depth, width = METHODS.get(method, OWN)
    return RunConfig(
        method=method,
        model=model,
        depth=depth,
        width=(width,),
        data=held_out("cifar10"),
        optimizer=adam(1e-3) if method == "predsim" else OptimizerConfig(learning_rate=0.8, weight_decay=1e-4),
        schedule=ScheduleConfig(warmup_epochs=10),
        train=TrainConfig(epochs=160, batch_size=1024),
    )


def vgg(model: str, method: str, split: int = 2) -> RunConfig:
    """Sec. 3.3.1: Adam, batch 128, 150 epochs, 1e-3, then 5e-4 after epoch 50 and 1e-4 after 100, dropout 0.01.

    Every block is a module (but for e2e and single-thread), and the local loss of ``dgl`` and ``gn-dgl`` is predsim.
    Table 3.1 has neither stop-gradient nor diversity, and Table 3.2 turns them on one after the other: set
    ``objective.stop_gradient`` and ``objective.diversity_weight``.

    Args:
        model: a VGG.
        method: the method.
        split: G of the thesis's G-Group: ``gn-dgl`` splits the first three convolutions into (G, 2G, G) groups.
    """
    blocks = len(build_backbone(model, 3, 32).blocks)
    depth, width = METHODS.get(method, OWN)
    groups = (width,)
    if depth > 1:
        depth = blocks
        groups = (split, 2 * split, split, *[1] * (blocks - 3)) if width > 1 else (1,)
    return RunConfig(
        method=method,
        model=model,
        depth=depth,
        width=groups,
        dropout=0.01,
        objective=ObjectiveConfig(loss="predsim" if method in ("dgl", "gn-dgl") else None),
        data=held_out("cifar10"),
        optimizer=adam(1e-3),
        schedule=ScheduleConfig(name="milestones", milestones=(50, 100), factors=(0.5, 0.1)),
        train=TrainConfig(epochs=150, batch_size=128),
    )
