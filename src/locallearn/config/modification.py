"""Layerwise loss modification: which pairs of views each module is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from locallearn.arguments import checked_fields
from locallearn.config.checks import STRICT, check, choice, fraction, is_real
from locallearn.errors import ConfigError


@checked_fields
@dataclass(frozen=True)
class ModificationConfig:
    """Which pairs of views each module is trained on with dgssl-llm (Algorithms 5 to 7). The last one sees all."""

    __pydantic_config__ = STRICT

    scorer: Literal["pretrained", "self", "ema", "augmentation"] = "pretrained"
    """What tells how alike two views are: a finished run (scorer-run), the module's own projections, a moving average
    of the network itself, or how severely the two were augmented."""
    scorer_run: str | None = None
    """Folder of the run whose network is the pretrained scorer, usually of method simclr."""
    ema_decay: float = 0.99
    """Share of its own weights that the moving average keeps at every step."""
    difficulty: Literal["increasing", "decreasing"] = "increasing"
    """Begin with the easiest pairs, or with the hardest; later modules see the others too."""
    pairs: Literal["both", "positive"] = "both"
    """Choose positive and negative pairs, or positive pairs only."""
    positive_ratio: float = 0.95
    """r: module j of K sees a share r^(K-j) of the positive pairs of a batch."""
    negative_ratio: float = 0.95
    """r: module j of K sees a share r^(K-j) of the negative pairs of a batch."""
    positive_thresholds: tuple[float, ...] = ()
    """Similarities alpha of modules 1 to K-1 to use in place of the positive ratio."""
    negative_thresholds: tuple[float, ...] = ()
    """Similarities beta of modules 1 to K-1 to use in place of the negative ratio."""

    def __post_init__(self) -> None:
        choice("objective.modification.scorer", self.scorer, "pretrained", "self", "ema", "augmentation")
        choice("objective.modification.difficulty", self.difficulty, "increasing", "decreasing")
        choice("objective.modification.pairs", self.pairs, "both", "positive")
        fraction("objective.modification.ema_decay", self.ema_decay)
        for name in ("positive_ratio", "negative_ratio"):
            in_range = lambda v: is_real(v) and 0 < v <= 1  # noqa: E731
            check(f"objective.modification.{name}", getattr(self, name), in_range, "a number in (0, 1]")
        for name in ("positive_thresholds", "negative_thresholds"):
            check(f"objective.modification.{name}", getattr(self, name), lambda v: all(map(is_real, v)), "numbers")
        if self.scorer_run is not None and self.scorer != "pretrained":
            expected = "nothing, unless objective.modification.scorer is pretrained"
            raise ConfigError("objective.modification.scorer_run", self.scorer_run, expected)
        if self.negative_thresholds and self.pairs == "positive":
            expected = "none where objective.modification.pairs is positive"
            raise ConfigError("objective.modification.negative_thresholds", self.negative_thresholds, expected)
