"""Probes at every depth of a frozen network in one pass over it (Algorithm 4, Figs. 4.6-4.9)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from locallearn.arguments import checked
from locallearn.config import AugmentConfig, ProbeConfig
from locallearn.core.network import LocalNetwork
from locallearn.data.store import Store
from locallearn.data.streaming import open_store
from locallearn.errors import UsageError
from locallearn.training.depth_features import FeatureReader, places
from locallearn.training.finished import OpenedRun
from locallearn.training.probe_heads import Probes
from locallearn.training.probe_loaders import probe_network
from locallearn.training.probe_record import Probed, make_record, write_record
from locallearn.training.probe_training import Batches, OnEpoch, held_batches, point, score_probes, train_probes


@checked
def probe(
    run: OpenedRun | LocalNetwork,
    config: ProbeConfig | None = None,
    on_epoch: OnEpoch | None = None,
    *,
    train: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Train probes on the features of a frozen network and test them; the network is left as it is.

    The network is in eval mode and computes no gradient. Its forward pass is done once a batch for all depths: once
    in all where features fit ``config.cache_mib`` and images are not augmented, else once an epoch.

    Args:
        run: an opened run, which is probed on its own training and test images; or a network, of
            ``ll.split`` for example, with the loaders ``train`` and ``test``. A user's own model is
            probed at the ends of its stages, as their heads see the features; the last one where a linear layer makes
            its scores, at what that is given.
        config: settings; by default those of ``ll.ProbeConfig()``.
        on_epoch: is told how it goes.
        train: of a network, batches as its ``step`` takes them, with one class for every example. They are read
            once; what the loader changes in examples is changed once.
        test: the same, to test the probes on.
        precision: of a network's computation.
        output: file that the record is written to as well; ``probe.json`` or ``probe-NAME.json`` in a run's folder is
            drawn by ``locallearn report``.

    Returns:
        The record, as in ``probe.json``: protocol, accuracy of every place (fractions), seconds, forward passes.

    Raises:
        ConfigError: ``augment = "run"`` changes what the images do not have, or a setting is not for loaders.
        UsageError: loaders are missing, give nothing, or their labels are no classes.
        DivergedError: a probe's loss became NaN or infinite.
    """
    config = config or ProbeConfig()
    loaders = [given for given in (train, test) if given is not None]
    if isinstance(run, OpenedRun):
        if loaders:
            raise UsageError("train, test: loaders are for a network; an opened run has data of its own")
        found = _of_run(run, config, on_epoch)
    elif train is None or test is None:
        raise UsageError("train, test: a network is probed on loaders; give both")
    else:
        found = probe_network(run, config, train, test, precision, on_epoch)
    if output is not None:
        write_record(Path(output), found)
    return found


def _of_run(run: OpenedRun, config: ProbeConfig, on_epoch: OnEpoch | None) -> dict[str, Any]:
    begin = time.perf_counter()
    where = places(run.network, config.depth)
    reader = FeatureReader(run.network, where, run.precision, config.pool)
    sizes = feature_sizes(run, reader)
    store = _train_store(run, config)
    cached = config.augment == "none" and _fits(sizes, len(run.dataset.train.labels), config)
    batches = cached_batches(run, reader, store, sizes, config) if cached else _streamed(reader, store, config)
    probes = Probes(where, sizes, len(run.dataset.classes), config).to(run.device)
    train = train_probes(probes, batches, store.steps(config.batch_size), config, on_epoch)
    ordered = run.store(run.dataset.test).ordered(run.config.train.evaluate_batch_size)
    test = score_probes(probes, ((reader(batch.images), batch.labels) for batch in ordered))
    held = f"held in {config.cache_precision}" if cached else "computed every epoch"
    points = [point(*row) for row in zip(where, sizes, train, *test, strict=True)]
    dataset, known = run.dataset, {"run_seed": run.config.seed, "step": run.step}
    images = len(dataset.train.labels), len(dataset.test.labels)
    probed = Probed(dataset.name, *images, run.precision, str(run.config.train.device), held, known)
    record = make_record(probed, config, points)
    return {**record, "seconds": time.perf_counter() - begin, "forward_passes": reader.passes}


def feature_sizes(run: OpenedRun, reader: FeatureReader) -> list[int]:
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


def _streamed(reader: FeatureReader, store: Store, config: ProbeConfig) -> Batches:
    """Features computed when they are needed."""

    def epoch(number: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        for batch in store.epoch(number, config.batch_size):
            yield reader(batch.images), batch.labels

    return epoch


def cached_batches(
    run: OpenedRun, reader: FeatureReader, store: Store, sizes: Sequence[int], config: ProbeConfig
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
    return held_batches(held, labels, lambda epoch: store.order(epoch, config.batch_size))
