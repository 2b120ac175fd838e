"""Evaluation: the last layer, the layerwise ensemble (Eq. 2) and every node, on one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from locallearn.core.module import autocast
from locallearn.core.network import LocalNetwork
from locallearn.data.store import Batch
from locallearn.losses.functional import cross_entropy, layerwise_ensemble


@dataclass(frozen=True)
class Evaluation:
    """Accuracies are fractions in [0, 1].

    Attributes:
        last_layer: of the network's own classifier.
        ensemble: of the layerwise ensemble over all modules and the classifier.
        nodes: one dictionary per node with ``module``, ``group``, ``accuracy`` and ``loss``.
        images: how many images were evaluated.
    """

    last_layer: float
    ensemble: float
    nodes: list[dict[str, Any]]
    images: int


@torch.no_grad()
def evaluate(network: LocalNetwork, batches: Iterable[Batch], precision: str) -> Evaluation:
    """Evaluate in eval mode (running statistics of batch norm) and leave the network's mode as it was."""
    was_training = network.training
    network.eval()
    correct: Tensor | None = None
    losses: Tensor | None = None
    images = 0
    for batch in batches:
        with autocast(batch.images.device, precision):
            logits = network.all_logits(batch.images)
        images += len(batch.labels)
        hits = torch.stack([_hits(x, batch.labels) for x in _predictions(logits)])
        loss = torch.cat([cross_entropy(x, batch.labels) for x in logits]) * len(batch.labels)
        correct = hits if correct is None else correct + hits
        losses = loss if losses is None else losses + loss
    network.train(was_training)
    assert correct is not None
    assert losses is not None
    ensemble, *accuracies = (correct.double() / images).tolist()
    nodes = [
        {"module": module_label(name), "group": group, "accuracy": accuracy, "loss": loss}
        for (name, group), accuracy, loss in zip(network.nodes, accuracies, (losses / images).tolist(), strict=True)
    ]
    return Evaluation(accuracies[-1], ensemble, nodes, images)


def module_label(name: str) -> int | str:
    """The module's name in records: its number, or ``"classifier"``."""
    return int(name) if name.isdigit() else name


def _predictions(logits: list[Tensor]) -> list[Tensor]:
    """Scores [B, C] of the ensemble and then of every node."""
    return [layerwise_ensemble(logits), *(scores for x in logits for scores in x)]


def _hits(scores_BC: Tensor, labels_B: Tensor) -> Tensor:
    return (scores_BC.argmax(-1) == labels_B).sum()
