"""Local objectives: what the nodes of one module minimise. An objective owns the module's auxiliary networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from locallearn.arguments import checked_fields, checked_names
from locallearn.config import ObjectiveConfig
from locallearn.data.patches import Masking
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.functional import cross_entropy, diversity, n_groups
from locallearn.nn import peers
from locallearn.nn.backbones import Place
from locallearn.nn.heads import HeadInput, build_head, heads
from locallearn.registry import Registry


@checked_names
@dataclass(frozen=True)
class LocalLoss:
    """The losses of one module's G nodes on one batch.

    Attributes:
        total: what each node minimises, [G].
        terms: its parts before weighting, detached, by name, each [G].
        logits: scores of each node's head, detached, [G, B, classes]; None where the loss needs no class scores.
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None

    def detached(self) -> LocalLoss:
        """The same without the graph."""
        return LocalLoss(self.total.detach(), self.terms, self.logits)


@dataclass(frozen=True)
class Passage:
    """How a module's features came to be in one training step.

    Attributes:
        inputs: what the module was given.
        features: what it gave, with the graph.
        moves: what every block added to what it was given, with the graph: the body of a residual block before the
            shortcut is added, else the difference; blocks that change the features' shape otherwise have none. A
            stage of a user's own model is one block.
    """

    inputs: Tensor
    features: Tensor
    moves: tuple[Tensor, ...]


class Objective(nn.Module):
    """Base class of local objectives: the losses of the G nodes of one module, with the heads that they need.

    A subclass defines ``forward(features, batch)``, which returns a ``LocalLoss`` with one loss a group. Its child
    modules are its auxiliary networks; each takes the module's features.

    Every parameter and buffer is stacked by group on dimension 0, as those of the blocks are.

    With replicas (``mesh.data``) features, images and pixels are those of this rank's part of the batch, and labels
    those of the whole: an objective that has ``replicable`` set brings its outputs together with
    ``locallearn.nn.peers.current``, so that every replica computes the loss of the whole batch.
    """

    views: ClassVar[int] = 1
    """Views of every image that a batch must hold: 1, or 2 for losses that compare them."""
    masking: Masking | None = None
    """What a batch must show of every image, for losses on hidden patches; None is all of it."""
    needs_labels: ClassVar[bool] = True
    """Whether a batch without labels is refused; only batches of a user's own model may have none."""
    replicable: ClassVar[bool] = False
    """Whether replicas of a node can compute it together."""
    watches: ClassVar[bool] = False
    """Whether a training step gives it the ``Passage``."""
    draws: ClassVar[bool] = True
    """Whether it may draw from torch's generators, which other stages on threads must then wait to draw from."""
    unlabelled: ClassVar[bool] = False
    """Whether a whole network is trained so without labels from one view, and ends in features."""
    source: str = ""
    """Submodule of a user's model whose features are the ``Passage``'s inputs in the first stage, instead of the
    batch."""

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses of the nodes whose features on ``batch`` are ``features``, [B, C, H, W] or [B, C]."""
        raise NotImplementedError

    def of_passage(self, passage: Passage, batch: Batch) -> LocalLoss:
        """Losses of the nodes in a training step, for an objective that ``watches``."""
        return self(passage.features, batch)

    def logits(self, features: Tensor) -> Tensor | None:
        """Scores [G, B, classes] of every node, or None where this objective has no classifier."""
        return None

    def start(self) -> None:
        """Set the weights that do not start random; called once, after the others are drawn."""


@checked_fields
@dataclass(frozen=True)
class ObjectiveInput:
    """What an objective is built for.

    Attributes:
        config: its settings.
        shape: features of one image over all groups, (C, H, W) or (C,); (T, C) for tokens.
        inputs: the same of what the module is given; empty where nothing of such a form is known.
        groups: G.
        classes: number of classes.
        image: channels, height and width [pixels] of the images.
        widen: the model's factor on hidden units of auxiliary networks.
        family: the model without its width factor, ``resnet32``.
        position: (k, K): the module, counted from 1, and the number of modules.
        scorer: the model's own last linear layer, for heads that read it; None where it has none.
        place: where the module ends in a backbone of the package's own; None in a user's own model.
        make_head: makes the auxiliary head, instead of the one that the settings name.
    """

    config: ObjectiveConfig
    shape: tuple[int, ...]
    groups: int
    classes: int
    image: tuple[int, int, int]
    widen: float
    family: str
    position: tuple[int, int]
    scorer: nn.Linear | None = None
    place: Place | None = None
    make_head: Callable[[HeadInput], nn.Module] | None = None
    inputs: tuple[int, ...] = ()

    @property
    def options(self) -> Any:
        """Settings of the loss's own: an instance of the dataclass that it was registered with; None without."""
        name = self.config.loss
        return None if name is None else objectives.options(name, self.config.options, "objective.options")

    @property
    def hidden(self) -> int:
        """Hidden units of the head's linear layers."""
        sharers = self.groups if self.config.head_width_of == "module" else 1
        return max(1, round(self.config.head_width * self.widen / sharers))

    def own_head(self, outputs: int) -> nn.Module | None:
        """The user's own or registered head, for features of any shape; None where the settings name ``<n>c<m>f``."""
        config = self.config
        if self.make_head is None and config.head not in heads:
            return None
        given = HeadInput(self.shape, outputs, self.groups, self.hidden, config.stop_gradient, config.pool_others)
        if self.make_head is not None:
            return self.make_head(given)
        options = heads.options(config.head, config.head_options, "objective.head_options")
        return heads.build(config.head, dataclasses.replace(given, place=self.place, options=options))

    def head(self, outputs: int) -> nn.Module:
        """The auxiliary head that the settings name, with that many outputs a group."""
        config = self.config
        if self.make_head is not None:
            made = self.make_head(HeadInput(self.shape, outputs, self.groups, self.hidden))
            made.register_forward_hook(_grouped)
            return made
        if len(self.shape) == 2:
            raise ConfigError("tokens", "all", "mean or class with this objective, whose head sees one vector")
        return build_head(
            config.head,
            self.shape,
            outputs,
            groups=self.groups,
            hidden=self.hidden,
            stop_gradient=config.stop_gradient,
            pool_others=config.pool_others,
            place=self.place,
            options=config.head_options,
        )


def _grouped(_module: nn.Module, _args: Any, scores: Tensor) -> Tensor:
    """Scores [B, outputs] of a head without groups as those of one."""
    return scores[None] if scores.dim() == 2 else scores


objectives: Registry[Callable[[ObjectiveInput], Objective]] = Registry(
    "objective.loss", "given: ObjectiveInput", Objective
)
"""Builders of objectives by the name of the loss (``objective.loss``)."""


def with_diversity(
    total: Tensor, logits: Tensor, batch: Batch, config: ObjectiveConfig, terms: dict[str, Tensor]
) -> Tensor:
    """Add the diversity penalty to the losses [G] where there are several groups, and note it among the terms."""
    if not config.diversity_weight or n_groups(logits) == 1:
        return total
    penalty = diversity(logits, batch.labels, config.diversity_temperature)
    terms["diversity"] = penalty.detach()
    return total + config.diversity_weight * penalty


class Classification(Objective):
    """Cross entropy through an auxiliary head, plus the diversity penalty between the groups of a module.

    Args:
        head: maps features [B, ...] to logits [G, B, classes].
        config: label smoothing, and weight and temperature of the penalty.
    """

    replicable = True

    def __init__(self, head: nn.Module, config: ObjectiveConfig) -> None:
        super().__init__()
        self.head = head
        self.config = config

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses of the nodes whose features on ``batch`` are ``features``, [B, C, H, W] or [B, C]."""
        logits = peers.current().whole_batch(self.head(features), 1)
        total = cross_entropy(logits, batch.labels, self.config.label_smoothing)
        terms = {"cross_entropy": total.detach()}
        total = with_diversity(total, logits, batch, self.config, terms)
        return LocalLoss(total, terms, logits.detach())

    def logits(self, features: Tensor) -> Tensor:
        """Scores [G, B, classes] of the heads."""
        return self.head(features)


@objectives.register("cross-entropy")
def classification(given: ObjectiveInput) -> Classification:
    """Cross entropy through the head that the settings name."""
    return Classification(given.head(given.classes), given.config)
