"""Weighted k-nearest-neighbour classification on cosine similarity (Wu et al., 2018)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

SIMILARITIES = 1 << 24
"""Similarities that are held at once: 64 MiB of fp32."""


def knn_votes(queries_QD: Tensor, bank_ND: Tensor, labels_N: Tensor, neighbours: int, temperature: float) -> Tensor:
    r"""Votes of the k nearest images of a bank.

    A neighbour of similarity :math:`s_i` gives :math:`\exp(s_i / T)` votes to its class. The votes of a query are
    scaled by one factor, so that its nearest neighbour has one: small temperatures do not overflow.

    Args:
        queries_QD: features to classify.
        bank_ND: features of the bank.
        labels_N: int64 classes of the bank's images, from 0.
        neighbours: k; all of a smaller bank.
        temperature: T.

    Returns:
        Votes [Q, classes], for as many classes as the bank has. Memory beside the arguments is bounded.
    """
    bank_ND = normalize(bank_ND.float(), dim=1)
    classes = int(labels_N.max()) + 1
    k = min(neighbours, len(bank_ND))
    votes = []
    for part_QD in queries_QD.split(max(1, SIMILARITIES // len(bank_ND))):
        nearest_Qk, index_Qk = (normalize(part_QD.float(), dim=1) @ bank_ND.T).topk(k, dim=1)
        weights_Qk = ((nearest_Qk - nearest_Qk[:, :1]) / temperature).exp()
        votes.append(weights_Qk.new_zeros(len(part_QD), classes).scatter_add_(1, labels_N[index_Qk], weights_Qk))
    return torch.cat(votes)
