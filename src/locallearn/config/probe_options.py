"""How the features of a finished run are probed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from locallearn.arguments import checked_fields
from locallearn.config.checks import (
    MOST_UNITS,
    STRICT,
    check,
    choice,
    count,
    is_int,
    is_real,
    non_negative,
    positive_int,
)


@checked_fields
@dataclass(frozen=True)
class ProbeConfig:
    """Classifiers on the features of a frozen network (Algorithm 4); all depths are trained together.

    Adam, batch and weight decay are those of Chapter 4, which takes 200 epochs at a rate of 0.001; ten times that
    rate along a cosine comes near to it in 30.
    """

    __pydantic_config__ = STRICT

    depth: Literal["all", "modules", "last"] = "all"
    """Where probes are: at the end of all blocks, at the ends of modules, or at the last block."""
    head: Literal["linear", "mlp"] = "linear"
    """One linear layer, or a multi-layer perceptron of one hidden layer with ReLU."""
    hidden: int = 512
    """Hidden units of the multi-layer perceptron."""
    pool: int = 1
    """Average feature maps to this side [positions]; 1 is global average pooling. Smaller maps stay as they are."""
    standardise: bool = True
    """Scale every feature to mean 0 and variance 1 by a batch norm without weights; with it a linear probe is still
    linear, and shallow and deep features are learned equally fast."""
    epochs: int = 30
    """Passes over the training images [epochs]."""
    batch_size: int = 256
    """Images a step [images]."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or SGD with Nesterov momentum 0.9."""
    learning_rate: float | None = None
    """Initial learning rate; by default 0.01 with Adam and 0.1 with SGD."""
    weight_decay: float = 1e-6
    """L2 penalty on every parameter of a probe."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate to zero along a cosine, or constant."""
    augment: Literal["none", "standard", "run"] = "none"
    """Training images as they are; changed by the data set's custom (crop and flip); or as in the run's own training,
    which for a self-supervised run is Fig. A.2. Changed images need a forward pass in every epoch."""
    seed: int = 0
    """Seed of the probes' weights, of the order of images and of their changes."""
    cache_mib: int = 2048
    """Hold the features of all training images if they take at most this much memory [MiB], else compute them again
    every epoch; 0 means never."""
    cache_precision: Literal["fp32", "bf16"] = "fp32"
    """How features are held."""

    def __post_init__(self) -> None:
        for name in ("pool", "epochs", "batch_size"):
            positive_int(name, getattr(self, name))
        positive_int("hidden", self.hidden, most=MOST_UNITS)
        check("batch_size", self.batch_size, lambda v: v >= 2, "at least 2 (batch norm needs two images)")
        for name, choices in (
            ("depth", ("all", "modules", "last")),
            ("head", ("linear", "mlp")),
            ("optimizer", ("adam", "sgd")),
            ("schedule", ("cosine", "constant")),
            ("augment", ("none", "standard", "run")),
            ("cache_precision", ("fp32", "bf16")),
        ):
            choice(name, getattr(self, name), *choices)
        check("learning_rate", self.learning_rate, lambda v: is_real(v) and v > 0, "a finite number above 0")
        non_negative("weight_decay", self.weight_decay)
        check("seed", self.seed, lambda v: is_int(v) and 0 <= v < 2**63, "a whole number in [0, 2^63)")
        count("cache_mib", self.cache_mib)

    @property
    def initial_rate(self) -> float:
        """The learning rate that a probe starts with."""
        return self.learning_rate or {"adam": 1e-2, "sgd": 0.1}[self.optimizer]
