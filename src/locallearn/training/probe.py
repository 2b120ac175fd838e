"""Probes at every depth of a frozen network in one pass over it (Algorithm 4, Figs. 4.6-4.9)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from locallearn.arguments import checked
from locallearn.config import AugmentConfig, OptimizerConfig, ProbeConfig
from locallearn.data.store import Store
from locallearn.data.streaming import open_store
from locallearn.errors import DivergedError
from locallearn.losses.functional import cross_entropy
from locallearn.training.features import Place, Reader, places
from locallearn.training.finished import OpenedRun
from locallearn.training.optim import build_optimizer
from locallearn.training.probe_heads import Probes
from locallearn.training.probe_record import make_record

Batches = Callable[[int], Iterator[tuple[list[Tensor], Tensor]]]
"""Features [B, D] of every place and labels [B] of every batch of an epoch, by the epoch's number from 0."""

OnEpoch = Callable[[int, float], None]
"""Is told each epoch (from 1) and the mean training loss of the probes in it."""


@checked
def probe(run: OpenedRun, config: ProbeConfig, on_epoch: OnEpoch | None = None) -> dict[str, Any]:
    """Train probes on a run's training images and test them on its test images; the network is left as it is.

    The network is in eval mode and computes no gradient. Its forward pass is done once a batch for all depths: once
    in all where features fit ``config.cache_mib`` and images are not augmented, else once an epoch.

    Args:
        run: an opened run.
        config: settings.
        on_epoch: is told how it goes.

    Returns:
        The record, as in ``probe.json``: protocol, accuracy of every place (fractions), seconds, forward passes.

    Raises:
        ConfigError: ``augment = "run"`` changes what the images do not have.
        DivergedError: a probe's loss became NaN or infinite.
    """
    begin = time.perf_counter()
    where = places(run.network, config.depth)
    reader = Reader(run.network, where, run.precision, config.pool)
    sizes = feature_sizes(run, reader)
    store = _train_store(run, config)
    cached = config.augment == "none" and _fits(sizes, len(run.dataset.train.labels), config)
    batches = cached_batches(run, reader, store, sizes, config) if cached else _streamed(reader, store, config)
    probes = Probes(where, sizes, len(run.dataset.classes), config).to(run.device)
    train = train_probes(probes, batches, store.steps(config.batch_size), config, on_epoch)
    test = _test(probes, reader, run)
    held = f"held in {config.cache_precision}" if cached else "computed every epoch"
    points = [_point(*row) for row in zip(where, sizes, train, *test, strict=True)]
    record = make_record(run, config, held, points)
    return {**record, "seconds": time.perf_counter() - begin, "forward_passes": reader.passes}


def feature_sizes(run: OpenedRun, reader: Reader) -> list[int]:
    """How many features each place has; found with one image, which is not counted as a pass."""
    sizes = [x_BD.shape[1] for x_BD in reader(next(run.store(run.dataset.test).ordered(1)).images)]
    reader.passes = 0
    return sizes


def _train_store(run: OpenedRun, config: ProbeConfig) -> Store:
    """Training images, in an order and with changes that the probe's seed gives."""
    augment = {"none": None, "standard": AugmentConfig(), "run": run.config.augment}[config.augment]
    last = bool(run.config.train.channels_last)
    return open_store(run.dataset.train, run.dataset, augment, run.device, config.seed, last, data=run.config.data)


def _fits(sizes: Sequence[int], images: int, config: ProbeConfig) -> bool:
    width = 2 if config.cache_precision == "bf16" else 4
    return images * sum(sizes) * width <= config.cache_mib << 20


def _streamed(reader: Reader, store: Store, config: ProbeConfig) -> Batches:
    """Features computed when they are needed."""

    def epoch(number: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        for batch in store.epoch(number, config.batch_size):
            yield reader(batch.images), batch.labels

    return epoch


def cached_batches(
    run: OpenedRun, reader: Reader, store: Store, sizes: Sequence[int], config: ProbeConfig
) -> Batches:
    """Features computed now, for all epochs; the batches hold the same images as the streamed ones."""
    dtype = torch.bfloat16 if config.cache_precision == "bf16" else torch.float32
    images = len(run.dataset.train.labels)
    held = [torch.empty(images, size, dtype=dtype, device=run.device) for size in sizes]
    labels = torch.empty(images, dtype=torch.int64, device=run.device)
    start = 0
    for batch in store.ordered(run.config.train.evaluate_batch_size):
        rows = slice(start, start + len(batch.labels))
        labels[rows] = batch.labels
        for features_ND, x_BD in zip(held, reader(batch.images), strict=True):
            features_ND[rows] = x_BD
        start = rows.stop

    def epoch(number: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        for chosen in store.order(number, config.batch_size):
            yield [features_ND[chosen].float() for features_ND in held], labels[chosen]

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
        on_epoch: as in :func:`probe`.
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
def _test(probes: Probes, reader: Reader, run: OpenedRun) -> tuple[list[float], list[float]]:
    """Accuracy and cross entropy of every probe on the test images."""
    probes.eval()
    hits_P, loss_P = torch.zeros(2, len(probes.heads), dtype=torch.float64, device=run.device)
    images = 0
    for batch in run.store(run.dataset.test).ordered(run.config.train.evaluate_batch_size):
        scores_PBC = probes(reader(batch.images))
        hits_P += (scores_PBC.argmax(-1) == batch.labels).sum(1)
        loss_P += cross_entropy(scores_PBC, batch.labels) * len(batch.labels)
        images += len(batch.labels)
    return (hits_P / images).tolist(), (loss_P / images).tolist()


def _point(place: Place, size: int, train: float, accuracy: float, loss: float) -> dict[str, Any]:
    figures = {"features": size, "train_accuracy": train, "accuracy": accuracy, "loss": loss}
    return {**dataclasses.asdict(place), **figures}
