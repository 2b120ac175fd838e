"""New settings for a run that has begun: more epochs, another rate, another schedule."""

from __future__ import annotations

import dataclasses

from locallearn.config import OptimizerConfig, RunConfig, ScheduleConfig, digest, to_dict
from locallearn.errors import ConfigError, UsageError
from locallearn.training.checkpoint import CheckpointFolder
from locallearn.training.record import RunFolder


def with_settings(
    config: RunConfig, epochs: int | None, optimizer: OptimizerConfig | None, schedule: ScheduleConfig | None
) -> RunConfig:
    """The configuration of a run with these settings; None leaves them as they are.

    Raises:
        ConfigError: another optimizer, which could not go on from what this one remembers; or the runtime trains
            modules at different steps, so that there is none at which all of them could change.
    """
    wanted = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, epochs=config.train.epochs if epochs is None else epochs),
        optimizer=optimizer or config.optimizer,
        schedule=schedule or config.schedule,
    )
    if wanted.optimizer.name != config.optimizer.name:
        expected = f"{config.optimizer.name}, with which the run began"
        raise ConfigError("optimizer.name", wanted.optimizer.name, expected)
    if digest(wanted) != digest(config) and config.runtime in ("sequential", "asynchronous"):
        raise UsageError(
            f"--resume: a run with runtime {config.runtime} keeps its epochs, rates and schedule, for its modules "
            "are not at the same step"
        )
    return wanted


def change(folder: RunFolder, before: RunConfig, wanted: RunConfig) -> None:
    """Give a run other settings from its newest checkpoint on.

    Args:
        folder: the run's; it must have been claimed.
        before: what its config.toml says.
        wanted: what it shall say.

    Raises:
        ConfigError: as many epochs as are wanted are done.
        CheckpointError: its checkpoints are damaged, or of another configuration.
    """
    path, found, _ = CheckpointFolder(folder.checkpoints, 1).newest()
    if path is not None and found is not None:
        history = folder.history()
        history.check(path, found.progress, digest(before))
        done = found.progress["epochs_done"]
        if wanted.train.epochs <= done:
            raise ConfigError("train.epochs", wanted.train.epochs, f"more than the {done} that are done (--epochs)")
        history.note(found.progress["step"], found.progress["digest"], to_dict(before))
    folder.change(wanted)
