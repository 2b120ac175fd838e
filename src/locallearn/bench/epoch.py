"""Whole epochs of training against the memory bandwidth of the device."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from locallearn.bench.cells import HEAD, Cell
from locallearn.bench.compiled import Compiled, compiled_backprop
from locallearn.bench.step import Setting, step_config
from locallearn.bench.timing import interleaved
from locallearn.config import AugmentConfig, RunConfig, RuntimeName, TrainConfig, sides
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs.traffic import step_traffic
from locallearn.data.datasets import Dataset, ImageSet
from locallearn.data.store import Batch
from locallearn.training.configured import Training
from locallearn.training.observer import Quiet
from locallearn.training.optim import build_optimizer
from locallearn.training.record import RunFolder
from locallearn.training.setup import resolve

COPIED = 2**29
"""Bytes of the copies that bandwidth is measured with: more than caches hold."""


def bench_epoch(
    model: str,
    cells: Sequence[Cell],
    images: int,
    setting: Setting,
    head: str = HEAD,
    runtime: RuntimeName = "inline",
    compiled: bool = False,
) -> dict[str, Any]:
    """Time epochs of training, in turns, and compare them with what the memory would allow.

    Args:
        model: backbone.
        cells: method, K and G of each.
        images: random ones, of an epoch; at least two batches.
        setting: batch, device, precision and repeats; with 0 repeats nothing is timed.
        head: the auxiliary heads.
        runtime: trains the modules.
        compiled: whether backpropagation of torch's layers under torch.compile competes, on the same batches; without
            metrics, which favours it.

    Returns:
        ``bandwidth``, read and written by copies [bytes/s], and a row for every cell. It has of one step
        ``operators``, ``bytes`` and ``product_bytes`` as ``step_traffic`` counts them; and where timed, of an
        epoch ``seconds`` (median) and ``spread``, ``images_per_second``, ``host_seconds`` (on a GPU, what the host
        needs to launch the work), and ``floor`` and ``product_floor``, the seconds in which such bytes are copied.
        Where it competes and time is taken, ``compiled``: ``seconds``, ``spread``, ``images_per_second``,
        ``warm_up_seconds``, ``graphs`` and ``recompiles`` (after its first step, a smaller last batch among them).

    Raises:
        UsageError: the compiled opponent cannot be compiled.
    """
    train = TrainConfig(batch_size=setting.batch_size, device=str(setting.device), threads=setting.threads)
    train = dataclasses.replace(train, precision=setting.precision)  # type: ignore[arg-type]
    configs = {
        cell: dataclasses.replace(step_config(model, *cell, head), runtime=runtime, train=train) for cell in cells
    }
    rows = [_counted(cell, config, setting.image) for cell, config in configs.items()]
    if not setting.repeats:
        return {"rows": rows}
    dataset, bandwidth = random_images(setting.image, images), copy_bandwidth(setting.device, setting.repeats)
    with TemporaryDirectory() as folder:
        trained = {str(cell): Epochs(config, dataset, folder) for cell, config in configs.items()}
        things = {cell: one.next for cell, one in trained.items()}
        opponent = None
        if compiled:
            opponent = compiled_backprop(model, setting)
            plain = Epochs(dataclasses.replace(step_config(model, "e2e", 1, 1), train=train), dataset, folder)
            things["compiled"] = partial(_compiled_epoch, opponent, plain)
        times = interleaved(things, setting.repeats, setting.device)
    for row, (cell, one) in zip(rows, trained.items(), strict=True):
        timing, steps = times[cell], one.training.steps_per_epoch
        row |= {"seconds": timing.median, "spread": timing.spread, "images_per_second": images / timing.median}
        row["host_seconds"] = statistics.median(one.host_seconds) if setting.device.type == "cuda" else None
        row["floor"] = steps * row["bytes"] / bandwidth
        row["product_floor"] = steps * row["product_bytes"] / bandwidth
    found: dict[str, Any] = {"bandwidth": bandwidth, "rows": rows}
    if opponent is not None:
        timing = times["compiled"]
        took = {"seconds": timing.median, "spread": timing.spread, "images_per_second": images / timing.median}
        found["compiled"] = took | opponent.facts()
    return found


def _compiled_epoch(opponent: Compiled, data: Epochs) -> None:
    """One epoch of the batches that a training has."""
    assert opponent.network is not None
    for batch in data.batches():
        opponent.network.step(batch)


def _counted(cell: Cell, config: RunConfig, image: ImageShape) -> dict[str, Any]:
    """What one step of a cell dispatches and moves."""
    optimizer = partial(build_optimizer, config.optimizer)
    traffic = step_traffic(build_network(config, image), image, config.train, optimizer)
    counts = {"operators": traffic.operators, "bytes": traffic.bytes, "product_bytes": traffic.product_bytes}
    return {**dict(zip(("method", "depth", "width"), cell, strict=True)), **counts}


def copy_bandwidth(device: torch.device, repeats: int) -> float:
    """What copies of 512 MiB read and write [bytes/s]; the median of ``repeats``."""
    source, target = (torch.ones(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * COPIED / interleaved({"": lambda: target.copy_(source)}, repeats, device)[""].median


def random_images(image: ImageShape, count: int) -> Dataset:
    """A data set that is augmented as CIFAR-10 is."""
    draw = torch.Generator().manual_seed(0)
    shape = (count, *image.sizes)
    images = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    labels = torch.randint(image.classes, (count,), generator=draw)
    return Dataset(
        name="random",
        train=ImageSet(images, labels),
        test=ImageSet(images[:1], labels[:1]),
        classes=tuple(str(i) for i in range(image.classes)),
        mean=(0.5,) * image.channels,
        std=(0.25,) * image.channels,
        augment=AugmentConfig(crop_padding=min(sides(image.size)) // 8, padding_mode="reflect", flip=0.5),
        source="random numbers",
    )


class Epochs(Quiet):
    """Trains one epoch after the other as ``train`` does, without evaluation and checkpoints.

    Attributes:
        host_seconds: of every epoch so far, what the host took to issue the second step, times the number of steps.
            The first one waits for the order of the images, and later ones might for the device.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, folder: str) -> None:
        self.config = resolve(config, dataset)
        self.training = Training(self.config, dataset, RunFolder(Path(folder)), self)
        self.host_seconds: list[float] = []
        self._epochs, self._issued = 0, list[float]()

    def on_step(self, step: int) -> None:
        """The host is through with a step; a GPU may not be."""
        self._issued.append(time.perf_counter())

    def batches(self) -> Iterator[Batch]:
        """The batches of the next epoch, without training on them."""
        self._epochs += 1
        return self.training.train_store.epoch(self._epochs - 1, self.config.train.batch_size, 0)

    def next(self) -> None:
        """Train on all images once."""
        self._issued.clear()
        with self.training.runtime:
            self.training.train_epoch(self._epochs)
        self._epochs += 1
        first, second, *_ = self._issued
        self.host_seconds.append((second - first) * self.training.known_steps)
