"""One module's process in asynchronous training: it trains at its own pace, then serves until it is told to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from locallearn.config import digest
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep, autocast
from locallearn.core.network import LocalNetwork
from locallearn.costs.memory import ActivationMeter
from locallearn.data.store import Batch
from locallearn.errors import CheckpointError, DivergedError
from locallearn.runtime.boundary import BoundaryReceiver, BoundarySender, Message
from locallearn.runtime.replay import ReplayBuffer, Sample
from locallearn.training import checkpoint as checkpoints
from locallearn.training import provenance
from locallearn.training.async_input import WAIT_SECONDS, ModuleInput
from locallearn.training.async_job import AsyncJob, module_folder
from locallearn.training.async_pace import new_pace, note, told
from locallearn.training.guard import FiniteGuard
from locallearn.training.initial import start_from
from locallearn.training.optim import build_optimizer, rates
from locallearn.training.placement import feature_shapes
from locallearn.training.setup import image_shape, store_of
from locallearn.training.stop import StopRequest
from locallearn.training.sums import Sums

Report = Callable[[dict[str, Any]], None]
"""Tells the launcher something, in plain JSON values; ``kind`` says what."""

_TELL_SECONDS = 0.1
"""A process tells its step this often at most, so that the launcher need not be quick to read [s]."""


_PROGRESS = {"digest": str, "step": int, "clock": int, "epochs": list, "pace": dict}


def _check_progress(path: Path, progress: dict[str, Any]) -> None:
    """Refuse a checkpoint that another kind of run wrote, or something else than a run."""
    for key, kind in _PROGRESS.items():
        if not isinstance(progress.get(key), kind):
            raise CheckpointError(f"checkpoint {path} is damaged: it says nothing of {key}")


class ModuleTraining:
    """One module, its checkpoints and its two boundaries.

    Args:
        job: what to train.
        report: tells the launcher.
        stop: asks for an end.
    """

    def __init__(self, job: AsyncJob, report: Report, stop: StopRequest) -> None:
        self.config, self.report, self.stop = job.config, report, stop
        train = job.config.train
        assert train.device is not None
        assert train.precision is not None
        self.device = torch.device(train.device)
        image = self._image = image_shape(job.dataset)
        network = build_network(job.config, image)
        self.index, self.module = job.index, list(network)[job.index].to(self.device)
        self.module.lay_out(bool(train.channels_last))
        optimizer = build_optimizer(job.config.optimizer, self.module.parameters(), self.module.groups)
        self.local = LocalStep(
            self.module, optimizer, train.precision, job.config.optimizer.clip_norm, job.config.seed
        )
        only = LocalNetwork([self.module])
        self.sums, self.guard = Sums(only, self.device), FiniteGuard(only, self.device)
        self.store = store_of(job.config, job.dataset, job.dataset.train, self.device, job.config.augment)
        self.steps_per_epoch = self.store.steps(train.batch_size)
        self.rates = rates(job.config, self.steps_per_epoch)
        folder = module_folder(job.run, self.module.name)
        self.kept = checkpoints.CheckpointFolder(folder, job.config.checkpoint.keep_last)
        self.step = 0
        self._told = -math.inf
        self.progress: dict[str, Any] = {"clock": 0, "epochs": [], "pace": new_pace()}
        self._connect(job, network, image)

    def _connect(self, job: AsyncJob, network: LocalNetwork, image: ImageShape) -> None:
        """Listen for the module before, and reach for the next one."""
        names = [module.name for module in network]
        settings = job.config.asynchronous
        self.buffer: ReplayBuffer[Message] = ReplayBuffer(settings.buffer_size, settings.max_reuse)
        self.receiver: BoundaryReceiver | None = None
        self.sender: BoundarySender | None = None
        link = f"modules {names[max(job.index - 1, 0)]} and {self.module.name}"
        if job.index:
            path = job.sockets / self.module.name
            shape = feature_shapes(network, image)[job.index - 1]
            self.receiver = BoundaryReceiver(path, self.buffer, shape, f"between {link}")
        if job.index + 1 < len(names):
            self.sender = BoundarySender(job.sockets / names[job.index + 1])
        self.input = ModuleInput(job.config, self.store, self.device, self.receiver, link, self.stop)

    # --- checkpoints -------------------------------------------------------------------------------------------

    def write_checkpoint(self) -> None:
        """Write where this module stands."""
        self._check(self.guard.bad_loss() or self.guard.bad_weight(self.step))
        tensors = {f"network/{key}": value for key, value in self.module.state_dict().items()}
        tensors |= self.sums.saved()
        tensors |= checkpoints.optimizer_tensors(self.module.name, self.module, self.local.optimizer)
        progress = {**self.progress, "step": self.step, "digest": digest(self.config)}
        self.kept.write(checkpoints.Checkpoint(tensors, progress), self.step)

    def restore(self) -> None:
        """Go back to the newest whole checkpoint, if there is one, and tell again which epochs are done."""
        path, found, problems = self.kept.newest()
        for problem in problems:
            self.report({"kind": "warning", "text": f"{problem}; using the one before it"})
        if found is None or path is None:
            self._begin()
            return
        _check_progress(path, found.progress)
        if found.progress["digest"] != digest(self.config):
            raise CheckpointError(f"checkpoint {path} belongs to another configuration than the run's config.toml")
        checkpoints.load_network(self.module, found.tensors, path)
        checkpoints.load_optimizer(self.module.name, self.module, self.local.optimizer, found.tensors)
        self.sums.load(found.tensors)
        self.step = found.progress["step"]
        self.progress = {key: value for key, value in found.progress.items() if key not in ("step", "digest")}
        for epoch in self.progress["epochs"]:
            self.report(epoch)

    def _begin(self) -> None:
        """Take the weights that the run begins with, where they are not random."""
        if self.config.init_from is not None:
            whole = build_network(self.config, self._image)
            if self.module.name in start_from(whole, self.config):
                self.report({"kind": "warning", "text": f"the head of module {self.module.name} starts random"})
            self.module.load_weights(list(whole)[self.index].weights())

    # --- training ----------------------------------------------------------------------------------------------

    @property
    def clock(self) -> int:
        """How far training is [steps]: its own steps, but no further than the module before.

        So a module that is faster than the one before it, and uses batches again, does not end its training and its
        learning rate on features that the module before has long outgrown.
        """
        return self.progress["clock"]

    @property
    def _end(self) -> int:
        return self.steps_per_epoch * self.config.train.epochs

    def run(self) -> None:
        """Train to the end, then serve the next module until the launcher ends the process."""
        batches = self.input.batches(self.step)
        while self.clock < self._end:
            begin = time.perf_counter()
            found = next(batches)
            self.progress["pace"]["waited"] += self.input.waited
            if found is None:
                self.write_checkpoint()
                return
            done = self.clock // self.steps_per_epoch
            self._step(*found)
            self.progress["pace"]["seconds"] += time.perf_counter() - begin
            self._after_step(range(done + 1, self.clock // self.steps_per_epoch + 1))
        self.report({"kind": "finished", "peak_rss_bytes": provenance.peak_rss_bytes()})
        self._serve()

    def _step(self, features: Tensor, batch: Batch, epoch: int, sample: Sample[Message] | None) -> None:
        """Train on one batch, hand its features on, and move the clock."""
        begin = time.perf_counter()
        rate = self.rates(self.clock)
        if self.step:
            out, loss = self.local(features, batch, self.step, rate)
        else:
            with ActivationMeter(self.module.parameters()) as meter:
                out, loss = self.local(features, batch, self.step, rate)
            self.progress["activation_bytes"] = meter.peak_bytes
        self.sums.add([loss], batch.labels, batch.examples)
        self.step += 1
        before = self.step if self.receiver is None else self.receiver.clock
        self.progress["clock"] = max(self.clock, min(self.step, before, self._end))
        if self.sender is not None:
            self.sender.put(Message(out, epoch, batch.step, self.clock, final=False))
        self.guard.note([loss], self.step)
        if self.guard.is_due(self.step):
            self._check(self.guard.bad_loss())
        note(self.progress["pace"], sample)
        settings = self.config.asynchronous
        if settings.slow_module == self.index + 1:
            time.sleep((settings.slow_factor - 1) * (time.perf_counter() - begin))

    def _after_step(self, epochs: range) -> None:
        """Tell the launcher, and write a checkpoint where one is due; ``epochs`` are those that the step ended."""
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._told = time.monotonic()
            self.report({"kind": "step", "step": self.step, "clock": self.clock})
        every = self.config.checkpoint.every_steps
        if epochs:
            report = self._epoch_report()
            new = [{**report, "epoch": epoch} for epoch in epochs]
            self.progress["epochs"] += new
            self.progress["pace"] = new_pace()
            self.sums.reset()
            self.write_checkpoint()
            for each in new:
                self.report(each)
        elif every and self.step % every == 0:
            self.write_checkpoint()

    def _epoch_report(self) -> dict[str, Any]:
        pace = told(self.progress["pace"], self.buffer.dropped)
        self.buffer.dropped = 0
        return {
            "kind": "epoch",
            "learning_rate": float(self.local.optimizer.param_groups[0]["lr"]),
            "images": self.sums.tensors["images"].item(),
            "activation_bytes": self.progress["activation_bytes"],
            "nodes": [{**node, **pace} for node in self.sums.nodes()],
        }

    def _check(self, problem: str | None) -> None:
        if problem is not None:
            raise DivergedError(f"{problem} (epoch {1 + (self.step - 1) // self.steps_per_epoch})")

    @torch.no_grad()
    def _serve(self) -> None:
        """Give the next module features in eval mode, of each batch once, as fast as it uses them."""
        self.module.eval()
        while self.sender is None and not self.stop.requested:
            time.sleep(WAIT_SECONDS)
        for found in self.input.batches(self.step, fresh=True):
            if found is None or self.sender is None:
                return
            with autocast(self.device, self.local.precision):
                out = self.module(found.features)
            while not self.sender.wait_for_room(WAIT_SECONDS):
                if self.stop.requested:
                    return
            self.sender.put(Message(out, found.epoch, found.batch.step, self.clock, final=True))
