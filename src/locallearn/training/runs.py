"""Start a run, or continue one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from locallearn import plugins
from locallearn.arguments import checked
from locallearn.config import (
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    RuntimeName,
    ScheduleConfig,
    digest,
    from_toml,
    to_dict,
    to_toml,
)
from locallearn.data.datasets import Dataset, load
from locallearn.errors import ConfigError, DiskError, UsageError
from locallearn.files import sweep
from locallearn.runtime.world import Alone, ProcessWorld, local_device, process_world
from locallearn.training.asynchronous import AsynchronousTraining
from locallearn.training.configured import Training
from locallearn.training.initial import trained_weights
from locallearn.training.lines import lines_if_watched
from locallearn.training.loggers import Loggers
from locallearn.training.observer import Observer, Quiet, check_observer
from locallearn.training.process_state import process_as_before
from locallearn.training.record import RunFolder
from locallearn.training.settings import change, with_settings
from locallearn.training.setup import resolve, with_changes
from locallearn.training.shared_folder import one_writer
from locallearn.training.stage_by_stage import SequentialTraining


@checked
def train(
    config: RunConfig, run: str | Path, observer: Observer | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Train the network that ``config`` describes, into a new run folder.

    Args:
        config: the configuration.
        run: the run's folder; it must not hold anything yet.
        observer: is told how it goes; by default standard error has a line an epoch, on a terminal or in a notebook.
        overwrite: replace the run in that folder, once it is sure that the new one can start.

    Returns:
        The summary, as in ``summary.json``; with the distributed runtime an empty one on other processes than the
        first.

    Raises:
        UsageError: the configuration cannot be trained, the data are not there, or the folder is taken.
        DivergedError: a loss became NaN or infinite; the last good checkpoint is kept.
    """
    if not str(run):
        raise ConfigError("run", run, "the name of a folder")
    check_observer(observer)
    folder = RunFolder(Path(run))
    plugins.load_of(config.plugins, "the configuration")
    with process_as_before(), _world(config) as world:
        if world.leader:
            folder.check_free(overwrite)
        dataset = _load(config, world)
        resolved = from_toml(world.share(to_toml(_from_weights(resolve(config, dataset)))))
        training = build(resolved, dataset, folder, observer, world)
        shown = _loggers(folder, resolved, observer, world)
        with one_writer(folder, world), _saying_how_to_go_on(folder):
            if world.leader:  # only now, so that what cannot be built leaves no folder behind
                folder.create(resolved, overwrite)
            world.sync()
            with folder.logging_to(shown):
                return training.run()


def _from_weights(config: RunConfig) -> RunConfig:
    """The configuration with the place and the digest of the weights that it begins with."""
    if config.init_from is None:
        return dataclasses.replace(config, init_weights=None)
    weights = trained_weights(config.init_from).digest
    return dataclasses.replace(config, init_from=str(Path(config.init_from).resolve()), init_weights=weights)


@checked
def resume(
    run: str | Path,
    observer: Observer | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
    root: str | None = None,
    runtime: RuntimeName | None = None,
    mesh: MeshConfig | None = None,
    epochs: int | None = None,
    optimizer: OptimizerConfig | None = None,
    schedule: ScheduleConfig | None = None,
) -> dict[str, Any]:
    """Continue a run from its newest whole checkpoint. A finished run returns its summary.

    With ``epochs``, ``optimizer`` or ``schedule`` the rest is trained with other settings, a finished run too. They
    take the place of those in the run's ``config.toml``, and its ``history.json`` tells what was before. The rate of
    a step is what the new settings give for that step, as if they had held from the beginning.

    Args:
        run: the run's folder.
        observer: is told how it goes.
        device: train on another device.
        threads: train with another number of CPU threads.
        root: folder that holds the data, where it has moved.
        runtime: train with another one that trains the same.
        mesh: train on other processes.
        epochs: train for so many, those that are done included.
        optimizer: other settings of the same optimizer.
        schedule: another schedule.

    Raises:
        UsageError: the folder is no run, or what shall change cannot; nothing is written.
        CheckpointError: its checkpoints are damaged, or of another configuration.
    """
    check_observer(observer)
    folder = RunFolder(Path(run))
    before = folder.built_config()
    wanted = with_settings(before, epochs, optimizer, schedule)
    config = with_changes(wanted, device, threads, root, runtime, mesh)
    changed = digest(wanted) != digest(before)
    summary = None if changed else _summary(folder, before, observer)
    if summary is not None:
        told = f"{folder.path} has already finished, so nothing is trained; --epochs N (epochs in Python) trains on"
        (observer or lines_if_watched()).on_warning(told)
        sweep(folder.path)  # a kill right after the summary was written leaves its temporary folder
        return summary
    with process_as_before(), _world(config) as world:
        dataset = _load(config, world)
        if any(folder.checkpoints.glob("step-*")):  # the weights that the run began with need not be there any more
            config = dataclasses.replace(config, init_from=None)
        training = build(resolve(config, dataset), dataset, folder, observer, world)
        shown = _loggers(folder, config, observer, world)
        with one_writer(folder, world), _saying_how_to_go_on(folder):
            if changed and world.leader:
                change(folder, before, wanted)
            world.sync()
            training.restore()
            with folder.logging_to(shown):
                return training.run()


def _summary(folder: RunFolder, config: RunConfig, observer: Observer | None) -> dict[str, Any] | None:
    """What a finished run returns; None where there is something left to train.

    Raises:
        UsageError: its config.toml was edited since, and is not what the run has trained.
    """
    summary = folder.usable_summary((observer or lines_if_watched()).on_warning)
    if summary is None or summary.get("digest") in (None, digest(config)):
        return summary
    if folder.history().led_to(summary["steps"], summary["digest"]):
        return None  # a change of settings was cut off between the new configuration and this
    raise UsageError(
        f"{folder.path} has already finished, and its config.toml was changed since, which trains nothing; put it "
        f"back and continue with locallearn train --resume {folder.path} --epochs N, --lr R or --schedule NAME; or "
        f"for a run of its own: locallearn train --config {folder.path / 'config.toml'} --run NEW"
    )


@contextlib.contextmanager
def _saying_how_to_go_on(folder: RunFolder) -> Iterator[None]:
    """Where the disk is full, say how to go on when there is room."""
    try:
        yield
    except DiskError as error:
        kept = (folder.path / "config.toml").is_file()
        how = f"locallearn train --resume {folder.path}" if kept else "the same command"
        raise DiskError(f"{error}; make room and continue with: {how}") from None


@contextlib.contextmanager
def _world(config: RunConfig) -> Iterator[Alone | ProcessWorld]:
    if config.runtime == "distributed":
        with process_world(config, local_device(config)) as world:
            yield world
    else:
        yield Alone()


def _load(config: RunConfig, world: Alone | ProcessWorld) -> Dataset:
    """The data; where they may have to be fetched first, the leader does that alone."""
    if config.data.download and not world.leader:
        world.sync()
    dataset = load(config.data)
    if config.data.download and world.leader:
        world.sync()
    return dataset


def _loggers(folder: RunFolder, config: RunConfig, observer: Observer | None, world: Alone | ProcessWorld) -> Loggers:
    """What shows the figures while the run trains; on other processes than the leader nothing does."""
    wanted = config.loggers
    names = wanted.names if world.leader else ()
    return Loggers(names, folder.path, to_dict(config), wanted.options, _observer(observer, world).on_warning)


def _observer(observer: Observer | None, world: Alone | ProcessWorld) -> Observer:
    if not world.leader:
        return Quiet()
    return observer or lines_if_watched()


def build(
    config: RunConfig,
    dataset: Dataset,
    folder: RunFolder,
    observer: Observer | None = None,
    world: Alone | ProcessWorld | None = None,
) -> Training | AsynchronousTraining:
    """The training of a resolved configuration, as its runtime has it; nothing is written yet."""
    world = world or Alone()
    told = _observer(observer, world)
    if config.runtime == "sequential":
        return SequentialTraining(config, dataset, folder, told)
    if config.runtime == "asynchronous":
        return AsynchronousTraining(config, dataset, folder, told)
    return Training(config, dataset, folder, told, world)
