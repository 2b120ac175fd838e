"""How nodes are executed, where that changes what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from locallearn.arguments import checked_fields
from locallearn.config.checks import MOST_THREADS, STRICT, check, choice, count, is_real, positive_int


@checked_fields
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


@checked_fields
@dataclass(frozen=True)
class ThreadsConfig:
    """Settings of ``runtime = "threads"``: modules that train at the same time on the CPU threads of one process."""

    __pydantic_config__ = STRICT

    at_once: int | None = None
    """Modules that train at the same time, each with its share of train.threads; activations of so many are held. By
    default as many as there are threads [modules]."""

    def __post_init__(self) -> None:
        positive_int("threads.at_once", self.at_once, most=MOST_THREADS)


@checked_fields
@dataclass(frozen=True)
class AsynchronousConfig:
    """Settings of ``runtime = "asynchronous"``: each module in a process of its own, at its own pace."""

    __pydantic_config__ = STRICT

    buffer_size: int = 32
    """Newest batches of features from the module before that a module keeps to train on [batches]."""
    max_reuse: int = 4
    """How often a module may use a batch again [times]; with 0 it waits for a new batch at every step."""
    restarts: int = 10
    """How often the process of a module that died is started again before the run gives up [times]."""
    slow_module: int = 0
    """What if this module's device were slower: its process sleeps after every step. 0 means none."""
    slow_factor: float = 2.0
    """How many times as long a step of that module takes."""

    def __post_init__(self) -> None:
        positive_int("asynchronous.buffer_size", self.buffer_size)
        for name in ("max_reuse", "restarts", "slow_module"):
            count(f"asynchronous.{name}", getattr(self, name))
        check("asynchronous.slow_factor", self.slow_factor, lambda v: is_real(v) and v >= 1, "a number of at least 1")
