"""Checks of a user's own configuration, on the user's own machine: a few steps on a few images."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from locallearn import seeding
from locallearn.config import AugmentConfig, CheckpointConfig, DataConfig, RunConfig, sides
from locallearn.data.datasets import Dataset, ImageSet, load
from locallearn.errors import DataError
from locallearn.runtime.cuda_graphs import WARM_UP, CudaGraphsRuntime
from locallearn.runtime.threads import ThreadsRuntime
from locallearn.training.configured import Training
from locallearn.training.observer import Quiet
from locallearn.training.process_state import cpu_threads
from locallearn.training.record import RunFolder
from locallearn.training.runs import build
from locallearn.training.setup import resolve
from locallearn.training.verify_common import Check, KillAt, KilledError, equal, newest
from locallearn.training.verify_gradients import gradients_in_a_step, gradients_stay
from locallearn.training.verify_processes import ROUNDING, on_mesh, train_on_processes, trial_mesh

BATCH = 16
"""Largest batch of a check [images]."""
STEPS = 4
"""Steps of a check, in one epoch."""

_SHAPES = {"cifar10": (3, 32, 10), "cifar100": (3, 32, 100), "imagenet32": (3, 32, 1000)}
"""Channels, side [pixels] and classes of the sets that may not be there."""


def verify(config: RunConfig, dataset: Dataset) -> list[Check]:
    """Check that gradients stay in their node, steps repeat, a saved run resumes and processes train what one trains.

    Of asynchronous training the first is checked only; of sequential training, and of a network of one node, not the
    last. With runtime ``threads`` also that modules at once train what they do in turn, and with ``cuda-graphs`` that
    replays do.

    Args:
        config: the configuration; ``shortened`` makes it small.
        dataset: its images, or those of ``synthetic``.

    Raises:
        UsageError: the configuration cannot be trained.
        DivergedError: a loss became NaN or infinite within these few steps.
    """
    config, dataset = shortened(config, dataset)
    with tempfile.TemporaryDirectory(prefix="locallearn-verify-") as folder:
        training = Training(config, dataset, RunFolder(Path(folder) / "gradients"), Quiet())
        if config.overlap:
            batch = next(iter(training.train_store.epoch(0, config.train.batch_size)))
            checks = [gradients_in_a_step(training.network, batch, training.precision, config.overlap)]
        else:
            checks = [gradients_stay(training)]
        if config.runtime == "asynchronous":  # its results depend on how fast each process was
            return checks
        whole = _train(config, dataset, Path(folder) / "whole")
        again = _train(config, dataset, Path(folder) / "again")
        resumed = _train(config, dataset, Path(folder) / "resumed", interrupted=True)
        processes = _processes(config, dataset, Path(folder))
        if isinstance(training.runtime, ThreadsRuntime):
            processes.insert(0, _at_once(training.runtime, config, dataset, Path(folder), whole))
        if isinstance(training.runtime, CudaGraphsRuntime):
            processes.insert(0, _replayed(config, dataset, Path(folder), whole))
    steps = f"{STEPS} steps of {config.train.batch_size} images"
    checks.append(equal("training is repeatable", f"weights and optimizer state after {steps}, twice", whole, again))
    cut = f"{steps} at once, and with a kill and a resume between"
    return [
        *checks,
        equal("a saved run resumes exactly", f"weights and optimizer state after {cut}", whole, resumed),
        *processes,
    ]


def images_of(config: DataConfig) -> tuple[Dataset, bool]:
    """The data set, or random pixels of its shape where its files are not there; and whether they are random."""
    try:
        return load(config), False
    except DataError:
        return synthetic(config), True


def synthetic(config: DataConfig) -> Dataset:
    """Random pixels and labels in the shape of a data set; of a folder's classes only the number 10 is assumed."""
    channels, size, classes = _SHAPES.get(config.name, (3, config.image_size or 32, 10))
    draws = seeding.generator(0, "verify")
    images = torch.randint(0, 256, (2 * STEPS * BATCH, channels, *sides(size)), dtype=torch.uint8, generator=draws)
    half = ImageSet(images[: STEPS * BATCH], torch.arange(STEPS * BATCH) % classes)
    names = tuple(str(i) for i in range(classes))
    mean = (0.5,) * channels
    augment = AugmentConfig(crop_padding=4, padding_mode="reflect", flip=0.5)
    return Dataset(config.name, half, half, names, mean, mean, augment, "synthetic pixels")


def shortened(config: RunConfig, dataset: Dataset) -> tuple[RunConfig, Dataset]:
    """The same network and settings for one epoch of 4 steps of at most 16 images.

    The learning rate is scaled with the batch, and the schedule changes it at every step.
    """
    batch = min(config.train.batch_size, BATCH, len(dataset.train.labels) // STEPS)
    train, test = dataset.train.first(STEPS * batch), dataset.test.first(batch)
    rate = config.optimizer.learning_rate * batch / config.train.batch_size
    small = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, epochs=1, batch_size=batch, evaluate_every=0),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        schedule=dataclasses.replace(config.schedule, unit="step"),
        checkpoint=CheckpointConfig(every_steps=STEPS // 2, keep_best=False),
    )
    return resolve(small, dataset), dataclasses.replace(dataset, train=train, test=test, validation=None)


def _at_once(
    runtime: ThreadsRuntime, config: RunConfig, dataset: Dataset, path: Path, found: dict[str, Tensor]
) -> Check:
    """Modules one after the other, each with as many threads as it has beside the others."""
    train = dataclasses.replace(config.train, threads=runtime.threads // runtime.at_once)
    with cpu_threads():
        expected = _train(dataclasses.replace(config, runtime="inline", train=train), dataset, path / "in-turn")
    detail = (
        f"weights and optimizer state, {runtime.at_once} modules on {runtime.threads} threads at once and in turn"
    )
    return equal("modules at once train what they do in turn", detail, expected, found)


def _replayed(config: RunConfig, dataset: Dataset, path: Path, found: dict[str, Tensor]) -> Check:
    """Every operator launched on its own; within rounding, for a GPU's libraries may add up in another order."""
    expected = _train(dataclasses.replace(config, runtime="inline"), dataset, path / "launched")
    detail = f"weights and optimizer state after {STEPS - WARM_UP} replays of {STEPS} steps, and after none"
    return equal("replayed graphs train what operators do", detail, expected, found, ROUNDING)


def _processes(config: RunConfig, dataset: Dataset, path: Path) -> list[Check]:
    """The same on several processes: bit for bit along depth, within rounding along width and data."""
    mesh = None if config.runtime == "sequential" else trial_mesh(config)
    if mesh is None:
        return []
    inline, distributed = on_mesh(config, mesh)
    with cpu_threads():
        alone = _train(inline, dataset, path / "inline")
    train_on_processes(distributed, dataset, path / "distributed")
    tolerance = ROUNDING if mesh.width * mesh.data > 1 else 0.0
    detail = f"weights and optimizer state on {mesh.depth} x {mesh.width} x {mesh.data} processes and on one"
    return [equal("processes train what one trains", detail, alone, newest(path / "distributed"), tolerance)]


def _train(config: RunConfig, dataset: Dataset, path: Path, interrupted: bool = False) -> dict[str, Tensor]:
    """Train and return weights and optimizer state; ``interrupted`` in the middle of a middle phase, and resumed."""
    folder = RunFolder(path)
    training = _build(config, dataset, folder)
    folder.create(config)
    if interrupted:
        middle = STEPS * (training.phases // 2) + STEPS // 2
        training.observer = KillAt(middle + 1)
        try:
            training.run()
        except KilledError:
            training = _build(config, dataset, folder)
            training.restore()
    training.run()
    return newest(path)


def _build(config: RunConfig, dataset: Dataset, folder: RunFolder) -> Training:
    training = build(config, dataset, folder, Quiet())
    assert isinstance(training, Training)
    return training
