"""Evaluation: the last layer, the layerwise ensemble (Eq. 2) and every node, on one pass over the images.

A network that ends without a classifier, as self-supervised ones do, is evaluated by its nearest neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from locallearn.config import RunConfig
from locallearn.core.batches import are_classes, weight_of
from locallearn.core.local_step import autocast
from locallearn.core.network import LocalNetwork
from locallearn.data.store import Batch, Store
from locallearn.errors import UsageError
from locallearn.losses.functional import layerwise_ensemble
from locallearn.training.depth_features import FeatureReader, frozen, places
from locallearn.training.neighbours import knn_votes

CLASSIFIER = "classifier"
"""The protocol of a network that classifies."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracies are fractions in [0, 1].

    Attributes:
        last_layer: of the network's own classifier, NaN where its last module has none; or by neighbours, on all
            features of the last module.
        ensemble: of the layerwise ensemble over all modules that have a classifier, the network's own included, NaN
            where none has one; None for neighbours, who give no probabilities.
        nodes: one dictionary per node with ``module``, ``group``, ``accuracy`` and ``loss``, the cross entropy. A
            node whose local loss needs no classifier has no ``accuracy``, and its ``loss`` is the local loss. By
            neighbours, ``accuracy`` is that of the node's own features, and there is no ``loss``.
        images: how many images were evaluated.
        protocol: what the accuracies are of: the classifiers, or neighbours with k, T and the size of the bank.
    """

    last_layer: float | None
    ensemble: float | None
    nodes: list[dict[str, Any]]
    images: int
    protocol: str = CLASSIFIER

    @property
    def accuracies(self) -> dict[str, float | None]:
        """``last_layer`` and ``ensemble``, None where there is no such thing."""
        found = {"last_layer": self.last_layer, "ensemble": self.ensemble}
        return {name: None if value is None or math.isnan(value) else value for name, value in found.items()}

    @property
    def score(self) -> float:
        """What the best checkpoint is chosen by: the last layer's accuracy, or its loss where it has none."""
        if self.last_layer is not None and not math.isnan(self.last_layer):
            return self.last_layer
        return -self.nodes[-1]["loss"]


def evaluate_run(network: LocalNetwork, config: RunConfig, train_store: Store, test_store: Store) -> Evaluation:
    """Evaluate the network of a run on its test images, by the classifiers or, where it has none, by neighbours.

    Args:
        network: the network.
        config: a resolved configuration.
        train_store: training images, among which neighbours are looked for.
        test_store: test images.
    """
    assert config.train.precision is not None
    size, precision = config.train.evaluate_batch_size, config.train.precision
    if classifies(network, next(test_store.ordered(1)).images, precision):
        return evaluate(network, test_store.ordered(size), precision)
    return evaluate_by_neighbours(network, train_store.ordered(size), test_store.ordered(size), config)


def classifies(network: LocalNetwork, images: Tensor, precision: str) -> bool:
    """Whether the network ends in a classifier; found with a forward pass of a few images [B, C, H, W]."""
    with frozen(network), autocast(images.device, precision):
        *_, (last, out) = network.passed(images)
        return last.logits(last.features(out)) is not None


@torch.no_grad()
def evaluate(network: LocalNetwork, batches: Iterable[Batch], precision: str) -> Evaluation:
    """Evaluate in eval mode (running statistics of batch norm) and leave the network's mode as it was."""
    was_training = network.training
    network.eval()
    try:
        correct, losses, images = _sums(network, batches, precision)
    finally:
        network.train(was_training)
    if not losses:
        raise UsageError("loader: it gave no batch to evaluate on")
    accuracies: dict[str, Any] = {name: (hit.double() / images).tolist() for name, hit in correct.items()}
    loss_means = (torch.stack(losses).sum(0) / images).tolist()
    nodes = [
        _node(name, group, accuracies.get(name), loss)
        for (name, group), loss in zip(network.nodes, loss_means, strict=True)
    ]
    last_layer = nodes[-1].get("accuracy", math.nan)
    return Evaluation(last_layer, accuracies.get("ensemble", math.nan), nodes, images)


def _sums(
    network: LocalNetwork, batches: Iterable[Batch], precision: str
) -> tuple[dict[str, Tensor], list[Tensor], int]:
    """Right predictions by what predicts, losses of batches by node times what these weigh, and the sum of that."""
    correct: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    images = 0
    for batch in batches:
        with autocast(batch.images.device, precision):
            found = list(network.look(batch))
        size = weight_of(batch.labels, batch.examples)
        images += size
        scores = {name: logits for name, logits, _ in found if logits is not None and are_classes(batch.labels)}
        hits = {name: _hits(logits, batch.labels) for name, logits in scores.items()}
        if scores:
            hits["ensemble"] = _hits(layerwise_ensemble(list(scores.values())), batch.labels)
        correct = {name: correct.get(name, 0) + hit for name, hit in hits.items()}
        losses.append(torch.cat([loss for *_, loss in found]) * size)
    return correct, losses, images


def evaluate_by_neighbours(
    network: LocalNetwork, train: Iterable[Batch], test: Iterable[Batch], config: RunConfig
) -> Evaluation:
    """Weighted kNN accuracy of the pooled features of every module and every node.

    Args:
        network: the network; it needs no classifier.
        train: training images as they are; the first ``train.knn_bank`` of them are the bank.
        test: test images.
        config: a resolved configuration.
    """
    settings = config.train
    assert settings.precision is not None
    reader = FeatureReader(network, places(network, "modules"), settings.precision)
    banks, bank_labels = _bank(reader, train, settings.knn_bank)
    parts = [module.groups for module in network if len(module.blocks)]
    names = [(k, group) for k, groups in enumerate(parts, start=1) for group in range(1, groups + 1)]
    hits, images = torch.zeros(len(names) + 1, device=bank_labels.device), 0
    for batch in test:
        found = []
        features = reader(batch.images)
        split = [
            (query, bank)
            for query_BD, bank_ND, groups in zip(features, banks, parts, strict=True)
            for query, bank in zip(query_BD.chunk(groups, 1), bank_ND.chunk(groups, 1), strict=True)
        ]
        for query, bank in [*split, (features[-1], banks[-1])]:
            votes = knn_votes(query, bank, bank_labels, settings.knn_neighbours, settings.knn_temperature)
            found.append(_hits(votes, batch.labels))
        hits += torch.stack(found)
        images += len(batch.labels)
    *accuracies, last = (hits.double() / images).tolist()
    nodes = [{"module": k, "group": g, "accuracy": a} for (k, g), a in zip(names, accuracies, strict=True)]
    k = min(settings.knn_neighbours, len(bank_labels))
    protocol = f"kNN, k = {k}, T = {settings.knn_temperature:g}, cosine, {len(bank_labels):,} training images"
    return Evaluation(last, None, nodes, images, protocol)


def _bank(reader: FeatureReader, batches: Iterable[Batch], limit: int) -> tuple[list[Tensor], Tensor]:
    """Features of the first ``limit`` images (0 means all) at every place, and their labels."""
    features, labels, held = [], [], 0
    for batch in batches:
        take = len(batch.labels) if limit == 0 else min(limit - held, len(batch.labels))
        features.append(reader(batch.images[:take]))
        labels.append(batch.labels[:take])
        held += take
        if held == limit:
            break
    return [torch.cat(parts) for parts in zip(*features, strict=True)], torch.cat(labels)


def _node(name: str, group: int, accuracies: list[float] | None, loss: float) -> dict[str, Any]:
    node: dict[str, Any] = {"module": module_label(name), "group": group}
    return node | ({} if accuracies is None else {"accuracy": accuracies[group - 1]}) | {"loss": loss}


def module_label(name: str) -> int | str:
    """The module's name in records: its number, or ``"classifier"``."""
    return int(name) if name.isdigit() else name


def _hits(scores: Tensor, labels_B: Tensor) -> Tensor:
    """Right predictions of scores [..., B, C]."""
    return (scores.argmax(-1) == labels_B).sum(-1)
