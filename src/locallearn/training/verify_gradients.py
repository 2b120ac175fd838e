"""Whether gradients stay where they belong, in the package's own training steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from locallearn.core.local_step import LocalStep, autocast
from locallearn.core.module import Stage
from locallearn.core.network import LocalNetwork
from locallearn.core.overlap import CLASSIFIER
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss
from locallearn.training.configured import Training
from locallearn.training.verify_common import Check


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


def gradients_in_a_step(network: LocalNetwork, batch: Batch, precision: str, overlap: int) -> Check:
    """In a step every module's loss leaves a gradient in the module, with ``overlap`` also in the one before it.

    And in no other.
    """
    names = [module.name for module in network]
    trains = [any(p.requires_grad for p in _parameters(module)) for module in network]
    wrong, leaks = [], [0.0]
    for k, found in enumerate(_in_a_step(network, batch, precision)):
        reached = {k - 1, k} if overlap and k and names[k] != CLASSIFIER else {k}
        for j, largest in enumerate(found):
            if j in reached and trains[j] and largest == 0:
                wrong.append(f"module {names[k]} does not reach module {names[j]}")
            leaks.append(0.0 if j in reached else largest)
    name = "gradients cross one boundary and no other" if overlap else "no gradient crosses a boundary"
    detail = f"overlap {overlap}: every module's loss, differentiated by the parameters of all modules"
    worst = max(leaks)
    measured = worst if math.isfinite(worst) else None
    return Check(name, worst == 0 and not wrong, measured, "; ".join(wrong) or detail)


def _in_a_step(network: LocalNetwork, batch: Batch, precision: str) -> Iterator[list[float]]:
    """For every stage the largest gradients that its loss leaves in each stage's parameters; no weight changes."""
    stages = list(network)
    steps = [_Alone(stage, torch.optim.SGD(_parameters(stage)), precision) for stage in stages]
    for step in steps:
        for each in steps:
            each.counts = each is step
        network.walk(steps, batch, 0)
        yield [max(_largest_by_group(stage, [p.grad for p in _parameters(stage)])) for stage in stages]


def _parameters(stage: Stage) -> list[Tensor]:
    return list(stage.own_parameters().values())


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
