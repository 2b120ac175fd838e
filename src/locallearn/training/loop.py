"""The training loop: epochs, checkpoints, evaluation and the record, around a runtime's step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from locallearn.config import RunConfig
from locallearn.data.store import Batch
from locallearn.errors import InterruptedRunError, UsageError
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training import checkpoint as checkpoints
from locallearn.training import provenance, record
from locallearn.training.evaluate import Evaluation, module_label
from locallearn.training.observer import Observer
from locallearn.training.optim import rates
from locallearn.training.record import RunFolder
from locallearn.training.resumable import Resumable
from locallearn.training.scorers import chooses_pairs
from locallearn.training.step_state import end_epoch
from locallearn.training.stop import StopRequest
from locallearn.training.summary import processes_since, summarise
from locallearn.training.sums import Sums
from locallearn.training.work import Work


class Loop(Resumable):
    """One training: epochs, validation, checkpoints, exact resume and the record, around a runtime's step.

    Args:
        config: a resolved configuration.
        work: what is trained, and on what.
        folder: the run's folder; None keeps nothing.
        observer: is told how it goes.
        world: the processes; by default this one alone. All run the same loop, each on its own nodes; the leader
            also evaluates, on the whole network, and writes the record.
    """

    def __init__(
        self,
        config: RunConfig,
        work: Work,
        folder: RunFolder | None,
        observer: Observer,
        world: Alone | ProcessWorld | None = None,
    ) -> None:
        super().__init__(config, work, folder, observer, world)
        self._asks_scorer = chooses_pairs(self.nodes.network)
        self.rates = None if work.optimizer else rates(config, self.known_steps)
        self.stop = StopRequest(patient=isinstance(self.world, ProcessWorld))
        self.phases = 1
        """How often training goes through all its epochs: once, or once for every module (sequential)."""
        self.recorded = work.network
        """The modules whose sums are recorded."""

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return self.config.train.epochs * self.phases

    @property
    def phase_step(self) -> int:
        """Number of the step in its phase, from 0; it seeds dropout and sets the learning rate."""
        return self.step if self.phases == 1 else self.step % (self.known_steps * self.config.train.epochs)

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary; on other processes than the leader nothing."""
        self.observer.on_start(self.config, self.steps_per_epoch or 0, self.epochs, self.step)
        self._note_commit()
        if self.step == 0:
            nodes = [{"module": module_label(name), "group": group} for name, group in self.network.nodes]
            self._record({"event": "start", "time": record.now(), "nodes": nodes})
        else:
            self._record({"event": "resume", "time": record.now()})
        before = (self.progress["images"], self.progress["train_seconds"])
        self.runtime.open(self.step, (self.steps_per_epoch or 0) * self.epochs)
        with self.stop, self.runtime:
            while self.epochs_done < self.epochs:
                self._epoch(self.epochs_done, self.within)
        processes = processes_since(*before, self.world, self.runtime, self.config, self.progress)
        if not self.world.leader:
            return {}
        summary = summarise(self.config, self.work.source, self.work.network, self.progress, self.step)
        summary |= {"processes": processes} if processes else {}
        if self.folder is not None:
            earlier = self.folder.history().told()
            summary |= {"history": earlier} if earlier else {}
            self.folder.write_summary(summary)
        return summary

    def _note_commit(self) -> None:
        """Remember every commit that took part: of the start and of a resume by other code."""
        commits = self.progress.setdefault("commits", [])
        if provenance.commit() not in commits:
            commits.append(provenance.commit())

    def _epoch(self, epoch: int, start: int) -> None:
        """Train on what is left of an epoch (counted from 0), evaluate, and write a checkpoint."""
        self.train_epoch(epoch, start)
        self._finish_epoch(epoch + 1)
        if epoch + 1 < self.epochs:
            self._stop_if_requested()

    def train_epoch(self, epoch: int, start: int = 0) -> None:
        """Train on the batches of an epoch (counted from 0) from ``start`` on.

        The runtime must have been entered.
        """
        self.within = start
        if start == 0:
            self.sums.reset()
            self.progress["epoch_seconds"] = 0.0
        begin = time.perf_counter()
        for batch in self._batches(epoch % self.config.train.epochs, start):
            self._step(batch)
            self.within += 1
            inside = self.within != self.steps_per_epoch  # the end of an epoch is saved with its evaluation
            if inside and not self._gathering and (self._checkpoint_is_due() or self._stopping):
                self._settle()
                self._clock(begin)
                self.write_checkpoint()
                self._stop_if_requested()
                begin = time.perf_counter()
        self._settle()
        for step in self.nodes.steps.values():
            step.flush()
        self._clock(begin)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches of what is left of an epoch of a phase."""
        return self.work.train.epoch(epoch, self.config.train.batch_size, start)

    @property
    def _gathering(self) -> bool:
        """Whether gradients of some batches wait for the update that follows more of them."""
        return any(step.gathering for step in self.nodes.steps.values())

    @property
    def _stopping(self) -> bool:
        """Whether to stop now; several processes agree on the step."""
        return self.runtime.stops(self.stop.requested)

    def _stop_if_requested(self) -> None:
        if self._stopping:
            raise InterruptedRunError(f"interrupted at step {self.step}; {self.work.resume}")

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        return bool(every) and self.step % every == 0

    def _clock(self, begin: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elapsed = time.perf_counter() - begin
        self.progress["epoch_seconds"] += elapsed
        self.progress["train_seconds"] += elapsed

    def _step(self, batch: Batch) -> None:
        if self._asks_scorer:
            batch = self.scorer.scored(batch)
        rate = None if self.rates is None else self.rates(self.phase_step)
        if self.phase_step or not self.work.network.weighable:
            self.progress.setdefault("activation_bytes", 0)
            trained = self.runtime.step(batch, self.phase_step, rate, self.stop.requested)
        else:  # the first step of a phase is also weighed
            parameters = [p for step in self.nodes.steps.values() for p in step.module.own_parameters().values()]
            trained, peak = self.runtime.weighed_step(batch, self.phase_step, rate, self.stop.requested, parameters)
            self.progress["activation_bytes"] = max(peak, self.progress.get("activation_bytes", 0))
        self.step += 1
        self._account(trained)
        if self.scorer.follows:
            self._settle()
            self.scorer.update()
        self.observer.on_step(self.step)

    def _finish_epoch(self, epoch: int) -> None:
        """Record an epoch (counted from 1), evaluate, and write a checkpoint."""
        self._record_epoch(epoch)
        every, last = self.config.train.evaluate_every, epoch % self.config.train.epochs == 0
        better, loss = False, None
        if self.work.evaluate is not None and (last or (every and epoch % every == 0)):
            with self.nodes.averaged():
                better = self._evaluate(epoch)
            loss = self._validation_loss() if self.work.every_epoch else None
        if self.work.every_epoch:
            end_epoch(self.schedules.values(), loss)
        path = self.write_checkpoint()
        if better and self.config.checkpoint.keep_best:
            self._mark_best(path)

    def _record_epoch(self, epoch: int) -> None:
        if "images" not in self.sums.tensors:
            raise UsageError(f"loader: no batch in epoch {epoch}; a list or a DataLoader gives some in every epoch")
        seconds = self.progress["epoch_seconds"]
        images = self.sums.tensors["images"].item()
        self.progress["images"] += images / self.phases
        self._check(self.guard.bad_loss())  # in the epoch that it came in
        self.epochs_done, self.within = epoch, 0
        whole = Sums(self.recorded, self.device)
        whole.tensors = self.world.whole(self.sums.tensors)
        self.progress["activation_bytes"] = self.world.largest(self.progress["activation_bytes"])
        if self.world.leader:
            self._record(
                {
                    "event": "train",
                    "epoch": epoch,
                    "learning_rate": float(self.nodes.steps[0].optimizer.param_groups[0]["lr"]),
                    "seconds": seconds,
                    "images_per_second": images / seconds,
                    "nodes": whole.nodes(),
                }
            )

    def _evaluate(self, epoch: int) -> bool:
        """Evaluate, and tell whether the last layer was never better on what chooses the best checkpoint."""
        if self.nodes.spread is not None:
            if not self.nodes.spread.evaluates:
                return False
            self.nodes.spread.refresh()
        elif isinstance(self.world, ProcessWorld):
            weights = self.world.whole(self.nodes.weights())
            if not self.world.leader:
                return False
            checkpoints.load_network(self.network, weights, Path("of all processes"))
        found = self.evaluation()
        if not self.world.leader:
            return False
        accuracy: dict[str, Any] = {**found.accuracies, "protocol": found.protocol}
        choosing = found
        if self.work.validate is not None:
            choosing = self.work.validate(self.network)
            accuracy["validation"] = {**choosing.accuracies, "images": choosing.images}
        self._record({"event": "evaluate", "epoch": epoch, **accuracy, "nodes": found.nodes})
        self.progress["last"] = {"epoch": epoch, **accuracy, "nodes": found.nodes}
        best = self.progress["best"]
        if best is None or choosing.score > best["score"]:
            self.progress["best"] = {"epoch": epoch, "score": choosing.score, **accuracy}
            return True
        return False

    def _validation_loss(self) -> float:
        """The last stage's in the last evaluation, which the first process has told all others."""
        found = self.progress["last"]["nodes"][-1].get("loss", math.nan) if self.world.leader else math.nan
        return float(self.world.share(repr(found)))

    def evaluation(self) -> Evaluation:
        """Evaluate the network on what it is evaluated on."""
        assert self.work.evaluate is not None
        return self.work.evaluate(self.network)

    def _record(self, event: dict[str, Any]) -> None:
        if not self.world.leader:
            return
        event = {**event, "step": self.step}
        if self.folder is not None:
            self.folder.append(event)
        self.observer.on_event(event)
