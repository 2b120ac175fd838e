"""InfoPro (Wang et al., 2021): keep what the image says, besides what the label asks for."""

from __future__ import annotations

from torch import Tensor, nn

from locallearn.config import ObjectiveConfig
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.functional import cross_entropy, reconstruction, supervised_contrastive
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.nn import peers
from locallearn.nn.decoder import Decoder

Weights = tuple[float, float, float, float]
"""(reconstruction, second term) of the first module, then of the last but one."""

WEIGHTS: dict[str, dict[int, Weights]] = {
    "resnet32": {2: (5, 1, 0, 0), 4: (6, 0, 1, 2), 8: (5, 0, 0, 2), 16: (5, 0.05, 0.2, 0.5)},
    "resnet110": {2: (5, 0.5, 0, 0), 4: (1, 0, 0, 1), 8: (5, 0, 0, 1), 16: (5, 0, 0.5, 1)},
}
"""Weights published with InfoPro for its contrastive form on CIFAR-10, by model and K."""


def default_weights(family: str, depth: int) -> Weights:
    """The published weights of the nearest K (of two, the larger) of this model; of ResNet-32 for other models."""
    table = WEIGHTS.get(family, WEIGHTS["resnet32"])
    return table[min(table, key=lambda k: (abs(k - depth), -k))]


def weights_at(ends: Weights, k: int, depth: int) -> tuple[float, float]:
    """Weights (l1, l2) of module k of K: linear from the first module to the last but one."""
    share = (k - 1) / (depth - 2) if depth > 2 else 0.0
    l1, l2 = (first * (1 - share) + last * share for first, last in zip(ends[:2], ends[2:], strict=True))
    return l1, l2


class InfoPro(Objective):
    r"""Reconstruction of the image and a supervised loss, for one group (InfoPro, Wang et al., 2021).

    .. math:: l_1 \mathrm{BCE}(D(h), x) + l_2 L(\mathrm{head}(h), y)

    with L the supervised contrastive loss of a projection or the cross entropy of scores, D a decoder that enlarges
    features to the image, and weights that go linearly from the first module's to the last but one's. Of the
    contrastive loss images that are alone in their class have no part; the public code counts them as 0.

    Args:
        decoder: maps features [B, C, H, W] to scores [B, channels, height, width] of the image.
        head: maps features to projections [1, B, P] (contrastive), or to logits [1, B, classes].
        weights: (l1, l2).
        config: form and temperature of the supervised loss, label smoothing.
    """

    replicable = True

    def __init__(
        self, decoder: nn.Module, head: nn.Module, weights: tuple[float, float], config: ObjectiveConfig
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.weights = weights
        self.config = config
        self.contrastive = config.infopro_loss == "contrastive"

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses [1] of the node whose features on ``batch`` are ``features``, [B, C, H, W]."""
        others = peers.current()
        rebuilt = others.batch_mean(reconstruction(self.decoder(features), batch.pixels))[None]
        out = others.whole_batch(self.head(features), 1)
        if self.contrastive:
            supervised = supervised_contrastive(out, batch.labels, self.config.temperature)
        else:
            supervised = cross_entropy(out, batch.labels, self.config.label_smoothing)
        name = "contrastive" if self.contrastive else "cross_entropy"
        terms = {"reconstruction": rebuilt.detach(), name: supervised.detach()}
        total = self.weights[0] * rebuilt + self.weights[1] * supervised
        return LocalLoss(total, terms, out.detach() if self._classifies else None)

    def logits(self, features: Tensor) -> Tensor | None:
        """Scores [1, B, classes]; None in the contrastive form, and where l2 is 0 and so the head never learns."""
        return self.head(features) if self._classifies else None

    @property
    def _classifies(self) -> bool:
        return not self.contrastive and self.weights[1] > 0


@objectives.register("infopro")
def infopro(given: ObjectiveInput) -> InfoPro:
    """InfoPro's loss of a module other than the last.

    Raises:
        ConfigError: several groups, or features that are vectors.
    """
    config = given.config
    if given.groups > 1:
        expected = "1 with InfoPro, which splits in depth only; groups have other losses"
        raise ConfigError("width", given.groups, expected)
    if len(given.shape) != 3:
        expected = "another loss for a module that ends in vectors (InfoPro decodes feature maps)"
        raise ConfigError("objective.loss", "infopro", expected)
    channels, height, width = given.image
    decoder = Decoder(given.shape[0], channels, (height, width), hidden=max(1, round(12 * given.widen)))
    head = given.head(config.projection if config.infopro_loss == "contrastive" else given.classes)
    k, depth = given.position
    ends = config.infopro_weights or default_weights(given.family, depth)
    assert len(ends) == 4  # checked by the configuration
    return InfoPro(decoder, head, weights_at(ends, k, depth), config)
