"""Where figures go beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from locallearn import registry
from locallearn.config.checks import STRICT
from locallearn.errors import ConfigError


@dataclass(frozen=True)
class LoggersConfig:
    """Where the figures of a run are shown while it trains; metrics.jsonl in its folder has them always."""

    __pydantic_config__ = STRICT

    names: tuple[str, ...] | None = None
    """tensorboard, wandb, mlflow or a plugin's, or no name for none; by default tensorboard where it is installed."""
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"each": "loggers.names"})
    """Settings of each logger's own, by its name."""

    def __post_init__(self) -> None:
        known = registry.named("loggers.names")
        for name in self.names or ():
            known.get(name)
        for name, given in self.options.items():
            if name not in (self.names or ()):
                raise ConfigError(f"loggers.options.{name}", given, "options of a logger that loggers.names has")
        settled = {
            name: known.options(name, given, f"loggers.options.{name}") for name, given in self.options.items()
        }
        object.__setattr__(self, "options", settled)
