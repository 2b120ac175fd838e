"""What the user of ``split`` chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from locallearn.config import ObjectiveConfig
from locallearn.config.checks import non_negative, positive_int
from locallearn.config.own_parts import PLAIN_HEAD, without_head
from locallearn.core.block_copies import COPYING
from locallearn.errors import ConfigError
from locallearn.losses.user import Loss
from locallearn.nn.features import check_tokens
from locallearn.nn.heads import HeadInput


@dataclass(frozen=True)
class SplitOptions:
    """Where a model is cut, and what its stages learn; the fields are the arguments of ``split``.

    Raises:
        ConfigError: values that no model fits.
    """

    cuts: Sequence[str] | None
    depth: int | None
    width: int
    head: str | nn.Module | Callable[[HeadInput], nn.Module] | None
    objective: str | Loss | None
    classes: int | None
    tokens: str | None
    layout: str | None
    clip_norm: float
    overlap: int
    context: str
    settings: ObjectiveConfig | None
    seed: int

    def __post_init__(self) -> None:
        if self.settings is not None:
            self._take("head", "head", self.settings.head, self.settings.head != PLAIN_HEAD)
            self._take("objective", "loss", self.settings.loss, self.settings.loss is not None)
        positive_int("width", self.width)
        positive_int("depth", self.depth)
        positive_int("classes", self.classes)
        if self.objective == "":
            raise ConfigError("objective", "", "the name of a loss, or a function of scores and labels")
        non_negative("clip_norm", self.clip_norm)
        if (self.cuts is None) == (self.depth is None) or isinstance(self.cuts, str):
            raise ConfigError("cuts", self.cuts, "either cuts or depth, and not both; cuts are a list of paths")
        if self.tokens is not None:
            check_tokens(self.tokens)
        self._check_head()
        if self.head == "momentum" and self.width > 1:
            expected = "1 with head momentum, for the last module has one group, and no block of several to follow"
            raise ConfigError("width", self.width, f"{expected}; heads auglocal and 1c2f go with groups")

    def _take(self, name: str, setting: str, told: str | None, is_told: bool) -> None:
        """What the settings name counts where the argument does not; both may name the same."""
        given = getattr(self, name)
        if is_told and given is None:
            object.__setattr__(self, name, told)
        elif is_told and not (isinstance(given, str) and given == told):
            shown = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
            raise ConfigError(f"settings.{setting}", told, f"what {name} is ({shown}), or left out")

    def _check_head(self) -> None:
        """A head is named only where the loss has one."""
        name = self.objective if isinstance(self.objective, str) else None
        instead = without_head(name, self.settings and self.settings.options)
        if instead and self.head is not None:
            raise ConfigError("head", self.head, f"none with objective {name}, {instead}")

    @property
    def copying(self) -> bool:
        """Whether heads copy the model's own blocks."""
        return isinstance(self.head, str) and self.head in COPYING

    @property
    def stages(self) -> int:
        """K."""
        return self.depth or len(self.cuts or ()) + 1
