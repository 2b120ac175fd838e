"""Losses that make two views of an image alike and keep features apart: Barlow Twins and VICReg.

B = 2N views: the first views of N images, then their second views in the same order. G groups are a leading
dimension, and each has a loss of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from locallearn.losses.functional import _exact
from locallearn.nn.precision import precise


def barlow_twins(projections_GBP: Tensor, redundancy_weight: float = 0.005) -> Tensor:
    r"""Barlow Twins' loss of every group, [G] (Zbontar et al., 2021).

    .. math:: \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2

    with C the correlations over the batch between the features of the two views.

    Args:
        projections_GBP: vectors [G, 2N, P]; N at least 2.
        redundancy_weight: :math:`\lambda`.
    """
    with _exact(projections_GBP.device):
        first_GNP, second_GNP = (_standardised(x) for x in precise(projections_GBP).chunk(2, dim=1))
        correlation_GPP = first_GNP.mT @ second_GNP / first_GNP.shape[1]
    diagonal_GP = correlation_GPP.diagonal(dim1=1, dim2=2)
    redundancy_G = correlation_GPP.square().sum((1, 2)) - diagonal_GP.square().sum(1)
    return (1 - diagonal_GP).square().sum(1) + redundancy_weight * redundancy_G


def _standardised(x_GNP: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the batch, as batch norm makes them."""
    variance_G1P, mean_G1P = torch.var_mean(x_GNP, 1, correction=0, keepdim=True)
    return (x_GNP - mean_G1P) / (variance_G1P + 1e-5).sqrt()


def vicreg(projections_GBP: Tensor, weights: tuple[float, ...] = (25.0, 25.0, 1.0)) -> Tensor:
    """VICReg's loss of every group, [G] (Bardes et al., 2022).

    A weighted sum of the mean squared difference between the views, of how far the standard deviation of every
    feature over the batch is below 1, and of the squared covariances between features; the last two are averaged over
    the views and summed, as in the authors' code.

    Args:
        projections_GBP: vectors [G, 2N, P]; of one image nothing spreads.
        weights: of invariance, variance and covariance.
    """
    x_GBP = precise(projections_GBP)
    first_GNP, second_GNP = x_GBP.chunk(2, dim=1)
    invariance_G = (first_GNP - second_GNP).square().mean((1, 2))
    spread = [_spread(x) for x in (first_GNP, second_GNP)]
    variance_G = (spread[0][0] + spread[1][0]) / 2
    covariance_G = spread[0][1] + spread[1][1]
    return weights[0] * invariance_G + weights[1] * variance_G + weights[2] * covariance_G


def _spread(x_GNP: Tensor) -> tuple[Tensor, Tensor]:
    """Of one view, [G] each: the lack of standard deviation, and the squared covariances a feature."""
    _, n, features = x_GNP.shape
    variance_GP = x_GNP.var(1, correction=min(1, n - 1))
    lack_G = (1 - (variance_GP + 1e-4).sqrt()).clamp(min=0).mean(1)
    with _exact(x_GNP.device):
        centred_GNP = x_GNP - x_GNP.mean(1, keepdim=True)
        covariance_GPP = centred_GNP.mT @ centred_GNP / max(1, n - 1)
    crossed_G = covariance_GPP.square().sum((1, 2)) - covariance_GPP.diagonal(dim1=1, dim2=2).square().sum(1)
    return lack_G, crossed_G / features
