"""How nodes are executed, where that changes what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from locallearn.config.checks import STRICT, check, choice, is_real, positive_int


@dataclass(frozen=True)
class SequentialConfig:
    """Settings of ``runtime = "sequential"``: one module after the other, each for all its epochs."""

    __pydantic_config__ = STRICT

    cache: Literal["none", "memory", "disk"] = "none"
    """Where features of the modules that are trained already are kept: nowhere (computed again at every step, with
    fresh augmentation in every epoch), in memory, or on disk in the run's folder while it trains."""
    cache_epochs: int = 4
    """With a cache: so many epochs have batches and augmentation of their own, later ones use them again [epochs]."""
    cache_dtype: Literal["uint8", "bf16", "fp32"] = "bf16"
    """With a cache: number format of kept features; uint8 has a scale for every channel of a batch."""
    cache_gib: float = 1.0
    """With a cache: largest size [GiB]; features that do not fit are computed again when they are needed."""

    def __post_init__(self) -> None:
        choice("sequential.cache", self.cache, "none", "memory", "disk")
        choice("sequential.cache_dtype", self.cache_dtype, "uint8", "bf16", "fp32")
        positive_int("sequential.cache_epochs", self.cache_epochs)
        check("sequential.cache_gib", self.cache_gib, lambda v: is_real(v) and v > 0, "a finite number above 0")
