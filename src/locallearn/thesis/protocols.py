"""Protocols: how long, with which batch and with which optimizer the cells are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from locallearn.config import OptimizerConfig, ProbeConfig, RunConfig, ScheduleConfig, digest
from locallearn.errors import UsageError
from locallearn.thesis import chapter4, sweep
from locallearn.thesis.matrix import cells

QUICK_EPOCHS = 2
QUICK_BATCH = 128
QUICK_RESNET = (
    OptimizerConfig(name="sgd", learning_rate=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4),
    ScheduleConfig(name="cosine", unit="step", warmup_epochs=1),
)
QUICK_VGG = (
    OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0),
    ScheduleConfig(name="cosine", unit="step"),
)
"""The one setting of ``quick``. The ResNets' rate and batch are tuned on end-to-end training alone, so that no local
method is favoured (the comparison stands in docs/reproduce.md); the VGGs' are the thesis's."""


@dataclass(frozen=True)
class Protocol:
    """A named way to train every cell.

    Attributes:
        name: as on the command line.
        description: one sentence for reports.
        settle: turns a cell's recipe into what is trained.
        held_out: also score on the last so many training images, which are then not trained on [images].
    """

    name: str
    description: str
    settle: Callable[[RunConfig], RunConfig]
    held_out: int = 0


QUICK_SELF_SUPERVISED_EPOCHS = 10
"""Epochs of ``quick`` for Chapter 4, with the thesis's optimizer and rate, which falls along a cosine."""


def _quick(config: RunConfig) -> RunConfig:
    if chapter4.is_self_supervised(config):
        train = dataclasses.replace(
            config.train, epochs=QUICK_SELF_SUPERVISED_EPOCHS, batch_size=QUICK_BATCH, precision="bf16"
        )
        return dataclasses.replace(config, schedule=ScheduleConfig(name="cosine", unit="step"), train=train)
    optimizer, schedule = QUICK_VGG if config.model.startswith("vgg") else QUICK_RESNET
    train = dataclasses.replace(config.train, epochs=QUICK_EPOCHS, batch_size=QUICK_BATCH, precision="bf16")
    return dataclasses.replace(config, optimizer=optimizer, schedule=schedule, train=train)


STANDARD_EPOCHS = 16
STANDARD_SELF_SUPERVISED_EPOCHS = 30
STANDARD_BATCH = 128
STANDARD_SGD = OptimizerConfig(learning_rate=0.4, weight_decay=5e-4)
"""What the sweep found (``locallearn.thesis.sweep``)."""
STANDARD_SCHEDULE = ScheduleConfig(name="cosine", unit="step", warmup_epochs=1)
STANDARD_PROBE_EPOCHS = 20


def _standard(config: RunConfig) -> RunConfig:
    """SGD with the rate and decay of the sweep; Adam, which VGGs and Chapter 4 have, with the thesis's."""
    is_adam = config.optimizer.name == "adam"
    epochs = STANDARD_SELF_SUPERVISED_EPOCHS if chapter4.is_self_supervised(config) else STANDARD_EPOCHS
    return dataclasses.replace(
        config,
        optimizer=config.optimizer if is_adam else STANDARD_SGD,
        schedule=dataclasses.replace(STANDARD_SCHEDULE, warmup_rate=0.0 if is_adam else 0.01),
        train=dataclasses.replace(config.train, epochs=epochs, batch_size=STANDARD_BATCH, precision="bf16"),
    )


def _sweep(config: RunConfig) -> RunConfig:
    config = _standard(config)
    train = dataclasses.replace(config.train, epochs=sweep.EPOCHS, evaluate_every=0)
    data = dataclasses.replace(config.data, train_limit=sweep.IMAGES)
    return dataclasses.replace(config, train=train, data=data)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "paper",
            "The thesis's own epochs, batch and optimizer (Secs. 3.3.1, 3.3.2 and 4.3), in fp32. Chapter 4 does not "
            "say how many epochs it trains: 800; linear probes for 200.",
            lambda config: config,
        ),
        Protocol(
            "quick",
            f"{QUICK_EPOCHS} epochs at batch {QUICK_BATCH} in bf16, cosine at every step: for ResNets SGD with "
            "Nesterov momentum, rate 0.2 after one epoch of warm-up, weight decay 5e-4; for VGGs Adam, rate 1e-3. "
            "One setting for all cells, tuned on end-to-end training alone. Chapter 4: "
            f"{QUICK_SELF_SUPERVISED_EPOCHS} epochs at the same batch with the thesis's optimizer and rate, cosine "
            "at every step, untuned, and linear probes for 30 epochs on images as they are. It is "
            "meant to keep the order of the methods, not their accuracies.",
            _quick,
        ),
        Protocol(
            "standard",
            f"{STANDARD_EPOCHS} epochs at batch {STANDARD_BATCH} in bf16, cosine at every step after one epoch of "
            f"warm-up: for ResNets SGD with Nesterov momentum, rate {STANDARD_SGD.learning_rate:g}, weight decay "
            f"{STANDARD_SGD.weight_decay:g}, which the sweep chose on end-to-end training alone; for VGGs Adam at "
            f"the thesis's rate of 1e-3. Chapter 4: {STANDARD_SELF_SUPERVISED_EPOCHS} epochs with the thesis's "
            f"optimizer and rate, and linear probes for {STANDARD_PROBE_EPOCHS} epochs on images as they are.",
            _standard,
        ),
        Protocol(
            "sweep",
            f"How rate and weight decay of standard were chosen: {sweep.EPOCHS} epochs on {sweep.IMAGES:,} training "
            f"images at batch 128 in bf16, cosine at every step after one epoch of warm-up, scored on the last "
            f"{sweep.HELD_OUT:,} training images.",
            _sweep,
            held_out=sweep.HELD_OUT,
        ),
    )
}


@dataclass(frozen=True)
class Study:
    """A protocol, and what a one-off study shortens of it. Another study has other digests and another folder.

    Attributes:
        protocol: the protocol's name.
        epochs: epochs instead of the protocol's [epochs].
        train_limit: only the first N training images [images].

    Raises:
        UsageError: no such protocol.
    """

    protocol: str = "quick"
    epochs: int | None = None
    train_limit: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UsageError(f"--protocol: {self.protocol!r} is not known; expected one of {', '.join(PROTOCOLS)}")

    @property
    def name(self) -> str:
        """``quick``, or ``quick-epochs2-train1000`` for a shortened one; also the name of its folders."""
        changes = (("epochs", self.epochs), ("train", self.train_limit))
        return self.protocol + "".join(f"-{key}{value}" for key, value in changes if value is not None)

    @property
    def description(self) -> str:
        """What reports say of it."""
        text = PROTOCOLS[self.protocol].description
        changes = []
        if self.epochs is not None:
            changes.append(f"epochs = {self.epochs}")
        if self.train_limit is not None:
            changes.append(f"the first {self.train_limit:,} training images only")
        return text if not changes else f"{text} Changed for a one-off study: {', '.join(changes)}."

    def config(self, cell: str, seed: int) -> RunConfig:
        """The complete configuration of a cell."""
        found = cells()[cell]
        config = PROTOCOLS[self.protocol].settle(found.config)
        if found.own_training:
            train = dataclasses.replace(found.config.train, epochs=config.train.epochs)
            config = dataclasses.replace(found.config, train=train, data=config.data)
        if found.own_optimizer:
            config = dataclasses.replace(config, optimizer=found.config.optimizer)
        epochs = self.epochs or config.train.epochs
        keep = min(config.checkpoint.keep_epochs, max(1, epochs // 4))
        return dataclasses.replace(
            config,
            seed=seed,
            train=dataclasses.replace(config.train, epochs=epochs),
            checkpoint=dataclasses.replace(config.checkpoint, keep_epochs=keep),
            # all training images are trained on, as the thesis does; cells keep no best checkpoint that needed others
            data=dataclasses.replace(
                config.data, train_limit=self.train_limit or config.data.train_limit, validation=0.0
            ),
        )

    @property
    def held_out(self) -> int:
        """Training images that score the cells beside the test images; none are trained on [images]."""
        return PROTOCOLS[self.protocol].held_out

    @property
    def probe(self) -> ProbeConfig:
        """How the cells of Chapter 4 are probed: as the thesis does, 200 epochs of Adam at 1e-3, or in a tenth."""
        if self.protocol == "paper":
            return ProbeConfig(epochs=200, learning_rate=1e-3, schedule="constant")
        return ProbeConfig(epochs=STANDARD_PROBE_EPOCHS) if self.protocol == "standard" else ProbeConfig()

    def digest(self, cell: str) -> str:
        """Digest of a cell's configuration; it is the same for every seed."""
        return digest(self.config(cell, 0))
