"""Pure functions of logits and labels. G groups are a leading dimension, and every group has its own value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _precise(x: Tensor) -> Tensor:
    """At least fp32: losses are never computed in half precision."""
    return x.float() if x.dtype.itemsize < 4 else x


def cross_entropy(logits_GBC: Tensor, labels_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of every group, [G].

    Args:
        logits_GBC: unnormalised scores [G, B, C].
        labels_B: class indices [B].
        label_smoothing: share of the target spread over all classes, in [0, 1).
    """
    groups, batch, _ = logits_GBC.shape
    losses = F.cross_entropy(
        _precise(logits_GBC).flatten(0, 1),
        labels_B.repeat(groups),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(groups, batch).mean(1)


def diversity(logits_GBC: Tensor, labels_B: Tensor, temperature: float = 3.0) -> Tensor:
    r"""Each group's share of the diversity penalty, [G] (Sec. 3.2.4, Eq. 1).

    With :math:`\hat p^a` the softmax of group a at ``temperature``, its target entry removed and the rest
    renormalised to sum 1, group a's share is

    .. math:: \frac{1}{G(G-1)} \sum_{b \ne a} \cos(\hat p^a, \mathrm{sg}[\hat p^b])

    averaged over the batch, so that the sum over groups is the mean over the G(G-1) ordered pairs. It is zero for
    one group.

    Args:
        logits_GBC: unnormalised scores [G, B, C] with C >= 2.
        labels_B: class indices [B].
        temperature: softmax temperature.
    """
    groups, _, classes = logits_GBC.shape
    if groups == 1:
        return _precise(logits_GBC.new_zeros(1))
    target_BC = F.one_hot(labels_B, classes).bool()
    # a softmax over the other entries alone is the renormalised softmax without its target entry
    rest_GBC = (_precise(logits_GBC) / temperature).masked_fill(target_BC, float("-inf")).softmax(-1)
    unit_GBC = F.normalize(rest_GBC, dim=-1)
    others_GBC = unit_GBC.detach().sum(0) - unit_GBC.detach()
    return (unit_GBC * others_GBC).sum(-1).mean(1) / (groups * (groups - 1))


def layerwise_weights(n: int) -> list[float]:
    """Weights of the n modules in the layerwise ensemble, 2^j / sum_i 2^i for j = 1..n (Belilovsky et al., 2019)."""
    total = sum(2**j for j in range(1, n + 1))
    return [2**j / total for j in range(1, n + 1)]


def layerwise_ensemble(logits: Sequence[Tensor]) -> Tensor:
    r"""Class probabilities of the layerwise ensemble, [B, C] (Eq. 2).

    .. math:: l_e = \sum_j \alpha_j \frac{1}{G_j} \sum_i \mathrm{softmax}(l_{ij})

    with the weights of :func:`layerwise_weights`. Eq. 2 has another constant factor in front, which changes no
    prediction; here the result sums to 1.

    Args:
        logits: for every module in order (the decoupled classifier last) its groups' scores [G_j, B, C].
    """
    weights = layerwise_weights(len(logits))
    return torch.stack([w * _precise(x).softmax(-1).mean(0) for w, x in zip(weights, logits, strict=True)]).sum(0)
