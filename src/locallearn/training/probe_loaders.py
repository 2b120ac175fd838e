"""Probes on the features of any network and the examples of a user's own loaders."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from locallearn import seeding
from locallearn.config import ProbeConfig
from locallearn.core.batches import are_classes
from locallearn.core.network import LocalNetwork
from locallearn.errors import ConfigError, UsageError
from locallearn.training.depth_features import DepthPlace
from locallearn.training.loaders import check_loader, read_network
from locallearn.training.probe_heads import Probes
from locallearn.training.probe_record import Probed, make_record
from locallearn.training.probe_training import OnEpoch, held_batches, point, score_probes, train_probes
from locallearn.training.stage_features import stage_places, stage_reader

Held = tuple[list[Tensor], Tensor]
"""Features [N, D] of every place, and labels [N]."""


def probe_network(
    network: LocalNetwork,
    config: ProbeConfig,
    train: Iterable[Any],
    test: Iterable[Any],
    precision: str,
    on_epoch: OnEpoch | None,
) -> dict[str, Any]:
    """The record of probes on a network's stages; see ``ll.probe``."""
    if config.augment != "none":
        raise ConfigError("augment", config.augment, "none with loaders, which change examples themselves")
    for name, loader in (("train", train), ("test", test)):
        check_loader(name, loader)
    begin = time.perf_counter()
    where = _places(network, config, test)
    examples = _Examples(network, where, config, precision)
    held_train = examples.held("train", train)
    held_test = examples.held("test", test)
    classes = int(max(labels.max() for _, labels in (held_train, held_test))) + 1
    sizes = [x_ND.shape[1] for x_ND in held_train[0]]
    probes = Probes(where, sizes, classes, config).to(held_train[1].device)
    steps = len(_order(config, 0, held_train[1]))
    batches = held_batches(*held_train, partial(_order, config, labels=held_train[1]))
    accuracies = train_probes(probes, batches, steps, config, on_epoch)
    tested = score_probes(probes, [([x.float() for x in held_test[0]], held_test[1])])
    points = [point(*row) for row in zip(where, sizes, accuracies, *tested, strict=True)]
    device = str(held_train[1].device)
    counts = len(held_train[1]), len(held_test[1])
    probed = Probed("the user's loaders", *counts, precision, device, f"held in {config.cache_precision}")
    record = make_record(probed, config, points)
    return {**record, "seconds": time.perf_counter() - begin, "forward_passes": examples.passes}


def _places(network: LocalNetwork, config: ProbeConfig, loader: Iterable[Any]) -> list[DepthPlace]:
    """The stages that have features; the last one of a user's own model may have none."""
    where = stage_places(network)
    try:
        read = stage_reader(network, [where[-1].module])
        next(iter(read_network(network, [next(iter(loader))], read, "fp32")))
    except StopIteration:
        raise UsageError("test: the loader gave no batch") from None
    except UsageError:
        if len(where) == 1 or config.depth == "last":
            raise
        where.pop()
    return where[-1:] if config.depth == "last" else where


class _Examples:
    """Reads features and labels of all examples of loaders."""

    def __init__(self, network: LocalNetwork, where: list[DepthPlace], config: ProbeConfig, precision: str) -> None:
        self.network, self.config, self.precision = network, config, precision
        self.read = stage_reader(network, [place.module for place in where], precision, config.pool)
        self.passes = 0

    def held(self, name: str, loader: Iterable[Any]) -> Held:
        """All of them."""
        dtype = torch.bfloat16 if self.config.cache_precision == "bf16" else torch.float32
        limit, taken = self.config.cache_mib << 20, 0
        features: list[list[Tensor]] = []
        labels: list[Tensor] = []
        for batch, values in read_network(self.network, loader, self.read, self.precision):
            self.passes += 1
            known = are_classes(batch.labels) and len(batch.labels) == len(values[0])
            if not known or batch.labels.min() < 0:
                raise UsageError(f"{name}: a batch has no classes [B] as labels, which probes learn")
            features.append([x_BD.to(dtype) for x_BD in values])
            labels.append(batch.labels.long())
            taken += sum(x_BD.nbytes for x_BD in features[-1])
            if taken > limit:
                expected = "more: features of a loader are held, and these take more"
                raise ConfigError("cache_mib", self.config.cache_mib, expected)
        if not labels:
            raise UsageError(f"{name}: the loader gave no batch")
        return [torch.cat(parts) for parts in zip(*features, strict=True)], torch.cat(labels)


def _order(config: ProbeConfig, epoch: int, labels: Tensor) -> list[Tensor]:
    """Which examples are in every batch of an epoch; a remainder of one is left out, for batch norm needs two."""
    draws = seeding.generator(config.seed, "probe", "order", epoch)
    batches = torch.randperm(len(labels), generator=draws).to(labels.device).split(config.batch_size)
    return [batch for batch in batches if len(batch) > 1 or len(batches) == 1]
