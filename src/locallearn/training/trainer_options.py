"""What the user of an ``ll.Trainer`` chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from locallearn.arguments import takes
from locallearn.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ThreadsConfig,
    TrainConfig,
)
from locallearn.config.checks import check, choice, is_real, non_negative, positive_int
from locallearn.core.network import LocalNetwork, OptimizerFactory
from locallearn.core.placed import devices_of
from locallearn.core.split_network import SplitNetwork
from locallearn.errors import ConfigError
from locallearn.training.described import described, mesh_of
from locallearn.training.observer import Observer, check_observer
from locallearn.training.record import SPLIT
from locallearn.training.work import ScheduleFactory

RUNTIMES = ("inline", "threads", "distributed")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainerOptions:
    """How a network is trained; the fields are the arguments of ``ll.Trainer``.

    Raises:
        ConfigError: a wrong one; the message names it.
    """

    network: LocalNetwork
    optimizer: OptimizerFactory | None
    schedule: ScheduleFactory | None
    schedule_unit: str
    runtime: str
    run: str | Path | None
    precision: str
    clip_norm: float | None
    accumulate: int
    average: float
    seed: int
    device: str | torch.device | None
    devices: Sequence[str | torch.device] | None
    replicas: int
    threads: int | None
    checkpoint_every: int
    keep_last: int
    loggers: Sequence[str]
    observer: Observer | None

    def __post_init__(self) -> None:
        if not isinstance(self.network, LocalNetwork):
            expected = "a network from ll.split or ll.build_network"
            raise ConfigError("network", type(self.network).__name__, expected)
        for name, given in (("optimizer", "its parameters"), ("schedule", "its optimizer")):
            expected = f"a function that makes one stage's {name} of {given}"
            check(name, getattr(self, name), lambda made: callable(made) and takes(made, 1), expected)
        choice("schedule_unit", self.schedule_unit, "step", "epoch")
        choice("runtime", self.runtime, *RUNTIMES)
        choice("precision", self.precision, *PRECISIONS)
        positive_int("accumulate", self.accumulate)
        positive_int("threads", self.threads)
        mesh_of(self.network, self.runtime, self.replicas)
        non_negative("clip_norm", self.clip_norm)
        check("average", self.average, lambda v: is_real(v) and 0 <= v < 1, "a number in [0, 1)")
        check("device", self.device, _is_device, "cpu, cuda[:N] or another device of torch's")
        check_observer(self.observer)
        check("run", self.run, lambda v: isinstance(v, (str, Path)), "a folder, or None to keep nothing")
        if isinstance(self.loggers, str) or (self.loggers and self.run is None):
            raise ConfigError("loggers", self.loggers, "a sequence of names, with a run")

    def config(self, device: torch.device) -> RunConfig:
        """The configuration of a run with these options, as its folder holds it.

        Args:
            device: where batches go.
        """
        clip_norm = self.network.clip_norm if self.clip_norm is None else self.clip_norm
        return RunConfig(
            method=SPLIT,
            **described(self.network),
            seed=self.seed,
            runtime=self.runtime,  # type: ignore[arg-type]
            data=DataConfig(name="loader"),
            optimizer=OptimizerConfig(clip_norm=clip_norm),
            train=TrainConfig(
                precision=self.precision,  # type: ignore[arg-type]
                device=str(device),
                channels_last=False,
                threads=self.threads,
            ),
            threads=ThreadsConfig(),
            mesh=mesh_of(self.network, self.runtime, self.replicas),
            checkpoint=CheckpointConfig(every_steps=self.checkpoint_every, keep_last=self.keep_last),
        )

    @property
    def home(self) -> torch.device:
        """Where the network is now, or is to be, between trainings."""
        return torch.device(self.device) if self.device is not None else next(self.network.parameters()).device

    def place(self) -> torch.device:
        """Where batches go and losses are looked at.

        Raises:
            ConfigError: the network cannot train there.
        """
        found = self.home if self.devices is None else self._first_device(self.devices)
        if self.runtime == "threads" and found.type != "cpu":
            raise ConfigError("runtime", self.runtime, f"inline on {found}; threads share the cores of a CPU")
        return found

    def _first_device(self, devices: Sequence[str | torch.device]) -> torch.device:
        if not isinstance(self.network, SplitNetwork):
            raise ConfigError("devices", devices, "None, but for a network of ll.split")
        if self.device is not None or self.runtime == "distributed":
            raise ConfigError("devices", devices, "None with device=, or with runtime='distributed'")
        return devices_of(self.network.pieces, devices)[0]


def _is_device(value: object) -> bool:
    try:
        return isinstance(torch.device(value), torch.device)  # type: ignore[call-overload]
    except (TypeError, RuntimeError):
        return False
