"""Checks of a user's own split model, on the user's own machine: a few steps on a batch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.network import OptimizerFactory
from locallearn.core.split_network import SplitNetwork
from locallearn.errors import ConfigError
from locallearn.training.trainer import Trainer
from locallearn.training.verify_common import Check, KillAt, KilledError, equal, in_processes, newest
from locallearn.training.verify_gradients import gradients_in_a_step
from locallearn.training.verify_processes import ROUNDING

STEPS = 4
"""Steps of a check, in one epoch."""

RUNTIMES = ("threads", "distributed")
"""Runtimes that train what inline does."""

Make = Callable[[], tuple[SplitNetwork, Any]]
"""Gives a network of ``ll.split`` and a batch; what processes are to import it must be able to."""


def verify_own(
    make: Make,
    runtimes: Sequence[str] = RUNTIMES,
    *,
    processes: int = 2,
    replicas: int = 1,
    precision: str = "fp32",
    optimizer: OptimizerFactory | None = None,
) -> list[Check]:
    """Check that gradients stay in their stage, steps repeat, a run resumes, and runtimes train what inline does.

    All of them train the first network's weights, on one batch 4 times, with one thread a stage; what they give is
    compared bit for bit. Replicas add up in another order, so they train with SGD, which leaves roundings as small as
    they are, and what they give may differ by 5e-5 of a tensor's largest value.

    Args:
        make: gives the network and a batch; it is called for every training, and in every process.
        runtimes: of ``"threads"`` and ``"distributed"``, on a CPU.
        processes: for ``"distributed"``, at most as many as stages.
        replicas: processes that have every stage and a part of the batch; with 1 they are not checked.
        precision: ``"fp32"`` or ``"bf16"``.
        optimizer: makes a stage's optimizer; by default that of ``ll.Trainer``.

    Raises:
        LocalLearnError: the model cannot be trained so.
    """
    network, batch = make()
    if replicas > 1:
        _check_replicas(network, batch, replicas)
    weights = copy.deepcopy(network.state_dict())
    with tempfile.TemporaryDirectory(prefix="locallearn-verify-") as folder:
        trainings = _Trainings(make, weights, batch, precision, optimizer, Path(folder))
        given = network.given_batch(batch)
        checks = [gradients_in_a_step(network.train(), given, precision, network.overlap)]
        whole = trainings.run("whole")
        steps = f"{STEPS} steps of {given.examples} examples"
        what = f"weights and optimizer state after {steps}"
        checks.append(equal("training is repeatable", f"{what}, twice", whole, trainings.run("again")))
        cut = "at once, and with a kill and a resume between"
        checks.append(equal("a saved run resumes exactly", f"{what} {cut}", whole, trainings.interrupted()))
        if "threads" in runtimes:
            found = trainings.run("threads", runtime="threads")
            checks.append(equal("stages at once train what they do in turn", f"{what}, threads", whole, found))
        if "distributed" in runtimes:
            found = trainings.on_processes(processes)
            detail = f"{what}, on {processes} processes and on one"
            checks.append(equal("processes train what one trains", detail, whole, found))
        if replicas > 1:
            trainings.optimizer = _sgd
            one, found = (_weights(each) for each in (trainings.run("one"), trainings.as_replicas(replicas)))
            detail = f"weights after {steps}, on {replicas} replicas and on one process, with SGD"
            checks.append(equal("replicas train what one process trains", detail, one, found, ROUNDING))
    return checks


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without optimizer state: gradients that are rounding alone, as of a bias before a batch norm, have no scale."""
    return {name: value for name, value in tensors.items() if name.startswith("network/")}


def _check_replicas(network: SplitNetwork, batch: Any, replicas: int) -> None:
    """Refuse replicas of what they cannot train as one process does.

    Raises:
        ConfigError: the message says why.
    """
    given = network.given_batch(batch)
    with torch.no_grad(), torch.random.fork_rng():
        before = torch.get_rng_state()
        network.output(given)
        drawn = not torch.equal(before, torch.get_rng_state())
    if drawn:
        expected = "1 with a model that draws in training (dropout), as each replica does for itself; or dropout at 0"
        raise ConfigError("replicas", replicas, expected)
    network.replicate(replicas, given)


class _Trainings:
    """Trainings from the same weights, each into a run of its own."""

    def __init__(
        self,
        make: Make,
        weights: dict[str, Tensor],
        batch: Any,
        precision: str,
        optimizer: OptimizerFactory | None,
        folder: Path,
    ) -> None:
        self.make, self.weights, self.batch = make, weights, batch
        self.precision, self.optimizer, self.folder = precision, optimizer, folder

    def run(self, name: str, **settings: Any) -> dict[str, Tensor]:
        """Train, and return weights and optimizer state."""
        self._trainer(name, **settings).fit([self.batch] * STEPS)
        return newest(self.folder / name)

    def interrupted(self) -> dict[str, Tensor]:
        """The same with a kill in the middle, and a resume."""
        killed = KillAt(STEPS // 2 + 1)
        try:
            self._trainer("interrupted", checkpoint_every=2, observer=killed).fit([self.batch] * STEPS)
        except KilledError:
            self._trainer("interrupted", checkpoint_every=2).fit([self.batch] * STEPS)
        return newest(self.folder / "interrupted")

    def on_processes(self, count: int) -> dict[str, Tensor]:
        """The same in processes."""
        in_processes(count, 1, partial(self.run, "distributed", runtime="distributed"))
        return newest(self.folder / "distributed")

    def as_replicas(self, count: int) -> dict[str, Tensor]:
        """The same in processes that have every stage."""
        in_processes(count, 1, partial(self.run, "replicas", runtime="distributed", replicas=count))
        return newest(self.folder / "replicas")

    def _trainer(self, name: str, **settings: Any) -> Trainer:
        network, _ = self.make()
        network.load_state_dict(self.weights)
        threads = network.depth if settings.get("runtime") == "threads" else 1  # in all: one a stage
        return Trainer(
            network,
            run=self.folder / name,
            precision=self.precision,
            optimizer=self.optimizer,
            threads=threads,
            **settings,
        )
