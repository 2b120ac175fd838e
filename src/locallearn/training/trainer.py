"""``Trainer``: any local network on any loader, with everything that a run has."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from locallearn.arguments import checked_on_failure
from locallearn.config import RunConfig
from locallearn.config.checks import positive_int
from locallearn.core.network import LocalNetwork, OptimizerFactory
from locallearn.core.split import adamw
from locallearn.core.split_network import SplitNetwork
from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.files import short_temporary_folder
from locallearn.nn.features import prediction
from locallearn.nn.precision import precise
from locallearn.runtime.world import Alone, ProcessWorld, process_world
from locallearn.training.checkpoint import load_network
from locallearn.training.described import identity_of
from locallearn.training.evaluate import Evaluation, evaluate
from locallearn.training.lines import lines_if_watched
from locallearn.training.loaders import LoaderSource, joined, read_network
from locallearn.training.loop import Loop
from locallearn.training.observer import Observer, Quiet
from locallearn.training.own_run import gather, has_begun, resume_in, train_in
from locallearn.training.process_state import cpu_threads
from locallearn.training.record import RunFolder
from locallearn.training.stage_features import checked_stage, stage_places, stage_reader
from locallearn.training.trainer_options import TrainerOptions
from locallearn.training.work import ScheduleFactory, Work


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
            groups if you like. By default what ``ll.split`` or ``set_optimizers`` was given, else AdamW with a rate
            of 1e-3.
        schedule: makes a scheduler of torch for the optimizer of one stage. None leaves rates alone.
        schedule_unit: when schedulers step: after every update (``"step"``) or every epoch (``"epoch"``, which
            ``ReduceLROnPlateau`` needs; it follows the validation loss of the last stage).
        runtime: ``"inline"`` (stages one after the other) or ``"threads"`` (several at once on the threads of a CPU,
            with the same weights bit for bit), or ``"distributed"`` in a script that torchrun starts: the stages are
            spread over its processes, with the same weights bit for bit in fp32 on CPUs. Every process needs the same
            script and loaders; no process holds other stages' weights while it trains. The first one writes the run,
            and has the whole trained network when ``fit`` has returned.
        run: folder of the run; None keeps nothing, and every ``fit`` begins anew, from the weights of now.
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
        self.options = options = TrainerOptions(
            network, optimizer, schedule, schedule_unit, runtime, run, precision, clip_norm, accumulate, average,
            seed, device, devices, replicas, threads, checkpoint_every, keep_last, loggers, observer,
        )  # fmt: skip
        self.loggers = tuple(loggers)
        self.network = network
        self.folder = None if run is None else RunFolder(Path(run))
        self.observer = observer or lines_if_watched()
        self._home, self.device = options.home, options.place()
        self.config = options.config(self.device)
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
        work = self._work(config, loader, validation)
        with cpu_threads(config.train.threads), torch.inference_mode(False), torch.enable_grad():
            try:
                self._prepare()
                return self._fit(config, work)
            finally:
                if isinstance(self.network, SplitNetwork) and self.network.placed:
                    self.network.gather(self._home)

    def _work(self, config: RunConfig, loader: Iterable[Any], validation: Iterable[Any] | None) -> Work:
        """What is trained, and on what."""
        options = self.options
        source = self._source(loader, at_once=options.runtime != "inline")
        again = None if validation is None else self._source(validation)
        return Work(
            self.network,
            source,
            None if again is None else lambda network: self._evaluate(network, again),
            source=type(loader).__name__,
            optimizer=options.optimizer or self.network.maker.function or adamw,
            schedule=options.schedule,
            every_epoch=options.schedule_unit == "epoch",
            accumulate=options.accumulate,
            average=options.average,
            identity=identity_of(config),
            resume=resume_in(self.folder),
        )

    def _prepare(self) -> None:
        """Put the network where it trains."""
        self.network.train()
        if self.options.devices is not None and isinstance(self.network, SplitNetwork):
            self.network.place(self.options.devices)
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
                self._averages = gather(self._loop, world, self.network)
            return summary

    def _fit_in(self, world: Alone | ProcessWorld, config: RunConfig, work: Work) -> dict[str, Any]:
        begun = self.folder is not None and has_begun(self.folder, config, world)
        if begun and world.leader and getattr(work.train, "goes_on", False):
            draws = "persistent workers do not draw what those of the uninterrupted training had drawn"
            self.observer.on_warning(f"loader: {draws}; persistent_workers=False makes it so")
        self._loop = Loop(config, work, self.folder, self.observer if world.leader else Quiet(), world)
        if self.folder is None:
            return self._loop.run()
        return train_in(self.folder, self._loop, begun, self.loggers)

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
        return {**found.accuracies, "nodes": found.nodes, "examples": found.images}

    @checked_on_failure
    def predict(self, loader: Iterable[Any]) -> Any:
        """Scores of all examples of a loader, in eval mode: the network's output, or its ``logits``, put together.

        Where the objective is a function of all that the model gives, that is what comes out, in its own form.

        Args:
            loader: batches as ``fit`` takes them; labels are not looked at.
        """
        form = self.network.output_form
        if form is None:
            return self._read(loader, lambda batch: prediction(self.network.output(batch)))
        return form.whole(self._read(loader, lambda batch: form.flat(self.network.output(batch))))

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
        read = stage_reader(self.network, [chosen], self.options.precision)
        return self._read(loader, lambda batch: read(batch)[0])

    def _read(self, loader: Iterable[Any], read: Callable[[Batch], Tensor | None]) -> Tensor:
        """What is read of every batch in eval mode, put together, in at least fp32."""

        def values() -> list[Tensor]:
            found = [output for _, output in read_network(self.network, loader, read, self.options.precision)]
            return [precise(output) for output in found if output is not None]

        self.network.to(self._home)
        found = self._averaged(values)
        return joined(found)

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

    def _source(self, loader: Iterable[Any], at_once: bool = False) -> LoaderSource:
        return LoaderSource(loader, self.network.given_batch, self.device, self.config.seed, at_once)

    def _evaluate(self, network: LocalNetwork, source: LoaderSource) -> Evaluation:
        return evaluate(network, source.epoch(0, 0), self.options.precision)
