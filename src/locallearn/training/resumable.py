"""A training between two steps: what it has, how far it is, and how both are saved and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from locallearn.config import RunConfig, digest
from locallearn.errors import CheckpointError, ConfigError, DivergedError
from locallearn.runtime.inline import Runtime, Trained
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training import checkpoint as checkpoints
from locallearn.training.guard import FiniteGuard
from locallearn.training.made_with import made_with
from locallearn.training.observer import Observer
from locallearn.training.own_nodes import Nodes
from locallearn.training.record import RunFolder
from locallearn.training.step_state import check_step_state, equip, load_step_state, step_state
from locallearn.training.sums import Sums
from locallearn.training.work import Work


class Resumable:
    """What a training has and how far it is, which checkpoints hold.

    Args:
        config: a resolved configuration.
        work: what is trained, and on what.
        folder: the run's folder; None keeps nothing.
        observer: is told how it goes.
        world: the processes; by default this one alone.
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
            schedule = equip(step, work, self.precision, self.device)
            if schedule is not None:
                self.schedules[i] = schedule
        self.made = {i: made_with(step, self.schedules.get(i), work) for i, step in self.nodes.steps.items()}
        self.scorer = work.scorer
        self.steps_per_epoch = work.train.steps(train.batch_size)
        smallest = work.train.smallest(train.batch_size)
        if smallest and config.mesh.data > smallest:
            raise ConfigError("mesh.data", config.mesh.data, f"at most {smallest}, the images of the last batch")
        self.kept = None if folder is None else self._kept_in(folder)
        self.sums = Sums(self.nodes.network, self.device)
        self.step = 0
        self.epochs_done = 0
        """Whole epochs so far, of all phases."""
        self.within = 0
        """Steps so far in the epoch that goes on."""
        self.accounted = 0
        """Steps whose losses are in the sums: all of them, once the runtime has settled."""
        self.guard = FiniteGuard(self.nodes.network, self.device)
        self.progress: dict[str, Any] = {"images": 0.0, "train_seconds": 0.0, "best": None, "last": None}
        if self.scorer.identity is not None:
            self.progress["scorer"] = self.scorer.identity

    def _kept_in(self, folder: RunFolder) -> checkpoints.CheckpointFolder:
        keep = self.config.checkpoint
        keep_steps = keep.keep_epochs * (self.steps_per_epoch or 0)
        return checkpoints.CheckpointFolder(folder.checkpoints, keep.keep_last, keep_steps)

    @property
    def known_steps(self) -> int:
        """Steps of an epoch, where that is known before it has ended."""
        assert self.steps_per_epoch is not None
        return self.steps_per_epoch

    def write_checkpoint(self) -> Path | None:
        """Write where training stands now; of several processes each writes its part. None where nothing is kept."""
        self._settle()
        self._check(self.guard.bad_loss() or self.guard.bad_weight(self.step))
        if self.kept is None:
            return None
        tensors = self.nodes.tensors() | self.sums.saved() | self.scorer.tensors()
        for i, step in self.nodes.steps.items() if self.work.optimizer else ():
            tensors |= step_state(step, self.schedules.get(i), self.made[i])
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
        for i, step in self.nodes.steps.items() if self.work.optimizer else ():
            check_step_state(step.module.name, self.made[i], found.tensors, self.folder.path)
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
