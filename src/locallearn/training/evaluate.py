"""Evaluation: the last layer, the layerwise ensemble (Eq. 2) and every node, on one pass over the images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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
        last_layer: of the network's own classifier; NaN where its last module has none.
        ensemble: of the layerwise ensemble over all modules that have a classifier, the network's own included; NaN
            where none has one.
        nodes: one dictionary per node with ``module``, ``group``, ``accuracy`` and ``loss``, the cross entropy. A
            node whose local loss needs no classifier has no ``accuracy``, and its ``loss`` is the local loss.
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
    correct: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    images = 0
    for batch in batches:
        with autocast(batch.images.device, precision):
            found = list(_modules(network, batch))
        images += len(batch.labels)
        scores = {name: logits for name, logits, _ in found if logits is not None}
        hits = {name: _hits(logits, batch.labels) for name, logits in scores.items()}
        if scores:
            hits["ensemble"] = _hits(layerwise_ensemble(list(scores.values())), batch.labels)
        correct = {name: correct.get(name, 0) + hit for name, hit in hits.items()}
        losses.append(torch.cat([loss for *_, loss in found]) * len(batch.labels))
    network.train(was_training)
    accuracies: dict[str, Any] = {name: (hit.double() / images).tolist() for name, hit in correct.items()}
    loss_means = (torch.stack(losses).sum(0) / images).tolist()
    nodes = [
        _node(name, group, accuracies.get(name), loss)
        for (name, group), loss in zip(network.nodes, loss_means, strict=True)
    ]
    last_layer = nodes[-1].get("accuracy", math.nan)
    return Evaluation(last_layer, accuracies.get("ensemble", math.nan), nodes, images)


def _modules(network: LocalNetwork, batch: Batch) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """Name, scores and losses [G] of every module: the cross entropy, or the local loss where there are no scores."""
    features = batch.images
    for module in network:
        features = module(features)
        logits = module.logits(features)
        if logits is None:
            yield module.name, None, module.objective(features, batch).total
        else:
            yield module.name, logits, cross_entropy(logits, batch.labels)


def _node(name: str, group: int, accuracies: list[float] | None, loss: float) -> dict[str, Any]:
    node: dict[str, Any] = {"module": module_label(name), "group": group}
    return node | ({} if accuracies is None else {"accuracy": accuracies[group - 1]}) | {"loss": loss}


def module_label(name: str) -> int | str:
    """The module's name in records: its number, or ``"classifier"``."""
    return int(name) if name.isdigit() else name


def _hits(scores: Tensor, labels_B: Tensor) -> Tensor:
    """Right predictions of scores [..., B, C]."""
    return (scores.argmax(-1) == labels_B).sum(-1)
