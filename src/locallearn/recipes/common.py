"""What recipes have in common: K and G of each method, held-out images, Adam."""

from __future__ import annotations

from typing import Any

from locallearn.config import DataConfig, OptimizerConfig

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

OWN = (4, 1)
"""K and G of the recipe of a method that a user registered."""


SELF_SUPERVISED = ("simclr", "dgssl", "dgssl-llm", "blockwise-ssl", "greedy-infomax")
"""Methods whose recipes follow Chapter 4."""


def adam(rate: float) -> OptimizerConfig:
    """Adam at this rate, without weight decay."""
    return OptimizerConfig(name="adam", learning_rate=rate, weight_decay=0.0)


HELD_OUT = 0.1
"""Share of the training images that recipes hold out, to choose the best checkpoint by."""


def held_out(name: str, **settings: Any) -> DataConfig:
    """A data set of which some training images choose the best checkpoint."""
    return DataConfig(name=name, validation=HELD_OUT, **settings)
