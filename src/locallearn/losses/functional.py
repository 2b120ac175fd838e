"""Pure functions of a head's outputs and labels. G groups are a leading dimension; every group has its own value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from locallearn.first_order import first_order
from locallearn.nn import peers
from locallearn.nn.precision import precise


def _exact(device: torch.device) -> torch.autocast:
    """A context without autocast, for matrix products inside a loss."""
    return torch.autocast(device.type, enabled=False)


def _is_target(labels_B: Tensor, classes: int) -> Tensor:
    """One-hot labels [B, C] as booleans; torch's own one_hot looks at the labels, and the host waits for them."""
    return labels_B[:, None] == torch.arange(classes, device=labels_B.device)


def cross_entropy(logits_GBC: Tensor, labels_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of every group, [G].

    Args:
        logits_GBC: unnormalised scores [G, B, C].
        labels_B: class indices [B].
        label_smoothing: share of the target spread over all classes, in [0, 1).
    """
    groups, batch, _ = logits_GBC.shape
    losses = F.cross_entropy(
        precise(logits_GBC).flatten(0, 1),
        labels_B.repeat(groups),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(groups, batch).mean(1)


def n_groups(logits_GBC: Tensor) -> int:
    """G of the module whose scores these are, groups on other ranks included."""
    return len(logits_GBC) * peers.current().ways


def diversity(logits_GBC: Tensor, labels_B: Tensor, temperature: float = 3.0) -> Tensor:
    r"""Each group's share of the diversity penalty, [G] (Sec. 3.2.4, Eq. 1).

    With :math:`\hat p^a` the softmax of group a at ``temperature``, its target entry removed and the rest
    renormalised to sum 1, group a's share is

    .. math:: \frac{1}{G(G-1)} \sum_{b \ne a} \cos(\hat p^a, \mathrm{sg}[\hat p^b])

    averaged over the batch, so that the sum over groups is the mean over the G(G-1) ordered pairs. It is zero for
    one group. Where other ranks have groups of the module, their softmax is exchanged.

    Args:
        logits_GBC: unnormalised scores [G, B, C] with C >= 2.
        labels_B: class indices [B].
        temperature: softmax temperature.
    """
    classes, groups = logits_GBC.shape[2], n_groups(logits_GBC)
    if groups == 1:
        return precise(logits_GBC.new_zeros(1))
    loss_G = _Diversity.apply(logits_GBC, _is_target(labels_B, classes), temperature, groups)
    assert isinstance(loss_G, Tensor)
    return loss_G


class _Diversity(torch.autograd.Function):
    """The penalty with its gradient, which is short.

    With u = p / |p| of a softmax p at temperature T and a fixed vector v, c = u . v has the gradient u (v - c u) / T.
    """

    @staticmethod
    def forward(ctx: Any, logits_GBC: Tensor, target_BC: Tensor, temperature: float, groups: int) -> Tensor:
        # a softmax over the other entries alone is the renormalised softmax without its target entry
        rest_GBC = (precise(logits_GBC) / temperature).masked_fill(target_BC, float("-inf")).softmax(-1)
        unit_GBC = F.normalize(rest_GBC, dim=-1)
        others_GBC = peers.current().gather_groups(unit_GBC, 0).sum(0) - unit_GBC
        cosine_GB = (unit_GBC * others_GBC).sum(-1)
        pairs = groups * (groups - 1)
        slope_GBC = unit_GBC * (others_GBC - cosine_GB[..., None] * unit_GBC)
        ctx.save_for_backward(slope_GBC / (temperature * len(target_BC) * pairs))
        ctx.dtype = logits_GBC.dtype
        return cosine_GB.mean(1) / pairs

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope_GBC,) = ctx.saved_tensors
        return (slope_GBC * grads[0][:, None, None]).to(ctx.dtype), None, None, None


def supervised_contrastive(projections_GBP: Tensor, labels_B: Tensor, temperature: float = 0.07) -> Tensor:
    r"""Supervised contrastive loss of every group, one view an image, [G] (Khosla et al., 2020, :math:`L_{out}`).

    .. math:: -\frac{1}{|A|} \sum_{i \in A} \frac{1}{|P(i)|} \sum_{p \in P(i)}
              \log \frac{e^{z_i \cdot z_p / \tau}}{\sum_{a \ne i} e^{z_i \cdot z_a / \tau}}

    with unit vectors z; P(i) are the other images of i's class, and A the images that have any. Images without one
    are left out of the mean (InfoPro's public code counts them as 0); where no image has one the loss is 0.

    Args:
        projections_GBP: vectors of any length [G, B, P].
        labels_B: class indices [B].
        temperature: :math:`\tau`.
    """
    itself_BB = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    positive_BB = (labels_B[:, None] == labels_B) & ~itself_BB
    with _exact(projections_GBP.device):
        unit_GBP = unit(projections_GBP)
        scores_GBB = unit_GBP @ unit_GBP.mT / temperature
    log_p_GBB = scores_GBB.masked_fill(itself_BB, float("-inf")).log_softmax(-1)
    n_positive_B = positive_BB.sum(1)
    mean_GB = log_p_GBB.masked_fill(~positive_BB, 0.0).sum(-1) / n_positive_B.clamp(min=1)
    return -mean_GB.sum(-1) / (n_positive_B > 0).sum().clamp(min=1)


def unit(x: Tensor) -> Tensor:
    """Vectors [..., P] divided by their lengths, in at least fp32; a vector of zeros stays one and has no gradient.

    The slope of x / |x| is 1 / |x|, which half precision cannot hold where x is as small as its smallest numbers, so
    such vectors count as zeros too.
    """
    least = max(1e-8, torch.finfo(x.dtype).tiny)
    x = precise(x)
    length = x.norm(dim=-1, keepdim=True)
    return x / length.clamp(min=least) * (length > least)


def similarity_matrix(features_GBF: Tensor) -> Tensor:
    """Cosine similarities of all pairs of rows, each less its own mean, [G, B, F] -> [G, B, B].

    A constant row has similarity 0 to every row, and no gradient.
    """
    with _exact(features_GBF.device):
        x_GBF = precise(features_GBF)
        centred_GBF = x_GBF - x_GBF.mean(-1, keepdim=True)
        norm_GB1 = centred_GBF.norm(dim=-1, keepdim=True)
        unit_GBF = centred_GBF / norm_GB1.clamp(min=1e-8) * (norm_GB1 > 1e-8)
        return unit_GBF @ unit_GBF.mT


def similarity_loss(features_GBF: Tensor, labels_B: Tensor, classes: int) -> Tensor:
    """The ``sim`` loss of every group, [G] (Nokland and Eidnes, 2019).

    Mean squared difference between the similarity matrices of the features and of the one-hot targets.

    Args:
        features_GBF: one vector an image [G, B, F].
        labels_B: class indices [B].
        classes: number of classes, at least 2.
    """
    similarities_GBB = similarity_matrix(features_GBF)
    targets_BC = _is_target(labels_B, classes).to(similarities_GBB.dtype)
    return (similarities_GBB - similarity_matrix(targets_BC[None])).square().mean((1, 2))


def reconstruction(scores_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
    """Binary cross entropy of a decoder's scores (before the sigmoid) against pixels in [0, 1]; a scalar.

    Both are [B, channels, H, W]; the mean is over images, channels and positions.
    """
    return F.binary_cross_entropy_with_logits(precise(scores_BCHW), pixels_BCHW)


def layerwise_weights(n: int) -> list[float]:
    """Weights of the n modules in the layerwise ensemble, 2^j / sum_i 2^i for j = 1..n (Belilovsky et al., 2019)."""
    total = sum(2**j for j in range(1, n + 1))
    return [2**j / total for j in range(1, n + 1)]


def layerwise_ensemble(logits: Sequence[Tensor]) -> Tensor:
    r"""Class probabilities of the layerwise ensemble, [B, C] (Eq. 2).

    .. math:: l_e = \sum_j \alpha_j \frac{1}{G_j} \sum_i \mathrm{softmax}(l_{ij})

    with the weights of ``layerwise_weights``. Eq. 2 has another constant factor in front, which changes no
    prediction; here the result sums to 1.

    Args:
        logits: for every module in order (the decoupled classifier last) its groups' scores [G_j, B, C]. Modules
            whose local loss has no class scores are left out, and the weights are those of the others alone.
    """
    weights = layerwise_weights(len(logits))
    return torch.stack([w * precise(x).softmax(-1).mean(0) for w, x in zip(weights, logits, strict=True)]).sum(0)
