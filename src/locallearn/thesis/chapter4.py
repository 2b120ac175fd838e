"""The cells of the thesis's Chapter 4: self-supervised networks, judged by a linear probe.

The thesis's own networks take days on a GPU; ``small-4.1`` has the same comparison with a VGG6a of half and a
ResNet-18 of a quarter of the width, and ``digits-4`` is a trial of this command.
"""

from __future__ import annotations

import dataclasses

from locallearn.config import RunConfig
from locallearn.recipes.common import SELF_SUPERVISED
from locallearn.recipes.named import recipe

FIELD = "linear_probe"
"""Accuracy of a linear probe on the last module."""

RATIOS = ("0.81", "0.83", "0.85", "0.87", "0.89", "0.91", "0.93", "0.95", "0.97")
"""Sample ratios of Table 4.2."""

DEPTHS = (2, 3, 4, 8, 16)
"""K of DGSSL on ResNets."""

BEST = {4: "0.95", 8: "0.97", 16: "0.95"}
"""The ratios that Tables 4.1, 4.3 and 4.4 print the accuracies of, as Table 4.2 tells."""
_PROBED_OVER_EPOCHS = {("resnet50", "dgssl"), ("resnet110", "dgssl")}
"""Figs. A.4 and A.5 probe these after every 100 epochs."""
VGGS = {"vgg6a": ("VGG6a", 5), "vgg16a": ("VGG16a", 14), "vgg19a": ("VGG19a", 17)}
"""VGGs of Fig. 4.3: title, and K where every layer is a module."""
SMALL = {"vgg6ax0.5": ("VGG6a x 0.5", (4, 5)), "resnet18x0.25": ("ResNet-18 x 0.25", (4, 9))}
"""Networks for small machines: title, and each K; at the deepest every block is a module."""

SMALL_RATIO = "0.95"
"""Sample ratio of small networks."""


def name_of(model: str, method: str, depth: int = 1, head: str = "", ratio: str = "", extra: str = "") -> str:
    """Name of a cell: ``cifar10-resnet50-dgssl-llm-k16-r0.95-decreasing``."""
    data = "digits" if model == "resnet8" else "cifar10"
    parts = (data, model, method, f"k{depth}" if depth > 1 else "", head, f"r{ratio}" if ratio else "", extra)
    return "-".join(filter(None, parts))


def scorer_of(cell: str) -> str | None:
    """The cell whose trained network scores pairs for this one; None where it needs none."""
    _, model, *method = cell.split("-")
    return name_of(model, "simclr") if "llm" in method else None


def configs() -> dict[str, RunConfig]:
    """The configuration of every cell by name."""
    found: dict[str, RunConfig] = {}

    def add(model: str, method: str, depth: int = 1, head: str = "", ratio: str = "", extra: str = "") -> None:
        found[name_of(model, method, depth, head, ratio, extra)] = _config(model, method, depth, head, ratio, extra)

    for model in ("resnet50", "resnet110"):
        add(model, "simclr")
        for depth in DEPTHS:
            add(model, "dgssl", depth)
            add(model, "dgssl", depth, "0c2f")
    for depth in BEST:
        for ratio in RATIOS:
            add("resnet50", "dgssl-llm", depth, ratio=ratio)
        add("resnet50", "dgssl-llm", depth, ratio=BEST[depth], extra="decreasing")
    add("resnet50", "dgssl-llm", 16, ratio=BEST[16], extra="positive")
    for model, (_, deepest) in VGGS.items():
        add(model, "simclr")
        add(model, "dgssl", deepest)
    for model, (_, depths) in SMALL.items():
        add(model, "simclr")
        for depth in depths:
            add(model, "dgssl", depth)
            add(model, "dgssl-llm", depth, ratio=SMALL_RATIO)
    add("resnet8", "simclr")
    add("resnet8", "dgssl", 4)
    add("resnet8", "dgssl-llm", 4, ratio="0.95")
    return found


def _config(model: str, method: str, depth: int, head: str, ratio: str, extra: str) -> RunConfig:
    config = recipe(method if model == "resnet8" else f"{model}-{method}")
    modification = config.objective.modification
    if ratio:
        share = float(ratio)
        modification = dataclasses.replace(
            modification, scorer="pretrained", positive_ratio=share, negative_ratio=share
        )
    if extra == "decreasing":
        modification = dataclasses.replace(modification, difficulty="decreasing")
    if extra == "positive":
        modification = dataclasses.replace(modification, pairs="positive", negative_ratio=0.95)
    objective = dataclasses.replace(config.objective, head=head or config.objective.head, modification=modification)
    augment = dataclasses.replace(config.augment, crop_padding=0, padding_mode="constant")
    keep = 100 if (model, method) in _PROBED_OVER_EPOCHS else 0
    checkpoint = dataclasses.replace(config.checkpoint, keep_epochs=keep)
    return dataclasses.replace(config, depth=depth, objective=objective, augment=augment, checkpoint=checkpoint)


def is_self_supervised(config: RunConfig) -> bool:
    """Whether the cell is of this chapter."""
    return config.method in SELF_SUPERVISED
