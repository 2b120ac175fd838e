"""Self-supervised objectives: losses on the projections of two views of every image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from locallearn.config import ModificationConfig
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.contrastive import (
    cosine_similarities,
    modified_nt_xent,
    nt_xent,
    select_negatives,
    select_positives,
    share_thresholds,
)
from locallearn.losses.decorrelation import barlow_twins, vicreg
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.nn import peers


class TwoViews(Objective):
    """A loss on the projections of two views; every group has a head and a loss of its own.

    Args:
        head: maps features [2N, ...] to projections [G, 2N, P].
        loss: from projections to losses [G].
    """

    views = 2
    needs_labels = False
    replicable = True

    def __init__(self, head: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head = head
        self.loss = loss

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses of the nodes whose features of 2N views are ``features``, [2N, C, H, W] or [2N, C]."""
        return LocalLoss(self.loss(_whole_batch(self.head(features))), {}, None)


def _whole_batch(projections_GBP: Tensor) -> Tensor:
    """Projections [G, 2N, P] of all images, where replicas have a part of each of the two views."""
    views_G2NP = projections_GBP.unflatten(1, (2, -1))
    return peers.current().whole_batch(views_G2NP, 2).flatten(1, 2)


class ModifiedNTXent(Objective):
    """NT-Xent over the pairs that this module is to see (Algorithms 5 to 7).

    Args:
        head: maps features [2N, ...] to projections [G, 2N, P].
        temperature: of NT-Xent.
        config: which pairs, and who says how alike they are.
        position: (j, K): the module, counted from 1, and the number of modules. The last one sees every pair.
    """

    views = 2
    needs_labels = False
    replicable = True

    def __init__(
        self, head: nn.Module, temperature: float, config: ModificationConfig, position: tuple[int, int]
    ) -> None:
        super().__init__()
        self.head = head
        self.temperature = temperature
        self.config = config
        self.position = position
        self.chooses = position[0] < position[1]

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses of the nodes whose features of 2N views are ``features``; the terms are the shares of pairs."""
        projections = _whole_batch(self.head(features))
        if not self.chooses:
            return LocalLoss(nt_xent(projections, self.temperature), {}, None)
        similarities = cosine_similarities(projections)
        positives, negatives = self._select(self._scores(similarities, batch))
        total = modified_nt_xent(similarities, positives, negatives, self.temperature)
        share = positives.float().mean(1).expand(total.shape)
        return LocalLoss(total, {"positive_share": share, "negative_share": _negative_share(negatives, total)}, None)

    def _scores(self, similarities: Tensor, batch: Batch) -> Tensor:
        if self.config.scorer == "self":
            return similarities.detach()
        assert batch.scores is not None  # the training loop owns the scorer
        return batch.scores[None]

    def _select(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Which positives [G, N] and which negatives [G, 2N, 2N]; 1 stands for G where all groups choose alike."""
        config, (j, depth) = self.config, self.position
        sign = 1 if config.difficulty == "increasing" else -1  # the hardest pairs are the easiest of negated scores
        # a pair has one similarity: rounding must not choose it from one side and leave it out from the other
        scores = sign * (scores + scores.mT) / 2
        positive = config.positive_ratio ** (depth - j)
        negative = config.negative_ratio ** (depth - j) if config.pairs == "both" else 1.0
        alpha, beta = share_thresholds(scores, positive, negative)
        if config.positive_thresholds:
            alpha = torch.full_like(alpha, sign * config.positive_thresholds[j - 1])
        if config.negative_thresholds:
            beta = torch.full_like(beta, sign * config.negative_thresholds[j - 1])
        return select_positives(scores, alpha), select_negatives(scores, beta)


def _negative_share(negatives_GBB: Tensor, total_G: Tensor) -> Tensor:
    """Share of the negative pairs that are chosen, [G]."""
    n_views = negatives_GBB.shape[-1]
    same = torch.eye(n_views // 2, dtype=torch.bool, device=negatives_GBB.device).repeat(2, 2)
    chosen = (negatives_GBB & ~same).sum((1, 2)) / (n_views * (n_views - 2))
    return chosen.expand(total_G.shape)


@objectives.register("nt-xent")
def contrastive(given: ObjectiveInput) -> TwoViews:
    """NT-Xent (SimCLR)."""
    loss = partial(nt_xent, temperature=given.config.temperature)
    return TwoViews(given.head(given.config.projection), loss)


@objectives.register("nt-xent-llm")
def modified_contrastive(given: ObjectiveInput) -> ModifiedNTXent:
    """NT-Xent with layerwise loss modification.

    Raises:
        ConfigError: another number of thresholds than modules before the last.
    """
    config, depth = given.config.modification, given.position[1]
    for name in ("positive_thresholds", "negative_thresholds"):
        if len(getattr(config, name)) not in (0, depth - 1):
            expected = f"{depth - 1} numbers, one for each module but the last"
            raise ConfigError(f"objective.modification.{name}", getattr(config, name), expected)
    head = given.head(given.config.projection)
    return ModifiedNTXent(head, given.config.temperature, config, given.position)


@objectives.register("barlow-twins")
def redundancy_reduction(given: ObjectiveInput) -> TwoViews:
    """Barlow Twins."""
    weight = given.config.redundancy_weight
    loss = partial(barlow_twins, redundancy_weight=0.005 if weight is None else weight)
    return TwoViews(given.head(given.config.projection), loss)


@objectives.register("vicreg")
def variance_invariance_covariance(given: ObjectiveInput) -> TwoViews:
    """VICReg."""
    weights = given.config.vicreg_weights or (25.0, 25.0, 1.0)
    return TwoViews(given.head(given.config.projection), partial(vicreg, weights=weights))
