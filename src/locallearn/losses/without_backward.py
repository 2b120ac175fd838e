"""Baselines without backward passes: direct feedback alignment, random target projection, Forward-Forward.

As functions they serve loops of one's own (``examples/without_backward.py``); direct random target projection, which
needs labels and nothing of later layers, is a local objective too. They are here to be compared with, and fall well
behind losses that a head is trained for.
"""

from __future__ import annotations

from math import prod
from typing import Literal

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
    follows at once it is backpropagation. Weights of either sign are as likely, so the labels' sign does not matter;
    the public code of the latter sums over the batch where this is the mean.

    Args:
        features_BF: h, with the graph of one layer.
        errors_BC: e.
        feedback_FC: M, fixed.
    """
    return (precise(features_BF) * (errors_BC.detach() @ feedback_FC.T)).sum(1).mean()


Goodness = Literal["mean", "sum"]
"""The mean square of a layer's features, or the sum of their squares."""


def goodness(features_BF: Tensor, of: Goodness = "mean") -> Tensor:
    """How good every image is for a layer, [B] (Hinton, 2022).

    Args:
        features_BF: the layer's features.
        of: the mean of their squares, or the sum, as the paper and its author's code have it.
    """
    squares_BF = precise(features_BF).square()
    return squares_BF.mean(1) if of == "mean" else squares_BF.sum(1)


def forward_forward(
    positive_BF: Tensor, negative_BF: Tensor, threshold: float | None = None, of: Goodness = "mean"
) -> Tensor:
    """Forward-Forward's loss of one layer, a scalar (Hinton, 2022).

    The mean of softplus(threshold - goodness) over positive data, plus that of softplus(goodness - threshold) over
    negative data. Mean and sum have their threshold at the same features; with the sum the loss tells images that are
    near to it apart much more sharply. Between layers features are brought to the length sqrt(F), so that a layer is
    not told how good they were before. The author's code also keeps each unit's mean activity near that of the
    others, and lets the gradient pass where a ReLU is 0; both are left out.

    Args:
        positive_BF: features of images with their labels.
        negative_BF: features of images with other labels.
        threshold: between the two; by default 1 for the mean and the number of features F for the sum, as published.
        of: which goodness.
    """
    positive, negative = goodness(positive_BF, of), goodness(negative_BF, of)
    if threshold is None:
        threshold = 1.0 if of == "mean" else float(positive_BF.shape[1])
    return F.softplus(threshold - positive).mean() + F.softplus(negative - threshold).mean()


class RandomTargets(Objective):
    """Direct random target projection (Frenkel et al., 2021): labels by fixed random weights are the error.

    Within a module of several blocks the error is propagated as usual; cut layerwise there is no backward pass from
    layer to layer at all. There is no head, and so no class scores. The weights are drawn as in the public code,
    uniform in +-sqrt(6 / n) for n features (He et al., 2015).

    Args:
        shape: features of one image over all groups.
        classes: number of classes.
        groups: G; every group has its own rows of the weights.
    """

    feedback: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        bound = (6 / prod(shape)) ** 0.5
        self.register_buffer("feedback", torch.empty(prod(shape), classes).uniform_(-bound, bound))

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
