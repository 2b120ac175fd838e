"""Asynchronous training: starts a process for every module, and again when one dies, and keeps the run's record."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from locallearn.config import RunConfig, digest
from locallearn.core.assembly import build_network
from locallearn.data.datasets import Dataset, ImageSet, ImagesOnDisk
from locallearn.data.store import Store
from locallearn.errors import CheckpointError, InterruptedRunError, LocalLearnError
from locallearn.files import short_temporary_folder
from locallearn.training import checkpoint as checkpoints
from locallearn.training import provenance, record
from locallearn.training.async_job import AsyncJob, module_folder
from locallearn.training.async_process import ModuleProcess
from locallearn.training.evaluate import Evaluation, evaluate, module_label
from locallearn.training.observer import Observer
from locallearn.training.record import RunFolder
from locallearn.training.setup import image_shape, store_of
from locallearn.training.stop import StopRequest
from locallearn.training.summary import summarise

_LOOK_SECONDS = 0.2
"""The launcher looks for a request to stop this often [s]."""


class AsynchronousTraining:
    """One training with ``runtime = "asynchronous"``; the processes do the work.

    Args:
        config: a resolved configuration.
        dataset: its data.
        folder: the run's folder.
        observer: is told how it goes.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, folder: RunFolder, observer: Observer) -> None:
        self.config, self.folder, self.observer = config, folder, observer
        held_out = None if dataset.validation is None else _shared(dataset.validation)
        self.dataset = dataclasses.replace(
            dataset, train=_shared(dataset.train), test=_shared(dataset.test), validation=held_out
        )
        assert config.train.device is not None
        assert config.train.precision is not None
        self.device, self.precision = torch.device(config.train.device), config.train.precision
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        self.network = build_network(config, image_shape(dataset)).to(self.device)
        self.network.lay_out(bool(config.train.channels_last))
        self.names = [module.name for module in self.network]
        self.store = self._store(self.dataset.train)
        self.steps_per_epoch = self.store.steps(config.train.batch_size)
        self.kept = checkpoints.CheckpointFolder(folder.checkpoints, config.checkpoint.keep_last)
        self.stop = StopRequest()
        self.processes: list[ModuleProcess] = []
        self.steps = [0] * len(self.names)
        self.clocks = [0] * len(self.names)
        self.finished: set[int] = set()
        self.away: set[int] = set()
        self.restarts = [0] * len(self.names)
        self.epoch = 0
        """Epochs that all modules have done and the record holds."""
        self._epochs: dict[tuple[int, int], dict[str, Any]] = {}
        self._peaks = [0] * len(self.names)
        self.progress: dict[str, Any] = {"images": 0.0, "train_seconds": 0.0, "best": None, "last": None}
        self.progress["commits"] = []

    def _store(self, images: ImageSet | ImagesOnDisk) -> Store:
        return store_of(self.config, self.dataset, images, self.device)

    def restore(self) -> None:
        """Read from the record what was done; every module's process goes on from its own newest checkpoint."""
        for problem in self.folder.rewind(sys.maxsize):  # drops what is damaged
            self.observer.on_warning(problem)
        for event in self.folder.events():
            try:
                self._take_up(event)
            except (KeyError, TypeError) as error:  # of another shape than this package writes
                kind = event["event"]
                self.observer.on_warning(f"{self.folder.path}: a damaged {kind} event is not used ({error!r})")

    def _take_up(self, event: dict[str, Any]) -> None:
        if event["event"] == "train":
            self._count(event)
        elif event["event"] == "evaluate":
            self._remember(event)
        elif event["event"] in ("start", "resume"):
            self._note_commit(event["commit"])

    # --- the run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary."""
        total = self.config.train.epochs
        self.observer.on_start(self.config, self.steps_per_epoch, total, self.epoch * self.steps_per_epoch)
        nodes = [{"module": module_label(name), "group": group} for name, group in self.network.nodes]
        kind = {"event": "resume"} if self._started() else {"event": "start", "nodes": nodes}
        self._record({**kind, "time": record.now(), "commit": provenance.commit()})
        self._note_commit(provenance.commit())
        self._sockets = Path(
            tempfile.mkdtemp(prefix="locallearn-", dir=short_temporary_folder())
        )  # for this user's eyes only
        try:
            with self.stop:
                self.processes = [self._start(index) for index in range(len(self.names))]
                while len(self.finished) < len(self.names) or self.epoch < total:
                    self._watch()
        finally:
            for process in self.processes:
                process.end()
            for process in self.processes:
                process.join()
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._evaluate()
        steps = self.epoch * self.steps_per_epoch
        summary = summarise(self.config, self.dataset.source, self.network, self.progress, steps)
        summary["memory"]["peak_rss_bytes"] = max(self._peaks)
        self.folder.write_summary(summary)
        return summary

    def _note_commit(self, commit: str | None) -> None:
        if commit not in self.progress["commits"]:
            self.progress["commits"].append(commit)

    def _started(self) -> bool:
        return bool(self.epoch) or any(module_folder(self.folder.path, name).exists() for name in self.names)

    def _start(self, index: int) -> ModuleProcess:
        return ModuleProcess(AsyncJob(self.config, self.dataset, self.folder.path, self._sockets, index))

    def _watch(self) -> None:
        """Hear what the processes tell, start again those that died, and stop where that was asked for."""
        wait([process.pipe for process in self.processes] + [p.sentinel for p in self.processes], _LOOK_SECONDS)
        if self.stop.requested:
            raise InterruptedRunError(
                f"interrupted in epoch {self.epoch + 1}; continue with: locallearn train --resume {self.folder.path}"
            )
        alive = [process.alive for process in self.processes]  # asked before their last words are heard
        before = set(self.away)
        for index, process in enumerate(self.processes):
            for message in process.messages():
                self._hear(index, message)
        for index in sorted(before - self.away):  # all were heard, so that the record knows how far every module is
            self._tell("returned", index)
        for index, lives in enumerate(alive):
            if not lives and not self.stop.requested:
                self._restart(index)
        while all((index, self.epoch + 1) in self._epochs for index in range(len(self.names))):
            self._finish_epoch()

    def _restart(self, index: int) -> None:
        self.processes[index].join()
        self.restarts[index] += 1
        if self.restarts[index] > self.config.asynchronous.restarts:
            times = f"{self.restarts[index]} times; asynchronous.restarts is {self.config.asynchronous.restarts}"
            raise LocalLearnError(f"the process of module {self.names[index]} died {times}")
        self._tell("lost", index)
        self.away.add(index)
        self.finished.discard(index)
        self.processes[index] = self._start(index)

    def _hear(self, index: int, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "step":
            self.steps[index], self.clocks[index] = message["step"], message["clock"]
            self.away.discard(index)
            self.observer.on_step(min(self.clocks))
        elif kind == "epoch" and message["epoch"] > self.epoch:
            self._epochs[index, message["epoch"]] = message
        elif kind == "finished":
            self.finished.add(index)
            self._peaks[index] = message["peak_rss_bytes"]
        elif kind == "warning":
            self.observer.on_warning(message["text"])

    def _tell(self, event: str, index: int) -> None:
        """Record that a module's process died or is back, and how far every module was."""
        steps = dict(zip(self.names, self.steps, strict=True))
        self._record({"event": event, "time": record.now(), "module": self.names[index], "steps": steps})

    # --- the record --------------------------------------------------------------------------------------------

    def _finish_epoch(self) -> None:
        """Record an epoch that all modules have done, as slow as the slowest of them was."""
        told = [self._epochs.pop((index, self.epoch + 1)) for index in range(len(self.names))]
        nodes = [node for report in told for node in report["nodes"]]
        seconds = max(node["seconds"] for node in nodes)
        event = {
            "event": "train",
            "epoch": self.epoch + 1,
            "learning_rate": told[0]["learning_rate"],
            "seconds": seconds,
            "images": told[0]["images"],
            "images_per_second": told[0]["images"] / seconds,
            "activation_bytes": max(report["activation_bytes"] for report in told),
            "nodes": nodes,
        }
        self._count(event)
        self._record(event)
        every = self.config.train.evaluate_every
        if every and self.epoch % every == 0 and self.epoch < self.config.train.epochs:
            self._evaluate()

    def _count(self, event: dict[str, Any]) -> None:
        images, seconds, activation_bytes = event["images"], event["seconds"], event["activation_bytes"]
        self.epoch = event["epoch"]
        self.progress["images"] += images
        self.progress["train_seconds"] += seconds
        self.progress["activation_bytes"] = activation_bytes

    def _evaluate(self) -> None:
        """Evaluate the modules as they were saved last, and keep them as one checkpoint of the whole network."""
        tensors: dict[str, Tensor] = {}
        for index, name in enumerate(self.names):
            for key, value in self._saved(name).tensors.items():
                if key.startswith("network/"):
                    tensors[f"network/stages.{index}.{key.removeprefix('network/')}"] = value
        step = self.epoch * self.steps_per_epoch
        path = self.kept.write(checkpoints.Checkpoint(tensors, {"step": step, "digest": digest(self.config)}), step)
        checkpoints.load_network(self.network, tensors, path)
        found = self._evaluated(self.dataset.test)
        event: dict[str, Any] = {
            "epoch": self.epoch,
            "last_layer": found.last_layer,
            "ensemble": found.ensemble,
            "nodes": found.nodes,
        }
        if self.dataset.validation is not None:
            choosing = self._evaluated(self.dataset.validation)
            event["validation"] = {**choosing.accuracies, "images": choosing.images}
        self._record({"event": "evaluate", **event})
        if self._remember(event) and self.config.checkpoint.keep_best:
            self.kept.mark_best(path)

    def _evaluated(self, images: ImageSet | ImagesOnDisk) -> Evaluation:
        batches = self._store(images).ordered(self.config.train.evaluate_batch_size)
        return evaluate(self.network, batches, self.precision)

    def _saved(self, name: str) -> checkpoints.Checkpoint:
        """The newest checkpoint of a module, whose process may be writing the next one."""
        folder = module_folder(self.folder.path, name)
        _, found, _ = checkpoints.CheckpointFolder(folder, self.config.checkpoint.keep_last).newest()
        if found is None:
            raise CheckpointError(f"no checkpoint in {folder}")
        return found

    def _remember(self, event: dict[str, Any]) -> bool:
        """Note an evaluation, and tell whether the last layer was never better."""
        found = {key: event[key] for key in ("epoch", "last_layer", "ensemble", "nodes")}
        if "validation" in event:
            found["validation"] = event["validation"]
        best = self.progress["best"]
        better = best is None or _choosing(found) > _choosing(best)
        self.progress["last"], self.progress["best"] = found, found if better else best
        return better

    def _record(self, event: dict[str, Any]) -> None:
        event = {**event, "step": self.epoch * self.steps_per_epoch}
        self.folder.append(event)
        self.observer.on_event(event)


def _choosing(evaluation: dict[str, Any]) -> float:
    """The accuracy that the best checkpoint is chosen by."""
    return evaluation.get("validation", evaluation)["last_layer"]


def _shared(images: ImageSet | ImagesOnDisk) -> ImageSet | ImagesOnDisk:
    """The images in memory that all processes see; those on disk are in the memory of the system that all share."""
    if not isinstance(images, ImageSet):
        return images
    pixels = images.images.contiguous(memory_format=torch.channels_last)  # as a store keeps them, without a copy
    return ImageSet(pixels.share_memory_(), images.labels.share_memory_())
