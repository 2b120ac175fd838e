"""Local objectives: what the nodes of one module minimise. An objective owns the module's auxiliary heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from locallearn.data.store import Batch
from locallearn.losses.functional import cross_entropy, diversity


@dataclass(frozen=True)
class LocalLoss:
    """The losses of one module's G nodes on one batch.

    Attributes:
        total: what each node minimises, [G].
        terms: its parts before weighting, detached, by name, each [G].
        logits: scores of each node's head, detached, [G, B, classes].
    """

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor

    def detached(self) -> LocalLoss:
        """The same without the graph."""
        return LocalLoss(self.total.detach(), self.terms, self.logits)


class Classification(nn.Module):
    """Cross entropy through an auxiliary head, plus the diversity penalty between the groups of a module.

    Args:
        head: maps features [B, ...] to logits [G, B, classes].
        label_smoothing: of the cross entropy.
        diversity_weight: weight of the diversity penalty; 0 turns it off.
        diversity_temperature: its softmax temperature.
    """

    def __init__(
        self,
        head: nn.Module,
        label_smoothing: float = 0.0,
        diversity_weight: float = 0.0,
        diversity_temperature: float = 3.0,
    ) -> None:
        super().__init__()
        self.head = head
        self.label_smoothing = label_smoothing
        self.diversity_weight = diversity_weight
        self.diversity_temperature = diversity_temperature

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses of the nodes whose features on ``batch`` are ``features``, [B, C, H, W] or [B, C]."""
        logits = self.head(features)
        total = cross_entropy(logits, batch.labels, self.label_smoothing)
        terms = {"cross_entropy": total.detach()}
        if self.diversity_weight and len(logits) > 1:
            penalty = diversity(logits, batch.labels, self.diversity_temperature)
            total = total + self.diversity_weight * penalty
            terms["diversity"] = penalty.detach()
        return LocalLoss(total, terms, logits.detach())
