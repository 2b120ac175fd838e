"""Predsim (Nokland and Eidnes, 2019): a local classifier, and features as similar as their labels are."""

from __future__ import annotations

from torch import Tensor, nn

from locallearn.config import ObjectiveConfig
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.functional import cross_entropy, similarity_loss
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives, with_diversity
from locallearn.nn import peers
from locallearn.nn.groups import GroupLinear
from locallearn.nn.similarity import PooledClassifier, SimilarityHead


class PredSim(Objective):
    r"""A local classifier, and features as alike as their labels are (Nokland and Eidnes, 2019), of each group.

    .. math:: (1 - w) L_{CE} + \frac{w}{B^2} \sum_{ij} (S(f(h))_{ij} - S(y)_{ij})^2

    with S the cosine similarities of all pairs of examples; and the diversity penalty between groups. What differs
    from their code with VGGs is that features are seen after dropout.

    Args:
        classifier: maps features to logits [G, B, classes]; None with w = 1 (``sim`` alone).
        similarity: maps features to the vectors [G, B, F] that are compared; None with w = 0 (``pred`` alone).
        classes: number of classes.
        config: w, label smoothing, and weight and temperature of the penalty.
    """

    replicable = True

    def __init__(
        self, classifier: nn.Module | None, similarity: nn.Module | None, classes: int, config: ObjectiveConfig
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.similarity = similarity
        self.classes = classes
        self.config = config

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses of the nodes whose features on ``batch`` are ``features``, [B, C, H, W] or [B, C]."""
        weight, parts, logits = self.config.predsim_weight, [], None
        terms: dict[str, Tensor] = {}
        whole_batch = peers.current().whole_batch
        if self.similarity is not None:
            unlike = similarity_loss(whole_batch(self.similarity(features), 1), batch.labels, self.classes)
            terms["similarity"] = unlike.detach()
            parts.append(weight * unlike)
        if self.classifier is not None:
            logits = whole_batch(self.classifier(features), 1)
            wrong = cross_entropy(logits, batch.labels, self.config.label_smoothing)
            terms["cross_entropy"] = wrong.detach()
            parts.append(with_diversity((1 - weight) * wrong, logits, batch, self.config, terms))
            logits = logits.detach()
        return LocalLoss(sum(parts[1:], parts[0]), terms, logits)

    def logits(self, features: Tensor) -> Tensor | None:
        """Scores [G, B, classes], or None with ``sim`` alone."""
        return None if self.classifier is None else self.classifier(features)

    def start(self) -> None:
        """The classifiers' weights start at zero."""
        for layer in self.classifier.modules() if self.classifier is not None else ():
            if isinstance(layer, GroupLinear):
                nn.init.zeros_(layer.weight)


@objectives.register("predsim")
def predsim(given: ObjectiveInput) -> PredSim:
    """Predsim of all groups of one module.

    Raises:
        ConfigError: ``sim`` alone with a diversity penalty, or groups of one channel.
    """
    config, groups = given.config, given.groups
    if len(given.shape) == 2:
        raise ConfigError("tokens", "all", "mean or class with predsim, which compares whole examples")
    weight = config.predsim_weight
    if weight == 1 and config.diversity_weight and groups > 1:
        expected = "0 with objective.predsim_weight 1, which has no class scores to compare"
        raise ConfigError("objective.diversity_weight", config.diversity_weight, expected)
    stop = config.stop_gradient and groups > 1
    if weight and not stop and given.shape[0] == groups:
        raise ConfigError("width", groups, f"fewer than the {groups} channels with predsim (one has no similarity)")
    classifier = similarity = None
    if weight < 1:
        classifier = PooledClassifier(given.shape, given.classes, groups, stop, config.predsim_inputs)
    if weight > 0:
        similarity = SimilarityHead(given.shape, groups, stop, config.pool_others)
    return PredSim(classifier, similarity, given.classes, config)
