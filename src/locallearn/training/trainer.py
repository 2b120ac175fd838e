"""``Trainer``: any local network on any loader, with everything that a run has."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from locallearn.arguments import checked_on_failure
from locallearn.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ThreadsConfig,
    TrainConfig,
    to_dict,
    to_toml,
)
from locallearn.config.checks import check, choice, is_real, non_negative, positive_int
from locallearn.core.network import LocalNetwork, OptimizerFactory
from locallearn.core.placed import devices_of
from locallearn.core.split import adamw
from locallearn.core.split_network import SplitNetwork
from locallearn.data.store import Batch
from locallearn.errors import ConfigError, UsageError
from locallearn.files import short_temporary_folder, write_atomically
from locallearn.nn.features import prediction
from locallearn.runtime.world import Alone, ProcessWorld, process_world
from locallearn.training.checkpoint import load_network
from locallearn.training.described import described, identity_of, mesh_of
from locallearn.training.evaluate import Evaluation, evaluate
from locallearn.training.lines import lines_if_watched
from locallearn.training.loaders import LoaderSource, read_network
from locallearn.training.loggers import Loggers
from locallearn.training.loop import Loop
from locallearn.training.observer import TOLD, Observer, Quiet
from locallearn.training.record import SPLIT, RunFolder
from locallearn.training.shared_folder import check_shared
from locallearn.training.stage_features import checked_stage, stage_places, stage_reader
from locallearn.training.work import ScheduleFactory, Work

RUNTIMES = ("inline", "threads", "distributed")
PRECISIONS = ("fp32", "bf16", "fp16")


def _is_device(value: object) -> bool:
    try:
        return isinstance(torch.device(value), torch.device)  # type: ignore[call-overload]
    except (TypeError, RuntimeError):
        return False


class Trainer:
    """Trains a local network, from ``ll.split`` or ``ll.build_network``, on any loader.

    >>> trainer = ll.Trainer(network, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), run="runs/mine")
    ... # doctest: +SKIP
    >>> summary = trainer.fit(loader, epochs=3, validation=validation_loader)  # doctest: +SKIP

    A run folder holds the configuration, a record of every epoch, checkpoints and a summary, as a run of the command
    line does: ``locallearn report`` reads it. Calling ``fit`` again with the same run continues it where it
    stopped, in the middle of an epoch too, and gives what the uninterrupted training gives, bit for bit on the same
    machine. What is drawn in a step (dropout, stochastic depth) is seeded by (seed, stage, step); what the loader
    draws by (seed, epoch).

    Args:
        network: the network; it is trained in place.
        optimizer: makes the optimizer of one stage from the parameters that it trains: any of torch's, with parameter
            groups if you like. By default AdamW with a rate of 1e-3.
        schedule: makes a scheduler of torch for the optimizer of one stage. None leaves rates alone.
        schedule_unit: when schedulers step: after every update (``"step"``) or every epoch (``"epoch"``, which
            ``ReduceLROnPlateau`` needs; it follows the validation loss of the last stage).
        runtime: ``"inline"`` (stages one after the other) or ``"threads"`` (several at once on the threads of a CPU,
            with the same weights bit for bit), or ``"distributed"`` in a script that torchrun starts: the stages are
            spread over its processes, with the same weights bit for bit in fp32 on CPUs. Every process needs the same
            script and loaders; no process holds other stages' weights while it trains. The first one writes the run,
            and has the whole trained network when ``fit`` has returned.
        run: folder of the run; None keeps nothing.
        precision: ``"fp32"``, or autocast to ``"bf16"`` or ``"fp16"``, the latter with a loss scaler a stage.
        clip_norm: largest gradient norm of a node; 0 means no clipping.
        accumulate: batches whose mean gradient an update follows.
        average: decay of an exponential moving average of the weights, which then is what is evaluated and predicted
            with; 0 keeps none.
        seed: of what is drawn.
        device: where to train; by default where the network is.
        devices: where to train the stages of a user's own model, for several GPUs in this process: at most as many as
            stages, each with some stages in a row by their multiply-accumulates. With runtime ``inline`` stages
            overlap in the GPUs' own queues. Between trainings the network is whole, where it was before.
        replicas: with runtime ``distributed``, how many processes have each stage, with as many parts of every batch;
            the others are spread over the stages. Losses and batch norms are those of the whole batch, and so are the
            weights up to rounding; only what a step draws (dropout) is each replica's own.
        threads: CPU threads, for runtime ``threads`` shared among stages; by default torch's.
        checkpoint_every: steps between checkpoints inside an epoch; 0 writes one an epoch.
        keep_last: newest checkpoints to keep.
        loggers: names of registered loggers (``"tensorboard"``, ``"wandb"``...) that are told what is recorded, as
            the run's own ``metrics.jsonl`` is; they need a run.
        observer: is told how it goes; by default standard error has a line an epoch, on a terminal or in a notebook.

    Raises:
        ConfigError: a wrong argument; the message names it.
    """

    @checked_on_failure
    def __init__(
        self,
        network: LocalNetwork,
        *,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
        schedule_unit: Literal["step", "epoch"] = "step",
        runtime: str = "inline",
        run: str | Path | None = None,
        precision: str = "fp32",
        clip_norm: float | None = None,
        accumulate: int = 1,
        average: float = 0.0,
        seed: int = 0,
        device: str | torch.device | None = None,
        devices: Sequence[str | torch.device] | None = None,
        replicas: int = 1,
        threads: int | None = None,
        checkpoint_every: int = 0,
        keep_last: int = 2,
        loggers: Sequence[str] = (),
        observer: Observer | None = None,
    ) -> None:
        if not isinstance(network, LocalNetwork):
            raise ConfigError("network", type(network).__name__, "a network from ll.split or ll.build_network")
        for name, value in (("optimizer", optimizer), ("schedule", schedule)):
            check(name, value, callable, f"a function that makes one stage's {name}")
        choice("schedule_unit", schedule_unit, "step", "epoch")
        choice("runtime", runtime, *RUNTIMES)
        choice("precision", precision, *PRECISIONS)
        positive_int("accumulate", accumulate)
        positive_int("threads", threads)
        mesh = mesh_of(network, runtime, replicas)
        non_negative("clip_norm", clip_norm)
        check("average", average, lambda v: is_real(v) and 0 <= v < 1, "a number in [0, 1)")
        check("device", device, _is_device, "cpu, cuda[:N] or another device of torch's")
        check(
            "observer",
            observer,
            lambda v: all(hasattr(v, name) for name in TOLD),
            f"an object with {', '.join(TOLD)}",
        )
        check("run", run, lambda v: isinstance(v, (str, Path)), "a folder, or None to keep nothing")
        if isinstance(loggers, str) or (loggers and run is None):
            raise ConfigError("loggers", loggers, "a sequence of names, with a run")
        self.loggers = tuple(loggers)
        self.network = network
        self.optimizer: OptimizerFactory = optimizer or adamw
        self.schedule, self.schedule_unit = schedule, schedule_unit
        self.accumulate, self.average = accumulate, average
        self.folder = None if run is None else RunFolder(Path(run))
        self.observer = observer or lines_if_watched()
        parameter = next(network.parameters())
        self.device = torch.device(device) if device is not None else parameter.device
        self.devices, self._home = devices, self.device
        if devices is not None:
            self.device = self._first_device(devices, device, runtime)
        if runtime == "threads" and self.device.type != "cpu":
            raise ConfigError("runtime", runtime, f"inline on {self.device}; threads share the cores of a CPU")
        clip = network.clip_norm if clip_norm is None else clip_norm
        self.config = RunConfig(
            method=SPLIT,
            **described(network),
            seed=seed,
            runtime=runtime,  # type: ignore[arg-type]
            data=DataConfig(name="loader"),
            optimizer=OptimizerConfig(clip_norm=clip),
            train=TrainConfig(
                precision=precision,  # type: ignore[arg-type]
                device=str(self.device),
                channels_last=False,
                threads=threads,
            ),
            threads=ThreadsConfig(),
            mesh=mesh,
            checkpoint=CheckpointConfig(every_steps=checkpoint_every, keep_last=keep_last),
        )
        self.precision = precision
        self._loop: Loop | None = None
        self._averages: dict[str, Tensor] = {}
        """Of all stages, where others train some of them."""

    @checked_on_failure
    def fit(
        self, loader: Iterable[Any], epochs: int = 1, validation: Iterable[Any] | None = None, evaluate_every: int = 1
    ) -> dict[str, Any]:
        """Train for so many epochs, or what is left of them where the run has begun.

        Args:
            loader: batches as ``LocalNetwork.step`` takes them, with examples on the first dimension, in every
                epoch again: a ``DataLoader``, a list, or any other iterable.
            epochs: of the whole run; a larger number than before continues a finished run.
            validation: batches to evaluate on; the best checkpoint is chosen by them.
            evaluate_every: epochs between evaluations; the last one is always evaluated.

        Returns:
            The summary, as in the run's ``summary.json``.

        Raises:
            UsageError: the loader or a batch does not fit, or the folder holds something else.
            DivergedError: a loss became NaN or infinite; the last good checkpoint is kept.
            InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint is written.
        """
        positive_int("epochs", epochs)
        positive_int("evaluate_every", evaluate_every)
        train = dataclasses.replace(self.config.train, epochs=epochs, evaluate_every=evaluate_every)
        config = dataclasses.replace(self.config, train=train)
        if getattr(loader, "num_workers", 0) or getattr(validation, "num_workers", 0):
            short_temporary_folder()
        source = self._source(loader)
        again = None if validation is None else self._source(validation)
        where = "this Trainer again" if self.folder is None else f"a Trainer with run={str(self.folder.path)!r}"
        work = Work(
            self.network,
            source,
            None if again is None else lambda network: self._evaluate(network, again),
            source=type(loader).__name__,
            optimizer=self.optimizer,
            schedule=self.schedule,
            every_epoch=self.schedule_unit == "epoch",
            accumulate=self.accumulate,
            average=self.average,
            identity=identity_of(config),
            resume=f"continue with fit of {where}",
        )
        before = torch.get_num_threads()
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        try:
            self._prepare()
            return self._fit(config, work)
        finally:
            torch.set_num_threads(before)
            if isinstance(self.network, SplitNetwork) and self.network.placed:
                self.network.gather(self._home)

    def _first_device(self, devices: Sequence[Any], device: Any, runtime: str) -> torch.device:
        """Where batches go and losses are looked at, with several devices."""
        if not isinstance(self.network, SplitNetwork):
            raise ConfigError("devices", devices, "None, but for a network of ll.split")
        if device is not None or runtime == "distributed":
            raise ConfigError("devices", devices, "None with device=, or with runtime='distributed'")
        return devices_of(self.network.pieces, devices)[0]

    def _prepare(self) -> None:
        """Put the network where it trains."""
        self.network.train()
        if self.devices is not None and isinstance(self.network, SplitNetwork):
            self.network.place(self.devices)
        else:
            self.network.to(self.device)

    def _fit(self, config: RunConfig, work: Work) -> dict[str, Any]:
        distributed = config.runtime == "distributed"
        if distributed and work.train.steps(0) is None:
            raise UsageError(f"loader: {work.source} has no length, which processes need; expected one with len()")
        if config.mesh.data > 1 and isinstance(self.network, SplitNetwork):
            self.network.replicate(config.mesh.data, next(iter(work.train.epoch(0, 0))))
        with process_world(config, self.device) if distributed else contextlib.nullcontext(Alone()) as world:
            summary = self._fit_in(world, config, work)
            if isinstance(world, ProcessWorld) and self._loop is not None:
                weights = world.whole(self._loop.nodes.weights())
                if self.average:
                    with self._loop.nodes.averaged():
                        self._averages = world.whole(self._loop.nodes.weights())
                if world.leader and isinstance(self.network, SplitNetwork):
                    self.network.take_back()
                    load_network(self.network, weights, Path("of all processes"))
            return summary

    def _fit_in(self, world: Alone | ProcessWorld, config: RunConfig, work: Work) -> dict[str, Any]:
        observer = self.observer if world.leader else Quiet()
        if self.folder is None:
            self._loop = Loop(config, work, None, observer, world)
            return self._loop.run()
        begun = (self.folder.path / "config.toml").is_file() if world.leader else False
        begun = bool(world.share("begun" if begun else ""))
        if begun and world.leader:
            self._check_same(self.folder.config(), config)
        elif world.leader:
            self.folder.check_free(overwrite=False)
        self._loop = Loop(config, work, self.folder, observer, world)
        with self._written(world, config, begun):
            if begun:
                self._loop.restore()
                summary = self.folder.usable_summary(observer.on_warning)
                if summary is not None and self._loop.epochs_done >= self._loop.epochs:
                    return summary if world.leader else {}
                if world.leader:
                    write_atomically(self.folder.path / "config.toml", to_toml(config))
            world.sync()
            return self._loop.run()

    @contextlib.contextmanager
    def _written(self, world: Alone | ProcessWorld, config: RunConfig, begun: bool) -> Iterator[None]:
        """The run's folder is this training's alone while it lasts, and its loggers are open."""
        assert self.folder is not None
        if not world.leader:
            check_shared(self.folder.path, world)
            yield
            return
        logged = Loggers(self.loggers, self.folder.path, to_dict(config), warn=self.observer.on_warning)
        self.folder.claim()
        try:
            check_shared(self.folder.path, world)
            if not begun:
                self.folder.create(config)
            with self.folder.logging_to(logged):
                yield
        finally:
            self.folder.release()

    def _check_same(self, before: RunConfig, now: RunConfig) -> None:
        """Refuse to continue another training: all but the number of epochs must be as it was."""
        assert self.folder is not None
        if (identity_of(before), before.seed) != (identity_of(now), now.seed):
            raise UsageError(
                f"run: {self.folder.path} holds another training ({before.model}, K = {before.depth}, seed "
                f"{before.seed}); use another folder, or the same network and settings"
            )

    @property
    def rates(self) -> list[float]:
        """The present learning rate of every stage, of its optimizer's first group."""
        steps = [] if self._loop is None else self._loop.nodes.steps.values()
        return [float(step.optimizer.param_groups[0]["lr"]) for step in steps]

    @checked_on_failure
    def evaluate(self, loader: Iterable[Any]) -> dict[str, Any]:
        """Evaluate the network as it is now, in eval mode.

        Args:
            loader: batches as ``fit`` takes them.

        Returns:
            ``last_layer`` and ``ensemble`` (accuracies as fractions, None where there are no classes), ``nodes`` with
            ``loss`` and ``accuracy`` of every node, and ``examples``.
        """
        source = LoaderSource(loader, self.network.given_batch, self._home, self.config.seed)
        found = self._averaged(lambda: self._evaluate(self.network, source))
        return {
            **found.accuracies,
            "nodes": found.nodes,
            "examples": found.images,
        }

    @checked_on_failure
    def predict(self, loader: Iterable[Any]) -> Tensor:
        """Scores of all examples of a loader, in eval mode: the network's output, or its ``logits``, put together.

        Args:
            loader: batches as ``fit`` takes them; labels are not looked at.
        """
        return self._read(loader, lambda batch: prediction(self.network.output(batch)))

    @checked_on_failure
    def features(self, loader: Iterable[Any], stage: int | None = None) -> Tensor:
        """Pooled features [N, D] of all N examples of a loader, in eval mode and fp32, as a stage's head sees them.

        Maps are averaged over positions; of tokens the class token or the mean is taken, without padding and with
        layer norm, as the objective takes it (the mean where it takes all tokens). The last stage of a user's own
        model ends in scores: its features are what the linear layer that makes them is given.

        Args:
            loader: batches as ``fit`` takes them; labels are not looked at.
            stage: from 1; by default the last one.

        Raises:
            UsageError: no such stage, or no linear layer makes the scores of the last one.
        """
        chosen = checked_stage(stage, len(stage_places(self.network)))
        read = stage_reader(self.network, [chosen], self.precision)
        return self._read(loader, lambda batch: read(batch)[0])

    def _read(self, loader: Iterable[Any], read: Callable[[Batch], Tensor | None]) -> Tensor:
        """What is read of every batch in eval mode, put together, in fp32."""

        def values() -> list[Tensor]:
            found = [output for _, output in read_network(self.network, loader, read, self.precision)]
            return [output.float() for output in found if output is not None]

        self.network.to(self._home)
        found = self._averaged(values)
        if not found:
            raise UsageError("loader: it gave no batch")
        return torch.cat(found)

    def _averaged(self, compute: Any) -> Any:
        """Compute with averaged weights, where these are kept."""
        if self._loop is None:
            return compute()
        if not self._averages:
            with self._loop.nodes.averaged():
                return compute()
        present = {f"network/{name}": value.clone() for name, value in self.network.weights().items()}
        load_network(self.network, self._averages, Path("of all processes"))
        try:
            return compute()
        finally:
            load_network(self.network, present, Path("of all processes"))

    def _source(self, loader: Iterable[Any]) -> LoaderSource:
        return LoaderSource(loader, self.network.given_batch, self.device, self.config.seed)

    def _evaluate(self, network: LocalNetwork, source: LoaderSource) -> Evaluation:
        return evaluate(network, source.epoch(0, 0), self.precision)
