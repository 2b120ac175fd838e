"""Supervised contrastive learning as a local objective of its own (SCPL)."""

from __future__ import annotations

from torch import Tensor, nn

from locallearn.config.own_parts import SupervisedContrastiveOptions
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.functional import supervised_contrastive
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.nn import peers


class SupervisedContrastive(Objective):
    """The supervised contrastive loss of a projection, and nothing else (SCPL, Wang et al., 2022).

    Images of a class are pulled together and those of others pushed apart
    (``locallearn.losses.functional.supervised_contrastive``), so the module has no class scores of its own. The
    authors' code divides by the number of images of a class with the image itself, and counts images that are alone
    in their class as 0; here both follow Khosla et al. (2020).

    Args:
        head: maps features to projections [G, B, P].
        temperature: of the similarities.
    """

    replicable = True

    def __init__(self, head: nn.Module, temperature: float = 0.1) -> None:
        super().__init__()
        self.head = head
        self.temperature = temperature

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes whose features on ``batch`` are ``features``, [B, C, H, W] or [B, C]."""
        projections = peers.current().whole_batch(self.head(features), 1)
        total = supervised_contrastive(projections, batch.labels, self.temperature)
        return LocalLoss(total, {"contrastive": total.detach()}, None)


def no_diversity(given: ObjectiveInput, loss: str) -> None:
    """Refuse the diversity penalty where a loss has no class scores that it could compare."""
    config = given.config
    if config.diversity_weight and given.groups > 1:
        expected = f"0 with objective.loss {loss}, which has no class scores to compare"
        raise ConfigError("objective.diversity_weight", config.diversity_weight, expected)


@objectives.register("supervised-contrastive", options=SupervisedContrastiveOptions)
def supervised(given: ObjectiveInput) -> SupervisedContrastive:
    """The supervised contrastive loss through the head that the settings name.

    Raises:
        ConfigError: a diversity penalty, which needs class scores.
    """
    no_diversity(given, "supervised-contrastive")
    options: SupervisedContrastiveOptions = given.options
    return SupervisedContrastive(given.head(options.projection), options.temperature)
