"""NT-Xent on two views of every image, and the choice of pairs that layerwise loss modification makes.

B = 2N views: the first views of N images, then their second views in the same order. So the views a and a + N are a
positive pair, and every other pair of two views is a negative one. G groups are a leading dimension, and each has its
own similarities S [G, B, B].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from locallearn.losses.functional import _exact, unit


def cosine_similarities(x_GBP: Tensor) -> Tensor:
    """Cosine similarities of all pairs of rows, [G, B, P] -> [G, B, B], in fp32; 0 with a row of zeros."""
    with _exact(x_GBP.device):
        unit_GBP = unit(x_GBP)
        return unit_GBP @ unit_GBP.mT


def nt_xent(projections_GBP: Tensor, temperature: float = 0.5) -> Tensor:
    r"""NT-Xent of every group, [G] (Chen et al., 2020; Algorithm 3, lines 21 to 25).

    .. math:: \frac{1}{2N} \sum_a -\log \frac{e^{S(a, a') / \tau}}{\sum_{k \ne a} e^{S(a, k) / \tau}}

    with cosine similarities S and a' the other view of a's image.

    Args:
        projections_GBP: vectors of any length [G, 2N, P].
        temperature: :math:`\tau`.
    """
    similarities_GBB = cosine_similarities(projections_GBP)
    every = similarities_GBB.new_ones((), dtype=torch.bool)
    n_images = projections_GBP.shape[1] // 2
    return modified_nt_xent(similarities_GBB, every.expand(1, n_images), every.expand(1, 1, 1), temperature)


def modified_nt_xent(
    similarities_GBB: Tensor, positives_GN: Tensor, negatives_GBB: Tensor, temperature: float
) -> Tensor:
    r"""NT-Xent over some of the pairs, [G] (Algorithm 5, lines 28 to 31).

    .. math:: \frac{1}{2|\mu|} \sum_{k \in \mu} [\ell(k, k') + \ell(k', k)], \quad
              \ell(a, b) = -\log \frac{e^{S(a, b) / \tau}}{\sum_{k \ne a, k \in \omega_a} e^{S(a, k) / \tau}}

    As the thesis has it, the positive pair is in the denominator only where :math:`\omega_a` holds it. Where the
    denominator is empty, :math:`\ell` is 0 and has no gradient, and the pair still counts in :math:`|\mu|`. Where
    :math:`\mu` is empty the loss is 0.

    Args:
        similarities_GBB: S of the module's projections.
        positives_GN: whether image k is in :math:`\mu`; 1 stands for G where groups choose alike.
        negatives_GBB: whether k is in :math:`\omega_a`, at [.., a, k]; a itself does not matter. Broadcast likewise.
        temperature: :math:`\tau`.
    """
    scaled_GBB = similarities_GBB / temperature
    n_views = scaled_GBB.shape[-1]
    itself_BB = torch.eye(n_views, dtype=torch.bool, device=scaled_GBB.device)
    left_out_GBB = itself_BB | ~negatives_GBB
    denominator_GB = scaled_GBB.masked_fill(left_out_GBB, -math.inf).logsumexp(-1)
    other_B = torch.arange(n_views, device=scaled_GBB.device).roll(n_views // 2)
    positive_GB = scaled_GBB.gather(-1, other_B[:, None].expand(len(scaled_GBB), n_views, 1))[..., 0]
    used_GB = positives_GN.repeat(1, 2) & ~left_out_GBB.all(-1)
    loss_GB = torch.where(used_GB, denominator_GB - positive_GB, 0.0)
    return loss_GB.sum(-1) / (2 * positives_GN.sum(-1)).clamp(min=1)


def select_positives(similarities_GBB: Tensor, alpha_G: Tensor) -> Tensor:
    """The positive pairs at or above a threshold, [G, N] (Algorithm 6)."""
    return _positive(similarities_GBB) >= alpha_G[:, None]


def select_negatives(similarities_GBB: Tensor, beta_G: Tensor) -> Tensor:
    """For every view a, the views whose similarity to it is at most a threshold, [G, B, B] (Algorithm 7).

    As the thesis has it, a itself and the other view of its image are chosen by the same rule as all others.
    """
    return similarities_GBB <= beta_G[:, None, None]


def share_thresholds(similarities_GBB: Tensor, positive: float, negative: float) -> tuple[Tensor, Tensor]:
    """Thresholds alpha and beta [G] that choose these shares, in (0, 1], of the easiest pairs of a batch.

    At least that share is chosen, rounded up to whole pairs, and all pairs that are, but for rounding, as easy as
    the last one. A share of 1 gives a threshold that chooses everything, which Algorithm 7 then takes for the
    positive pairs too.
    """
    infinite_G = similarities_GBB.new_full((len(similarities_GBB),), math.inf)
    alpha_G, beta_G = -infinite_G, infinite_G
    n_views = similarities_GBB.shape[-1]
    if positive < 1:
        alpha_G = -_smallest(-_positive(similarities_GBB), positive, n_views // 2)
    if negative < 1:
        itself_BB = torch.eye(n_views, dtype=torch.bool, device=similarities_GBB.device)
        others_GBB = similarities_GBB.masked_fill(itself_BB | itself_BB.roll(n_views // 2, 0), math.inf)
        beta_G = _smallest(others_GBB.flatten(1), negative, n_views * (n_views - 2))
    return alpha_G, beta_G


def _positive(similarities_GBB: Tensor) -> Tensor:
    """Similarity of the second view of every image to the first, [G, N]."""
    return similarities_GBB.diagonal(-(similarities_GBB.shape[-1] // 2), 1, 2)


def _smallest(values_GM: Tensor, share: float, count: int) -> Tensor:
    """The last of the smallest ``share`` of ``count`` values, which lie in [-1, 1], and a few roundings more, [G].

    Equal views give equal similarities, whichever way a processor adds them up.
    """
    n = math.ceil(share * count - 1e-9)  # 0.95 * 20 is a little above 19
    return values_GM.kthvalue(max(n, 1), dim=1).values + 16 * torch.finfo(values_GM.dtype).eps
