"""Stages: what happens between two cuts, with the objective at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss, Objective, Passage
from locallearn.losses.patch_infonce import PatchInfoNCE
from locallearn.nn.blocks import Residual
from locallearn.nn.momentum import MomentumHead
from locallearn.nn.native import laid_out
from locallearn.nn.ssl_head import FeatureNoise

Features = Any
"""What one stage hands to the next: a tensor, or a tuple where several of a user's model cross the cut."""


def each_of(features: Features) -> tuple[Tensor, ...]:
    """The tensors that one stage hands to the next."""
    return features if isinstance(features, tuple) else (features,)


class Stage(nn.Module):
    """What happens between two cuts (the thesis's module), and its objective, for all G groups at once.

    Args:
        name: ``"1"`` .. ``"K"``, or ``"classifier"`` for the decoupled classifier.
        objective: the nodes' losses.
        groups: G, the number of nodes.

    Attributes:
        groups: the number of nodes here; all, or those of one rank.
        first: how many nodes of the stage come before those here.
        random: whether a step draws anything, as dropout does.
        reads: parameters that another stage, counted from 0, trains and this one reads: theirs, and this one's copy,
            which may be the same tensors. Of an earlier stage they are read as they are after its update on the same
            batch, of a later one as they are after its update on the batch before.
    """

    def __init__(self, name: str, objective: Objective, groups: int) -> None:
        super().__init__()
        self.name = name
        self.objective = objective
        self.groups = groups
        self.first = 0
        self.random = True
        self.reads: dict[int, list[tuple[nn.Parameter, nn.Parameter]]] = {}

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """What the stage computes of the features that the stage before it handed on, and of the batch."""
        raise NotImplementedError

    def lay_out(self, channels_last: bool) -> None:
        """Put weights into channels-last memory, or leave them as they are."""
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def begin(self) -> None:
        """Called at the start of every training step, when all that the stage ``reads`` is there.

        Heads that follow other weights go one step on.
        """
        for head in self.objective.modules():
            if isinstance(head, MomentumHead):
                head.advance()

    def brought(self, features: Features, batch: Batch) -> tuple[Features, Batch]:
        """What the stage is given, where it computes."""
        return features, batch

    def told(self, loss: LocalLoss) -> LocalLoss:
        """Its losses, detached, where all stages' losses are looked at."""
        return loss.detached()

    def handed_on(self, output: Any) -> Features:
        """What the next stage is given of the stage's output, detached."""
        return output.detach()

    def features(self, output: Any) -> Tensor:
        """The stage's features in its output, with their graph."""
        return output

    def loss(self, output: Any, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes, from the stage's output."""
        return self.objective(output, batch)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """What the stage trains, by names of its own."""
        return dict(self.named_parameters())

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers that belong to the stage, by names of its own."""
        return self.state_dict()

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Put back what ``weights`` gave."""
        self.load_state_dict(values)


class LocalModule(Stage):
    """A stage that the package builds: some blocks of the backbone. A user's own model has others.

    Every parameter and buffer is stacked by group on dimension 0.

    Args:
        name: ``"1"`` .. ``"K"``, or ``"classifier"`` for the decoupled classifier, which has no blocks.
        blocks: features in, features out.
        objective: the nodes' losses on the features.
        groups: G, the number of nodes.

    Attributes:
        as_given: whether maps keep the memory layout that they come in. Else, in training, maps of a type that there
            are kernels of our own for are laid out as these want them, once a stage.
    """

    def __init__(self, name: str, blocks: nn.Sequential, objective: Objective, groups: int) -> None:
        super().__init__(name, objective, groups)
        self.blocks = blocks
        self.as_given = False
        self.random = any(isinstance(layer, (nn.Dropout, FeatureNoise, PatchInfoNCE)) for layer in self.modules())

    def lay_out(self, channels_last: bool) -> None:
        """Put weights into channels-last memory, as maps come; or have maps keep the layout that they come in."""
        self.as_given = not channels_last
        super().lay_out(channels_last)

    def forward(self, features: Tensor, batch: Batch | None = None) -> Any:
        """The stage's features [B, C, H, W] or [B, C], from those of the stage before it; it needs no batch.

        With a batch, as in a training step, an objective that watches gets the ``Passage``.
        """
        if self.training and not self.as_given:
            features = laid_out(features)
        if batch is None or not self.objective.watches:
            return self.blocks(features)
        moves, x = [], features
        for block in self.blocks:
            if isinstance(block, Residual):
                move, x = block.parts(x)
                moves.append(move)
            else:
                before, x = x, block(x)
                moves += [x - before] if x.shape == before.shape else []
        return Passage(features, x, tuple(moves))

    def handed_on(self, output: Any) -> Features:
        """What the next stage is given of the stage's output, detached."""
        carried = self.carried(output)
        return tuple(x.detach() for x in carried) if isinstance(carried, tuple) else carried.detach()

    def carried(self, output: Any) -> Features:
        """What the next stage is given, with its graph."""
        return self.features(output)

    def features(self, output: Any) -> Tensor:
        """The stage's features in its output, with their graph."""
        return output.features if isinstance(output, Passage) else output

    def loss(self, output: Any, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes, from the stage's output."""
        if isinstance(output, Passage):
            return self.objective.of_passage(output, batch)
        return self.objective(output, batch)

    def logits(self, features: Tensor) -> Tensor | None:
        """Scores [G, B, classes] of the nodes on the stage's own features; None where its loss has no classifier."""
        return self.objective.logits(features)
