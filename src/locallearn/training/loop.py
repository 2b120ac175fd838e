"""The training loop: epochs, checkpoints, evaluation and the record, around a runtime's step."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from locallearn.config import RunConfig, digest
from locallearn.core.local_step import LocalStep
from locallearn.core.weight_average import WeightAverage
from locallearn.data.store import Batch
from locallearn.errors import CheckpointError, ConfigError, DivergedError, InterruptedRunError, UsageError
from locallearn.runtime.distributed import DistributedRuntime
from locallearn.runtime.inline import Runtime, Trained
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training import checkpoint as checkpoints
from locallearn.training import provenance, record
from locallearn.training.evaluate import Evaluation, module_label
from locallearn.training.guard import FiniteGuard
from locallearn.training.observer import Observer
from locallearn.training.optim import rates
from locallearn.training.own_nodes import Nodes
from locallearn.training.record import RunFolder
from locallearn.training.scorers import chooses_pairs
from locallearn.training.step_state import load_step_state, step_state
from locallearn.training.stop import StopRequest
from locallearn.training.summary import memory, summarise
from locallearn.training.sums import Sums
from locallearn.training.work import Work


class Loop:
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
        self.config, self.work, self.folder, self.observer = config, work, folder, observer
        self.world = world or Alone()
        train = config.train
        assert train.device is not None
        assert train.precision is not None
        self.precision = train.precision
        self.device = self.world.device if isinstance(self.world, ProcessWorld) else torch.device(train.device)
        self.nodes = Nodes(config, work.network, work.image, self.world, work.optimizer, work.accumulate)
        self.network = self.nodes.spread or (work.network if self.world.leader else self.nodes.network)
        self.runtime: Runtime = self.nodes.runtime
        self.schedules: dict[int, Any] = {}
        for i, step in self.nodes.steps.items():
            self._equip(i, step)
        self.scorer = work.scorer
        self._asks_scorer = chooses_pairs(self.nodes.network)
        self.steps_per_epoch = work.train.steps(train.batch_size)
        self.rates = None if work.optimizer else rates(config, self.known_steps)
        smallest = work.train.smallest(train.batch_size)
        if smallest and config.mesh.data > smallest:
            raise ConfigError("mesh.data", config.mesh.data, f"at most {smallest}, the images of the last batch")
        keep = config.checkpoint
        self.kept: checkpoints.CheckpointFolder | None = None
        if folder is not None:
            keep_steps = keep.keep_epochs * (self.steps_per_epoch or 0)
            self.kept = checkpoints.CheckpointFolder(folder.checkpoints, keep.keep_last, keep_steps)
        self.sums = Sums(self.nodes.network, self.device)
        self.stop = StopRequest(patient=isinstance(self.world, ProcessWorld))
        self.step = 0
        self.epochs_done = 0
        """Whole epochs so far, of all phases."""
        self.within = 0
        """Steps so far in the epoch that goes on."""
        self.accounted = 0
        """Steps whose losses are in the sums: all of them, once the runtime has settled."""
        self.phases = 1
        """How often training goes through all its epochs: once, or once for every module (sequential)."""
        self.recorded = work.network
        """The modules whose sums are recorded."""
        self.guard = FiniteGuard(self.nodes.network, self.device)
        self.progress: dict[str, Any] = {"images": 0.0, "train_seconds": 0.0, "best": None, "last": None}
        if self.scorer.identity is not None:
            self.progress["scorer"] = self.scorer.identity

    def _equip(self, i: int, step: LocalStep) -> None:
        """Give a local step what the work asks for beside its optimizer."""
        if self.work.schedule is not None:
            self.schedules[i] = self.work.schedule(step.optimizer)
        if not self.work.every_epoch:
            step.schedule = self.schedules.get(i)
        if self.precision == "fp16":
            trained = next(iter(step.module.own_parameters().values()), None)
            step.scaler = torch.amp.GradScaler((self.device if trained is None else trained.device).type)
        if self.work.average:
            step.average = WeightAverage(step.module, self.work.average)

    # --- checkpoints -------------------------------------------------------------------------------------------

    def write_checkpoint(self) -> Path | None:
        """Write where training stands now; of several processes each writes its part. None where nothing is kept."""
        self._settle()
        self._check(self.guard.bad_loss() or self.guard.bad_weight(self.step))
        if self.kept is None:
            return None
        tensors = self.nodes.tensors() | self.sums.saved() | self.scorer.tensors()
        for i, step in self.nodes.steps.items() if self.work.optimizer else ():
            tensors |= step_state(step, self.schedules.get(i))
        position = {"step": self.step, "epochs_done": self.epochs_done, "within": self.within}
        progress = {**self.progress, **position, "digest": self._identity}
        found = checkpoints.Checkpoint(tensors, progress)
        if isinstance(self.world, Alone):
            return self.kept.write(found, self.step)
        part = self.world.part
        if part is not None:
            self.kept.write_part(found, self.step, part)
        self.world.sync()
        return self.kept.complete(self.step, self.world.parts) if self.world.leader else self.kept.folder

    def restore(self) -> None:
        """Go back to the newest whole checkpoint, or to the beginning where none was written."""
        assert self.folder is not None
        assert self.kept is not None
        path, found = None, None
        if self.world.leader:
            path, found, problems = self.kept.newest()
            for problem in problems:
                self.observer.on_warning(f"{problem}; using the one before it")
        name = self.world.share(path.name if path is not None else "")
        if name:
            path = self.kept.folder / name
            self._put_back(path, found or checkpoints.load(path))
        if self.world.leader:
            self.folder.history().rewind(self.step, self._identity)
            for problem in self.folder.rewind(self.step):
                self.observer.on_warning(problem)

    def _put_back(self, path: Path, found: checkpoints.Checkpoint) -> None:
        assert self.folder is not None
        self.folder.history().check(path, found.progress, self._identity)
        if found.progress.get("scorer") != self.scorer.identity:
            raise CheckpointError(
                f"checkpoint {path} was trained with another scorer than objective.modification names"
            )
        if self.world.leader and self.nodes.spread is None:
            checkpoints.load_network(self.network, found.tensors, path)
        self.scorer.load(found.tensors)
        self.nodes.load(found.tensors)
        for i, step in self.nodes.steps.items() if self.work.optimizer else ():
            load_step_state(step, self.schedules.get(i), found.tensors)
        own = {key: value for i in self.nodes.steps for key, value in self.nodes.own(i, found.tensors).items()}
        self.sums.load(own | {"sums/images": found.tensors["sums/images"]})
        self.progress = dict(found.progress)
        self.progress.pop("digest")
        self.step = self.accounted = self.progress.pop("step")
        self.epochs_done, self.within = self.progress.pop("epochs_done"), self.progress.pop("within")
        best = self.progress["best"]
        now_best = best and best["epoch"] == self.epochs_done and not self.within
        if now_best and self.config.checkpoint.keep_best and self.world.leader:
            self._mark_best(path)  # a kill may have come between the checkpoint and its copy

    @property
    def _identity(self) -> str:
        return self.work.identity or digest(self.config)

    def _mark_best(self, path: Path | None) -> None:
        if self.kept is not None and path is not None:
            self.kept.mark_best(path)

    # --- the loop ----------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return self.config.train.epochs * self.phases

    @property
    def phase_step(self) -> int:
        """Number of the step in its phase, from 0; it seeds dropout and sets the learning rate."""
        return self.step if self.phases == 1 else self.step % (self.known_steps * self.config.train.epochs)

    @property
    def known_steps(self) -> int:
        """Steps of an epoch, where that is known before it has ended."""
        assert self.steps_per_epoch is not None
        return self.steps_per_epoch

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
        processes = self._processes(*before)
        if not self.world.leader:
            return {}
        summary = summarise(self.config, self.work.source, self.work.network, self.progress, self.step)
        summary |= {"processes": processes} if processes else {}
        if self.folder is not None:
            earlier = self.folder.history().told()
            summary |= {"history": earlier} if earlier else {}
            self.folder.write_summary(summary)
        return summary

    def _processes(self, images: float, seconds: float) -> list[dict[str, Any]]:
        """On the leader of several processes, how each has fared since so many images and seconds."""
        if not isinstance(self.world, ProcessWorld) or not isinstance(self.runtime, DistributedRuntime):
            return []
        done = (self.progress["images"] - images) / self.config.mesh.data
        passed = self.progress["train_seconds"] - seconds
        row = {
            "process": self.world.rank,
            "nodes": self.world.names[self.world.rank],
            "waiting": self.runtime.waited / passed if passed else 0.0,
            "sent_bytes": self.runtime.sent_bytes,
            **memory(self.config, self.progress),
            "images_per_second": done / passed if passed else 0.0,
        }
        return [json.loads(text) for text in self.world.collect(json.dumps(row))]

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
        if self.phase_step:
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

    def _settle(self) -> None:
        """Wait until all batches so far have been trained on."""
        self._account(self.runtime.settle())

    def _account(self, trained: list[Trained]) -> None:
        """Add batches to the epoch's sums, and look whether their losses are finite."""
        for each in trained:
            self.sums.add(each.losses, each.labels, each.examples)
            self.accounted += 1
            self.guard.note(each.losses, self.accounted)
            if self.guard.is_due(self.accounted):
                self._check(self.guard.bad_loss())

    def _check(self, problem: str | None) -> None:
        if problem is not None:
            paths = self.kept.paths() if self.kept is not None else []
            kept = f"the last good checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"
            raise DivergedError(f"{problem} (epoch {self.epochs_done + 1}); {kept}")

    def _finish_epoch(self, epoch: int) -> None:
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
        every, last = self.config.train.evaluate_every, epoch % self.config.train.epochs == 0
        better = False
        if self.work.evaluate is not None and (last or (every and epoch % every == 0)):
            with self.averaged():
                better = self._evaluate(epoch)
        if self.work.every_epoch:
            self._step_schedules()
        path = self.write_checkpoint()
        if better and self.config.checkpoint.keep_best:
            self._mark_best(path)

    def _step_schedules(self) -> None:
        """After an epoch; a schedule that follows a measure is given the last stage's validation loss."""
        for schedule in self.schedules.values():
            if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                if self.progress["last"] is None:
                    raise UsageError("schedule: ReduceLROnPlateau needs validation batches: fit(..., validation=...)")
                schedule.step(self.progress["last"]["nodes"][-1]["loss"])
            else:
                schedule.step()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """While it lasts the weights are their moving averages, where these are kept."""
        averages = [step.average for step in self.nodes.steps.values() if step.average is not None]
        for average in averages:
            average.swap()
        try:
            yield
        finally:
            for average in averages:
                average.swap()

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
