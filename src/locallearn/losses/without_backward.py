"""Baselines without backward passes: direct feedback alignment, random target projection, Forward-Forward.

As functions they serve loops of one's own (``examples/without_backward.py``); direct random target projection, which
needs labels and nothing of later layers, is a local objective too. They are here to be compared with, and fall well
behind losses that a head is trained for.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.losses.supervised import no_diversity
from locallearn.nn.precision import precise


def direct_feedback(features_BF: Tensor, errors_BC: Tensor, feedback_FC: Tensor) -> Tensor:
    r"""What features minimise where an error reaches them by fixed weights alone, a scalar.

    .. math:: \frac{1}{B} \sum_b h_b \cdot (M e_b)

    Its gradient by the features is M e, in place of what a backward pass would bring. With e the softmax less the
    one-hot labels this is direct feedback alignment (Noekland, 2016), and with e the negative one-hot labels direct
    random target projection (Frenkel et al., 2021). With M the transposed weights of a linear output layer that
    follows at once it is backpropagation.

    Args:
        features_BF: h, with the graph of one layer.
        errors_BC: e.
        feedback_FC: M, fixed.
    """
    return (precise(features_BF) * (errors_BC.detach() @ feedback_FC.T)).sum(1).mean()


def goodness(features_BF: Tensor) -> Tensor:
    """Mean square of every image's features, [B] (Hinton, 2022, who also has the sum)."""
    return precise(features_BF).square().mean(1)


def forward_forward(positive_BF: Tensor, negative_BF: Tensor, threshold: float = 1.0) -> Tensor:
    """Forward-Forward's loss of one layer, a scalar (Hinton, 2022).

    The mean of softplus(threshold - goodness) over positive data, plus that of softplus(goodness - threshold) over
    negative data.

    Args:
        positive_BF: features of images with their labels.
        negative_BF: features of images with other labels.
        threshold: between the two.
    """
    positive, negative = goodness(positive_BF), goodness(negative_BF)
    return F.softplus(threshold - positive).mean() + F.softplus(negative - threshold).mean()


class RandomTargets(Objective):
    """Direct random target projection (Frenkel et al., 2021): labels by fixed random weights are the error.

    Within a module of several blocks the error is propagated as usual; cut layerwise there is no backward pass from
    layer to layer at all. There is no head, and so no class scores.

    Args:
        shape: features of one image over all groups.
        classes: number of classes.
        groups: G; every group has its own rows of the weights.
    """

    feedback: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        numbers = prod(shape)
        self.register_buffer("feedback", torch.randn(numbers, classes) / numbers**0.5)

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes whose features on ``batch`` are ``features``, [B, C, H, W] or [B, C]."""
        targets = -F.one_hot(batch.labels, self.feedback.shape[1]).to(self.feedback.dtype)
        parts = features.flatten(1).chunk(self.groups, 1)
        total = torch.stack(
            [
                direct_feedback(part, targets, feedback)
                for part, feedback in zip(parts, self.feedback.chunk(self.groups), strict=True)
            ]
        )
        return LocalLoss(total, {"projection": total.detach()}, None)


@objectives.register("random-targets")
def random_targets(given: ObjectiveInput) -> RandomTargets:
    """Direct random target projection.

    Raises:
        ConfigError: a diversity penalty, which needs class scores.
    """
    no_diversity(given, "random-targets")
    return RandomTargets(given.shape, given.classes, given.groups)
