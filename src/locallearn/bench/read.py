"""Reading of packed images against a training step that needs them."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from locallearn.bench.timing import interleaved
from locallearn.config import AugmentConfig, DataConfig
from locallearn.core.local_step import autocast
from locallearn.data.datasets import ImageSet, load
from locallearn.data.streaming import StreamedStore, default_workers
from locallearn.errors import ConfigError, UsageError

AUGMENT = AugmentConfig(resized_crop=(0.08, 1.0), flip=0.5)
"""ImageNet's usual: a random part, resized, and a flip."""
_WARM_UP = 2
"""The first batch is read where it is asked for, the second starts the processes."""

Step = Callable[[Tensor, Tensor], object]


def bench_read(
    data: DataConfig, batch_size: int, device: torch.device, precision: str, repeats: int, step: Step | None = None
) -> dict[str, Any]:
    """Time reading alone, a step of backpropagation alone, and the two together.

    Args:
        data: the packed set, the size of its images, and the processes that read.
        batch_size: images a step.
        device: where the step is computed.
        precision: of the step, ``"fp32"`` or ``"bf16"``.
        repeats: batches that are timed.
        step: what is done with images [B, 3, H, W] and labels [B]; by default ``resnet50_step``.

    Returns:
        ``read_images_per_second``, ``step_images_per_second``, ``together_images_per_second``, ``waiting``, the
        fraction of the time together that the step waited for images, ``workers`` and ``batch_size``.

    Raises:
        UsageError: transformers is not there, or the set has too few images.
    """
    dataset = load(data)
    if isinstance(dataset.train, ImageSet):
        raise UsageError(f"bench read: {data.name} is held in memory; expected a packed set (locallearn pack)")
    workers = default_workers() if data.workers is None else data.workers
    store = StreamedStore(dataset.train, dataset, AUGMENT, device, 0, workers=workers)
    if store.steps(batch_size) < _WARM_UP + repeats:
        most = len(dataset.train.labels) // (_WARM_UP + repeats)
        raise ConfigError("--batch-size", batch_size, f"at most {most}, for {repeats} batches of this set")
    step = step or resnet50_step(len(dataset.classes), device, precision)
    images = torch.rand(batch_size, *dataset.train.shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    alone = interleaved({"step": lambda: step(images, labels)}, repeats, device)["step"]
    read, _ = _timed(store, batch_size, repeats, lambda *_: None, device)
    together, waiting = _timed(store, batch_size, repeats, step, device)
    return {
        "read_images_per_second": batch_size / read,
        "step_images_per_second": batch_size / alone.median,
        "together_images_per_second": batch_size / together,
        "waiting": waiting / together,
        "workers": workers,
        "batch_size": batch_size,
    }


def _timed(
    store: StreamedStore, batch_size: int, repeats: int, step: Step, device: torch.device
) -> tuple[float, float]:
    """Seconds a batch, and those of them until its images are there."""
    batches = store.epoch(0, batch_size)
    for batch in itertools.islice(batches, _WARM_UP):
        step(batch.images, batch.labels)
    waited, begin = 0.0, _now(device)
    for batch in itertools.islice(batches, repeats):
        asked = _now(device)
        images = batch.images
        waited += _now(device) - asked
        step(images, batch.labels)
    return (_now(device) - begin) / repeats, waited / repeats


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def resnet50_step(classes: int, device: torch.device, precision: str) -> Step:
    """A step of SGD on ResNet-50 as it is for ImageNet (He et al., 2016), from transformers, without weights.

    Raises:
        UsageError: transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UsageError("bench read needs transformers for its ResNet-50; install locallearn[transformers]")
    from transformers import ResNetConfig, ResNetForImageClassification

    settings: Any = {"num_labels": classes}  # of its base class, which type checkers do not see
    network: Any = ResNetForImageClassification(ResNetConfig(**settings))
    network = network.to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> None:
        with autocast(device, precision):
            scores = network(pixel_values=images).logits
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(scores.float(), labels).backward()
        optimizer.step()

    return step
