"""Sequential training: one module after the other, each for all its epochs, on a device that holds one module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from locallearn.config import RunConfig
from locallearn.core.network import LocalNetwork
from locallearn.data.datasets import Dataset
from locallearn.data.store import Batch
from locallearn.runtime.feature_cache import FeatureCache
from locallearn.runtime.sequential import SequentialRuntime
from locallearn.training.checkpoint import Checkpoint
from locallearn.training.configured import Training
from locallearn.training.evaluate import evaluate, module_label
from locallearn.training.guard import FiniteGuard
from locallearn.training.observer import Observer
from locallearn.training.record import RunFolder
from locallearn.training.sums import Sums


class SequentialTraining(Training):
    """One training with ``runtime = "sequential"``: a phase for every module, the decoupled classifier last.

    Gradients, optimizer state and activations are those of one module. Steps and epochs of the record count through
    all phases; learning rate, order of images and dropout start again with each.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, folder: RunFolder, observer: Observer) -> None:
        super().__init__(config, dataset, folder, observer)
        self.modules = list(self.network)
        self.phases = len(self.modules)
        settings = config.sequential
        kept = folder.path / "features" if settings.cache == "disk" else None
        self.cache = None if settings.cache == "none" else FeatureCache(int(settings.cache_gib * 2**30), kept)
        self._enter(0)

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary. Kept features do not outlive the call."""
        try:
            self._clear_cache()  # what a kill left behind
            return super().run()
        finally:
            self._clear_cache()

    def _clear_cache(self) -> None:
        if self.cache is not None:
            self.cache.clear()

    def _enter(self, index: int) -> None:
        """Train this module (counted from 0) from now on; the one before it lets go of what only training needs."""
        self.index = index
        self._free_optimizers()
        self.recorded = LocalNetwork([self.modules[index]])
        self.sums, self.guard = Sums(self.recorded, self.device), FiniteGuard(self.recorded, self.device)
        frozen = self.modules[:index]
        self.runtime = SequentialRuntime(
            self.nodes.steps[index], frozen, self.config.sequential, self.known_steps, self.cache
        )

    def _free_optimizers(self, but: int | None = None) -> None:
        """Let go of what optimizers remember and of gradients; of one module they may stay."""
        for index, step in self.nodes.steps.items():
            if index != but:
                step.optimizer.state.clear()
                step.optimizer.zero_grad(set_to_none=True)

    def _put_back(self, path: Path, found: Checkpoint) -> None:
        phase = found.progress["step"] // (self.known_steps * self.config.train.epochs)
        self._enter(min(phase, self.phases - 1))
        super()._put_back(path, found)
        self._free_optimizers(but=self.index)  # a checkpoint at the end of a phase has those of the module before

    def _epoch(self, epoch: int, start: int) -> None:
        index = epoch // self.config.train.epochs
        if index != self.index:
            self._enter(index)
        super()._epoch(epoch, start)
        if epoch + 1 == self.epochs:
            self._clear_cache()  # before the summary: who sees that has nothing to clear up

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        if self.cache is not None and self.index:
            epoch %= self.config.sequential.cache_epochs
        return super()._batches(epoch, start)

    def _evaluate(self, epoch: int) -> bool:
        """Evaluate the modules so far; there is no last layer before the last one trains."""
        if self.index == self.phases - 1:
            return super()._evaluate(epoch)
        network = LocalNetwork(self.modules[: self.index + 1])
        found = evaluate(network, self.test_store.ordered(self.config.train.evaluate_batch_size), self.precision)
        self._record({"event": "evaluate", "epoch": epoch, "nodes": found.nodes})
        return False

    def _record(self, event: dict[str, Any]) -> None:
        if event["event"] in ("train", "evaluate"):
            event = {**event, "module": module_label(self.modules[self.index].name)}
        if event["event"] == "train":
            event["learning_rate"] = float(self.nodes.steps[self.index].optimizer.param_groups[0]["lr"])
        super()._record(event)
