"""Recipes: functions that return a complete configuration, by name.

``METHOD`` alone (``gn-dgl``) is a quick run on the embedded digits; ``MODEL-METHOD`` (``resnet32-gn-dgl``) follows
the thesis: Sec. 3.3.2 for ResNets, Sec. 3.3.1 for VGGs, Chapter 4 for methods without labels, on CIFAR-10. The
thesis has no vision transformers: their recipes (``vit-tiny-dgl``, ``vit-tiny-mae``) are customary settings.
``vgg6a-6group-gn-dgl`` has the widthwise split of the thesis's 6-Group. Every setting can then be changed.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any

from locallearn.arguments import checked
from locallearn.config import (
    AugmentConfig,
    DataConfig,
    MaskingConfig,
    ModificationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from locallearn.core.methods import methods
from locallearn.errors import UsageError
from locallearn.nn.backbones import backbones, build_backbone
from locallearn.recipes.newer import VARIANTS

METHODS = {
    "e2e": (1, 1),
    "dgl": (4, 1),
    "gn-dgl": (4, 2),
    "infopro": (4, 1),
    "predsim": (4, 1),
    "single-thread": (1, 2),
    "simclr": (1, 1),
    "dgssl": (4, 1),
    "dgssl-llm": (4, 1),
    "blockwise-ssl": (4, 1),
    "greedy-infomax": (3, 1),
    "mae": (1, 1),
}
"""K and G of each method's recipe."""

_OWN = (4, 1)
"""K and G of the recipe of a method that a user registered."""


SELF_SUPERVISED = ("simclr", "dgssl", "dgssl-llm", "blockwise-ssl", "greedy-infomax")
"""Methods whose recipes follow Chapter 4."""

_GROUPED = ("gn-dgl", "single-thread")
"""Methods of several groups, which vision transformers cannot be split into."""


def _adam(rate: float) -> OptimizerConfig:
    return OptimizerConfig(name="adam", learning_rate=rate, weight_decay=0.0)


HELD_OUT = 0.1
"""Share of the training images that recipes hold out, to choose the best checkpoint by."""


def _data(name: str, **settings: Any) -> DataConfig:
    return DataConfig(name=name, validation=HELD_OUT, **settings)


def digits(method: str) -> RunConfig:
    """ResNet-8 on scikit-learn's digits: seconds to train, above 97 % with every method."""
    if method in SELF_SUPERVISED:
        return self_supervised_digits(method)
    if method == "mae":
        return masked_digits()
    depth, width = METHODS.get(method, _OWN)
    return RunConfig(
        method=method,
        model="resnet8",
        depth=depth,
        width=(width,),
        data=_data("digits"),
        optimizer=_adam(2e-2) if method == "predsim" else OptimizerConfig(learning_rate=0.1, weight_decay=5e-4),
        schedule=ScheduleConfig(warmup_epochs=2, unit="step"),
        train=TrainConfig(epochs=30, batch_size=64, precision="fp32"),
    )


def resnet(model: str, method: str) -> RunConfig:
    """Sec. 3.3.2: SGD with Nesterov momentum, batch 1024, 160 epochs, cosine with 10 epochs of warm-up.

    The thesis has predsim on VGGs only, and trains it with Adam; so does this recipe.
    """
    depth, width = METHODS.get(method, _OWN)
    return RunConfig(
        method=method,
        model=model,
        depth=depth,
        width=(width,),
        data=_data("cifar10"),
        optimizer=_adam(1e-3) if method == "predsim" else OptimizerConfig(learning_rate=0.8, weight_decay=1e-4),
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
    depth, width = METHODS.get(method, _OWN)
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
        data=_data("cifar10"),
        optimizer=_adam(1e-3),
        schedule=ScheduleConfig(name="milestones", milestones=(50, 100), factors=(0.5, 0.1)),
        train=TrainConfig(epochs=150, batch_size=128),
    )


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
        data=_data("digits"),
        augment=AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0),
        optimizer=dataclasses.replace(_adam(1e-3), weight_decay=1e-6),
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
    objective = ObjectiveConfig(head="0c2f" if is_vgg else "1c2f", temperature=0.5)
    return RunConfig(
        method=method,
        model=model,
        depth=depth,
        objective=_projected(objective, 2048) if method == "blockwise-ssl" else objective,
        data=_data("cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
        augment=AugmentConfig(resized_crop=(0.08, 1.0), flip=0.5, jitter=0.8, grey=0.2),
        optimizer=dataclasses.replace(_adam(1e-3), weight_decay=1e-6),
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
        data=_data("digits"),
        augment=AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0),
        optimizer=_adam(1e-3),
        schedule=ScheduleConfig(warmup_epochs=2, warmup_rate=0.0, unit="step"),
        train=TrainConfig(epochs=30, batch_size=32, precision="fp32"),
    )


def vit(model: str, method: str) -> RunConfig:
    """Adam with a warm-up and a cosine: 200 epochs with labels, 800 without, as others use for small images.

    ``mae`` has the augmentation of He et al. (2022), crops and flips; methods on two views that of Fig. A.2.
    """
    if method in SELF_SUPERVISED:
        config = self_supervised(model, method)
    else:
        depth, width = METHODS.get(method, _OWN)
        crops = AugmentConfig(resized_crop=(0.2, 1.0), flip=0.5) if method == "mae" else AugmentConfig()
        train = TrainConfig(epochs=800 if method == "mae" else 200, batch_size=256)
        data = _data("cifar10")
        config = RunConfig(
            method=method, model=model, depth=depth, width=(width,), data=data, augment=crops, train=train
        )
    schedule = ScheduleConfig(warmup_epochs=config.train.epochs // 20, warmup_rate=0.0)
    return dataclasses.replace(config, optimizer=_adam(1e-3), schedule=schedule)


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


@checked
def recipe(name: str) -> RunConfig:
    """The whole configuration behind a name, to be changed with ``dataclasses.replace`` and given to ``ll.train``.

    >>> config = dataclasses.replace(ll.recipe("gn-dgl"), depth=2, seed=1)  # doctest: +SKIP

    Args:
        name: a method alone (``gn-dgl``: ResNet-8 on the digits that come with scikit-learn), or a model and a method
            (``resnet32-gn-dgl``: the thesis's setting on CIFAR-10). ``locallearn recipes`` lists them.

    Raises:
        UsageError: no such recipe.
    """
    if name in METHODS or name in methods:
        return digits(name)
    for suffix, variant in sorted(VARIANTS.items(), key=lambda item: -len(item[0])):  # gn-auglocal before auglocal
        model = name.removesuffix(suffix)
        if model != name and (model == "" or model.endswith("-")):
            return variant.change(recipe(model + variant.method))
    for method in sorted({*METHODS, *methods}, key=len, reverse=True):  # gn-dgl before dgl
        model = name.removesuffix(f"-{method}")
        if model != name:
            return _on_cifar10(model, method)
    near = difflib.get_close_matches(name, recipe_names(), n=3)
    if near:
        raise UsageError(f"RECIPE: {name!r} is not known. Did you mean {' or '.join(near)}?")
    raise UsageError(
        f"RECIPE: {name!r} is not known; expected a method ({', '.join(METHODS)}) for the embedded digits, or "
        "MODEL-METHOD such as resnet32-gn-dgl; all of them: locallearn recipes"
    )


def _on_cifar10(model: str, method: str) -> RunConfig:
    split = re.fullmatch(r"(vgg.+)-([1-9]\d?)group", model)
    if split and method == "gn-dgl":
        build_backbone(split[1], 3, 32)  # refuses unknown models
        return vgg(split[1], method, int(split[2]))
    build_backbone(model, 3, 32)
    if model.startswith("vit-tiny"):
        return vit(model, method)
    if not model.startswith(("resnet", "vgg")):  # small, or a user's own: on the digits, for a first try
        return dataclasses.replace(digits(method), model=model)
    if method in SELF_SUPERVISED:
        return self_supervised(model, method)
    return (vgg if model.startswith("vgg") else resnet)(model, method)


def recipe_names() -> list[str]:
    """Every recipe by name. Models also take a width factor, as in ``resnet32x2-gn-dgl``."""
    splits = [f"vgg6a-{split}group-gn-dgl" for split in (4, 6, 8, 10)]
    pairs = [(model, method) for model in backbones for method in METHODS]
    named = [f"{model}-{method}" for model, method in pairs if _fits(model, method)]
    variants = [
        f"{model}-{name}" for model in backbones for name, variant in VARIANTS.items() if _fits(model, variant.method)
    ]
    return [*METHODS, *VARIANTS, *named, *variants, *splits]


def families() -> dict[str, tuple[str, ...]]:
    """The models that recipes name, by family: those of one family are trained in the same way."""
    found: dict[str, list[str]] = {"ResNet": [], "VGG": [], "ViT": [], "small": []}
    for model in backbones:
        known = [family for prefix, family in _PREFIXES.items() if model.startswith(prefix)]
        found[known[0] if known else "small"].append(model)
    return {family: tuple(sorted(models, key=_by_number)) for family, models in found.items() if models}


_PREFIXES = {"resnet": "ResNet", "vgg": "VGG", "vit-tiny": "ViT"}
"""What the names of models of a family begin with; recipes of all others are for a first try, on the digits."""


def _by_number(model: str) -> tuple[str, int]:
    """Sorts resnet8 before resnet18."""
    number = re.search(r"\d+", model)
    return re.sub(r"\d+.*", "", model), int(number[0]) if number else 0


def _fits(model: str, method: str) -> bool:
    """Whether the method can train the model: transformers have no groups, and nothing else has patches to hide."""
    return method not in (*_GROUPED, "greedy-infomax") if model.startswith("vit-") else method != "mae"
