"""Modules that are given context beside features, and hand it on with theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from locallearn.core.module import Features, LocalModule
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss, Objective
from locallearn.nn.context import Fusion


@dataclass(frozen=True)
class Carried:
    """What a module made, and the context of the next one."""

    output: Any
    context: Tensor


class ContextModule(LocalModule):
    """A module that sees context (ContSup), or hands it on.

    What it is given and hands on is (features, context), a tensor each; the first of all is given the images. The
    last one hands on its features alone.

    Args:
        name: ``"1"`` .. ``"K"``.
        blocks: features in, features out.
        objective: the nodes' losses on the features.
        fusion: brings features and context together.
        last: whether no other module of the K follows.
        groups: G. Every group's adapter makes its own channels; the first block sees the others' without gradient.
    """

    def __init__(
        self, name: str, blocks: nn.Sequential, objective: Objective, fusion: Fusion, last: bool, groups: int = 1
    ) -> None:
        super().__init__(name, blocks, objective, groups)
        self.fusion, self.last = fusion, last

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """The module's features with the context of the next module; of the last one as of any module."""
        given, context = self.fusion(features)
        out = super().forward(given, batch)
        return out if self.last else Carried(out, context)

    def carried(self, output: Any) -> Features:
        """What the next stage is given, with its graph."""
        return (self.features(output), output.context) if isinstance(output, Carried) else self.features(output)

    def features(self, output: Any) -> Tensor:
        """The module's features in its output, with their graph."""
        return super().features(output.output if isinstance(output, Carried) else output)

    def loss(self, output: Any, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes, from the module's output."""
        return super().loss(output.output if isinstance(output, Carried) else output, batch)
