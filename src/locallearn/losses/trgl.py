"""Transport-regularised greedy learning: a local loss, and a penalty on how far a module moves its features."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from locallearn.config.own_parts import TransportOptions
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, Passage, objectives
from locallearn.nn import peers
from locallearn.nn.precision import precise


def transport(moves: tuple[Tensor, ...], groups: int) -> Tensor:
    """Mean squared move of every group, summed over the blocks, [G] (Karkar et al., 2023).

    Args:
        moves: what each block added, [B, C, ...].
        groups: G; group g has the channels [g C / G, (g+1) C / G).
    """
    sums = [precise(move).square().flatten(1).unflatten(1, (groups, -1)).mean((0, 2)) for move in moves]
    return torch.stack(sums).sum(0)


class TransportPenalty(Objective):
    r"""Another loss plus how far the blocks move the features (TRGL, Karkar et al., NeurIPS 2023).

    .. math:: \ell + \frac{1}{2 \tau} \sum_b \mathrm{mean}(r_b^2)

    with r_b the residual of block b before the shortcut is added; a stage of a user's own model is one block, and its
    residual what it adds to the features that it is given. Outside of training steps, where blocks are not
    watched, it is the other loss alone, and so is it in a module none of whose blocks keeps the features' shape.

    Args:
        inner: the other loss.
        tau: step size of the transport; small keeps modules close to the identity.
        groups: G.
    """

    watches = True

    def __init__(self, inner: Objective, tau: float = 1.0, groups: int = 1) -> None:
        super().__init__()
        self.inner, self.tau, self.groups = inner, tau, groups

    @property
    def replicable(self) -> bool:  # type: ignore[override]
        """Whether the other loss is."""
        return self.inner.replicable

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """The other loss."""
        return self.inner(features, batch)

    def of_passage(self, passage: Passage, batch: Batch) -> LocalLoss:
        """Losses of the nodes, with the penalty."""
        loss = self(passage.features, batch)
        if not passage.moves:
            return loss
        penalty = peers.current().batch_mean(transport(passage.moves, self.groups))
        terms = {**loss.terms, "transport": penalty.detach()}
        return LocalLoss(loss.total + penalty / (2 * self.tau), terms, loss.logits)

    def logits(self, features: Tensor) -> Tensor | None:
        """Scores of the other loss."""
        return self.inner.logits(features)

    def start(self) -> None:
        """Set what the other loss sets."""
        self.inner.start()


@objectives.register("transport", options=TransportOptions)
def transported(given: ObjectiveInput) -> TransportPenalty:
    """The transport penalty on top of another loss.

    Raises:
        ConfigError: the other loss watches too, compares views or rebuilds hidden patches.
    """
    options: TransportOptions = given.options
    config = dataclasses.replace(given.config, loss=options.of, options={})
    inner = objectives.build(options.of, dataclasses.replace(given, config=config))
    if inner.watches or inner.views != 1 or inner.masking is not None:
        raise ConfigError(
            "objective.options.of", options.of, "a loss on features of whole images, like cross-entropy"
        )
    return TransportPenalty(inner, options.tau, given.groups)
