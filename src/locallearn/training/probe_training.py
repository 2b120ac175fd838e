"""Probes trained together on features, whatever they were read of, and tested."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from locallearn.config import OptimizerConfig, ProbeConfig
from locallearn.errors import DivergedError
from locallearn.losses.functional import cross_entropy
from locallearn.training.depth_features import DepthPlace
from locallearn.training.optim import build_optimizer
from locallearn.training.probe_heads import Probes

Batches = Callable[[int], Iterator[tuple[list[Tensor], Tensor]]]
"""Features [B, D] of every place and labels [B] of every batch of an epoch, by the epoch's number from 0."""

Order = Callable[[int], Iterable[Tensor]]
"""Which examples [B] are in every batch of an epoch, by the epoch's number from 0."""

OnEpoch = Callable[[int, float], None]
"""Is told each epoch (from 1) and the mean training loss of the probes in it."""


def held_batches(features: Sequence[Tensor], labels: Tensor, order: Order) -> Batches:
    """Batches of features [N, D] of every place that are held, with labels [N]."""

    def epoch(number: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        for chosen in order(number):
            yield [features_ND[chosen].float() for features_ND in features], labels[chosen]

    return epoch


def train_probes(
    probes: Probes,
    batches: Batches,
    steps: int,
    config: ProbeConfig,
    on_epoch: OnEpoch | None = None,
) -> list[float]:
    """Train all probes together, and return each one's training accuracy over the last epoch.

    Args:
        probes: the probes.
        batches: the batches of an epoch.
        steps: batches of an epoch.
        config: settings.
        on_epoch: is told how it goes.
    """
    settings = OptimizerConfig(config.optimizer, config.initial_rate, weight_decay=config.weight_decay)
    optimizer = build_optimizer(settings, probes.parameters())
    probes.train()
    zeros_P = torch.zeros(len(probes.heads), dtype=torch.float64, device=next(probes.parameters()).device)
    hits_P, images = zeros_P, 0
    for epoch in range(config.epochs):
        hits_P, loss_P, images = zeros_P, zeros_P, 0
        for step, (features, labels_B) in enumerate(batches(epoch)):
            _set_rate(optimizer, config, (epoch * steps + step) / (config.epochs * steps))
            scores_PBC = probes(features)
            losses_P = cross_entropy(scores_PBC, labels_B)
            optimizer.zero_grad(set_to_none=True)
            losses_P.sum().backward()
            optimizer.step()
            hits_P = hits_P + (scores_PBC.argmax(-1) == labels_B).sum(1)
            loss_P = loss_P + losses_P.detach() * len(labels_B)
            images += len(labels_B)
        _check(loss_P, epoch + 1)
        if on_epoch is not None:
            on_epoch(epoch + 1, loss_P.mean().item() / images)
    return (hits_P / images).tolist()


def _set_rate(optimizer: torch.optim.Optimizer, config: ProbeConfig, passed: float) -> None:
    """The learning rate where a fraction ``passed`` of the training is done."""
    factor = 0.5 * (1 + math.cos(math.pi * passed)) if config.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.initial_rate * factor


def _check(loss_P: Tensor, epoch: int) -> None:
    bad = (~loss_P.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise DivergedError(
            f"the loss of probe {bad[0] + 1} became NaN or infinite in epoch {epoch}; try a lower rate"
        )


@torch.no_grad()
def score_probes(probes: Probes, batches: Iterable[tuple[list[Tensor], Tensor]]) -> tuple[list[float], list[float]]:
    """Accuracy and cross entropy of every probe on features [B, D] of every place and labels [B]."""
    probes.eval()
    device = next(probes.parameters()).device
    hits_P, loss_P = torch.zeros(2, len(probes.heads), dtype=torch.float64, device=device)
    images = 0
    for features, labels_B in batches:
        scores_PBC = probes(features)
        hits_P += (scores_PBC.argmax(-1) == labels_B).sum(1)
        loss_P += cross_entropy(scores_PBC, labels_B) * len(labels_B)
        images += len(labels_B)
    return (hits_P / images).tolist(), (loss_P / images).tolist()


def point(place: DepthPlace, size: int, train: float, accuracy: float, loss: float) -> dict[str, Any]:
    """What a record tells of one probe."""
    figures = {"features": size, "train_accuracy": train, "accuracy": accuracy, "loss": loss}
    return {**dataclasses.asdict(place), **figures}
