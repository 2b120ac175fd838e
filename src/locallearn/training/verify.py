"""Checks of a user's own configuration, on the user's own machine: a few steps on a few images."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from locallearn import seeding
from locallearn.config import AugmentConfig, CheckpointConfig, DataConfig, RunConfig, sides
from locallearn.core.module import LocalStep, Stage, autocast
from locallearn.core.overlap import CLASSIFIER
from locallearn.data.datasets import Dataset, ImageSet, load
from locallearn.errors import DataError
from locallearn.losses.objectives import LocalLoss
from locallearn.runtime.cuda_graphs import WARM_UP, CudaGraphsRuntime
from locallearn.runtime.threads import ThreadsRuntime
from locallearn.training.checkpoint import CheckpointFolder
from locallearn.training.configured import Training
from locallearn.training.observer import Quiet
from locallearn.training.record import RunFolder
from locallearn.training.runs import build
from locallearn.training.setup import resolve
from locallearn.training.verify_processes import ROUNDING, on_mesh, train_on_processes, trial_mesh

BATCH = 16
"""Largest batch of a check [images]."""
STEPS = 4
"""Steps of a check, in one epoch."""

_SHAPES = {"cifar10": (3, 32, 10), "cifar100": (3, 32, 100), "imagenet32": (3, 32, 1000)}
"""Channels, side [pixels] and classes of the sets that may not be there."""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what should hold.
        passed: whether it does.
        difference: the largest absolute difference that should be 0; None where it could not be measured.
        detail: what was compared, as one line.
    """

    name: str
    passed: bool
    difference: float | None
    detail: str


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
        checks = [gradients_cross_one_cut(training) if config.overlap else gradients_stay(training)]
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
    checks.append(_equal("training is repeatable", f"weights and optimizer state after {steps}, twice", whole, again))
    cut = f"{steps} at once, and with a kill and a resume between"
    return [
        *checks,
        _equal("a saved run resumes exactly", f"weights and optimizer state after {cut}", whole, resumed),
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


# --- gradients -------------------------------------------------------------------------------------------------


def gradients_stay(training: Training) -> Check:
    """Every node's loss has a gradient in its own parameters and in no other node's.

    The features that a module sees are what the local step of the module before it really returns.
    """
    steps, leaks, silent = list(training.nodes.steps.values()), [0.0], []
    batch = next(iter(training.train_store.epoch(0, training.config.train.batch_size)))
    features = batch.images
    for k, step in enumerate(steps):
        with autocast(batch.images.device, training.precision):
            loss = step.module.loss(step.module(features, batch), batch)
        for group in range(step.module.groups):
            own, foreign = _reach(loss.total[group], steps, k, group)
            leaks.append(foreign)
            if own == 0:
                silent.append(f"module {step.module.name}, group {group + 1}")
        leaks.append(math.inf if any(x.requires_grad for x in tree_leaves(features)) else 0.0)
        try:
            features, _ = step(features, batch, 0)
        except RuntimeError:  # a graph that reaches into the module before is gone already
            leaks.append(math.inf)
            features = tree_map(torch.detach, features)
    nodes = sum(step.module.groups for step in steps)
    detail = f"the loss of each of {nodes} nodes, differentiated by the parameters of every node"
    if silent:
        detail = f"no gradient at all in {', '.join(silent)}"
    worst = max(leaks)
    measured = worst if math.isfinite(worst) else None
    return Check("no gradient crosses a boundary", worst == 0 and not silent, measured, detail)


class _Alone(LocalStep):
    """A local step whose own loss counts for nothing but for one stage, and which changes no weight."""

    counts = False

    def backward(self, loss: LocalLoss, reaches: Sequence[Tensor] = (), keep: bool = False) -> None:
        """Differentiate the loss, or zero times it."""
        super().backward(dataclasses.replace(loss, total=loss.total * float(self.counts)), reaches, keep)

    def update(self, rate: float | None = None) -> None:
        """Leave the weights as they are."""


def gradients_cross_one_cut(training: Training) -> Check:
    """With ``overlap`` every module's loss has a gradient in it and in the module before it, and in no other."""
    network, batch = training.network, next(iter(training.train_store.epoch(0, training.config.train.batch_size)))
    steps = [_Alone(module, torch.optim.SGD(module.parameters()), training.precision) for module in network]
    wrong, leaks = [], [0.0]
    for k, step in enumerate(steps):
        for each in steps:
            each.counts = each is step
        network.walk(steps, batch, 0)
        reached = {k} if k == 0 or step.module.name == CLASSIFIER else {k - 1, k}
        for j, module in enumerate(network):
            largest = max(_largest_by_group(module, [p.grad for p in module.parameters()]))
            if j in reached and largest == 0:
                wrong.append(f"module {step.module.name} does not reach module {module.name}")
            leaks.append(0.0 if j in reached else largest)
    detail = "; ".join(wrong) or "overlap 1: every module's loss, differentiated by the parameters of all modules"
    passed = not wrong and max(leaks) == 0
    return Check("gradients cross one boundary and no other", passed, max(leaks), detail)


def _reach(loss: Tensor, steps: list[LocalStep], k: int, group: int) -> tuple[float, float]:
    """Largest gradient of a node's loss in its own parameters and in all others; infinite where it cannot be had."""
    modules = [step.module for step in steps]
    try:
        gradients = [
            torch.autograd.grad(loss, list(m.parameters()), retain_graph=True, allow_unused=True) for m in modules
        ]
    except RuntimeError:
        return math.inf, math.inf
    own, foreign = 0.0, 0.0
    for j, (module, found) in enumerate(zip(modules, gradients, strict=True)):
        largest = _largest_by_group(module, found)
        own = largest.pop(group) if j == k else own
        foreign = max([foreign, *largest])
    return own, foreign


def _largest_by_group(module: Stage, gradients: Iterable[Tensor | None]) -> list[float]:
    largest = [0.0] * module.groups
    for gradient in gradients:
        if gradient is not None:
            rows = [part.abs().max().item() for part in gradient.chunk(module.groups)]
            largest = [max(pair) for pair in zip(largest, rows, strict=True)]
    return largest


# --- weights ---------------------------------------------------------------------------------------------------


class _StopError(Exception):
    pass


class _StopAt(Quiet):
    """Ends training in a step, as a kill does: nothing is written on the way out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int) -> None:
        """Raise at that step."""
        if step == self.step:
            raise _StopError


def _at_once(
    runtime: ThreadsRuntime, config: RunConfig, dataset: Dataset, path: Path, found: dict[str, Tensor]
) -> Check:
    """Modules one after the other, each with as many threads as it has beside the others."""
    share, threads = runtime.threads // runtime.at_once, torch.get_num_threads()
    train = dataclasses.replace(config.train, threads=share)
    expected = _train(dataclasses.replace(config, runtime="inline", train=train), dataset, path / "in-turn")
    torch.set_num_threads(threads)
    detail = (
        f"weights and optimizer state, {runtime.at_once} modules on {runtime.threads} threads at once and in turn"
    )
    return _equal("modules at once train what they do in turn", detail, expected, found)


def _replayed(config: RunConfig, dataset: Dataset, path: Path, found: dict[str, Tensor]) -> Check:
    """Every operator launched on its own; within rounding, for a GPU's libraries may add up in another order."""
    expected = _train(dataclasses.replace(config, runtime="inline"), dataset, path / "launched")
    detail = f"weights and optimizer state after {STEPS - WARM_UP} replays of {STEPS} steps, and after none"
    return _equal("replayed graphs train what operators do", detail, expected, found, ROUNDING)


def _processes(config: RunConfig, dataset: Dataset, path: Path) -> list[Check]:
    """The same on several processes: bit for bit along depth, within rounding along width and data."""
    mesh = None if config.runtime == "sequential" else trial_mesh(config)
    if mesh is None:
        return []
    threads = torch.get_num_threads()
    inline, distributed = on_mesh(config, mesh)
    alone = _train(inline, dataset, path / "inline")
    torch.set_num_threads(threads)
    train_on_processes(distributed, dataset, path / "distributed")
    tolerance = ROUNDING if mesh.width * mesh.data > 1 else 0.0
    detail = f"weights and optimizer state on {mesh.depth} x {mesh.width} x {mesh.data} processes and on one"
    return [_equal("processes train what one trains", detail, alone, _newest(path / "distributed"), tolerance)]


def _train(config: RunConfig, dataset: Dataset, path: Path, interrupted: bool = False) -> dict[str, Tensor]:
    """Train and return weights and optimizer state; ``interrupted`` in the middle of a middle phase, and resumed."""
    folder = RunFolder(path)
    training = _build(config, dataset, folder)
    folder.create(config)
    if interrupted:
        middle = STEPS * (training.phases // 2) + STEPS // 2
        training.observer = _StopAt(middle + 1)
        try:
            training.run()
        except _StopError:
            training = _build(config, dataset, folder)
            training.restore()
    training.run()
    return _newest(path)


def _newest(path: Path) -> dict[str, Tensor]:
    """Weights and optimizer state of a run's newest checkpoint."""
    _, found, _ = CheckpointFolder(RunFolder(path).checkpoints, 1).newest()
    assert found is not None
    return {key: value for key, value in found.tensors.items() if not key.startswith("sums/")}


def _build(config: RunConfig, dataset: Dataset, folder: RunFolder) -> Training:
    training = build(config, dataset, folder, Quiet())
    assert isinstance(training, Training)
    return training


def _equal(name: str, detail: str, a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0) -> Check:
    """Whether the same tensors are there, bit for bit or within a share of each one's largest value."""
    if a.keys() != b.keys():
        first = sorted(a.keys() ^ b.keys())[0]
        return Check(name, False, None, f"{first} is in one of them only")
    difference = max((a[key].double() - b[key].double()).abs().max().item() for key in a)
    return Check(name, all(_close(a[key], b[key], tolerance) for key in a), difference, detail)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not tolerance:
        return torch.equal(a, b)
    allowed = tolerance * max(a.double().abs().max().item(), 1e-3)
    return (a.double() - b.double()).abs().max().item() <= allowed
