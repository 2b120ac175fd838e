"""Checks of a user's own split model, on the user's own machine: a few steps on a batch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from locallearn.core.network import OptimizerFactory
from locallearn.core.split_network import SplitNetwork
from locallearn.training.trainer import Trainer
from locallearn.training.verify_common import Check, KillAt, KilledError, equal, in_processes, newest
from locallearn.training.verify_gradients import gradients_in_a_step

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
    precision: str = "fp32",
    optimizer: OptimizerFactory | None = None,
) -> list[Check]:
    """Check that gradients stay in their stage, steps repeat, a run resumes, and runtimes train what inline does.

    All of them train the first network's weights, on one batch 4 times, with one thread a stage; what they give is
    compared bit for bit.

    Args:
        make: gives the network and a batch; it is called for every training, and in every process.
        runtimes: of ``"threads"`` and ``"distributed"``, on a CPU.
        processes: for ``"distributed"``, at most as many as stages.
        precision: ``"fp32"`` or ``"bf16"``.
        optimizer: makes a stage's optimizer; by default that of ``ll.Trainer``.

    Raises:
        LocalLearnError: the model cannot be trained so.
    """
    network, batch = make()
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
    return checks


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
