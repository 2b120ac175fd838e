"""Start a run, or continue one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from locallearn import plugins
from locallearn.arguments import checked
from locallearn.config import MeshConfig, RunConfig, RuntimeName, digest, from_toml, to_dict, to_toml
from locallearn.data.datasets import Dataset, load
from locallearn.errors import ConfigError, DiskError, UsageError
from locallearn.runtime.world import Alone, ProcessWorld, local_device, process_world
from locallearn.training.asynchronous import AsynchronousTraining
from locallearn.training.configured import Training
from locallearn.training.events import DamagedRecordError
from locallearn.training.loggers import Loggers
from locallearn.training.observer import Observer, Quiet
from locallearn.training.record import RunFolder
from locallearn.training.sequential import SequentialTraining
from locallearn.training.setup import resolve, with_changes


@checked
def train(
    config: RunConfig, run: str | Path, observer: Observer | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Train the network that ``config`` describes, into a new run folder.

    Args:
        config: the configuration.
        run: the run's folder; it must not hold anything yet.
        observer: is told how it goes.
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
    folder = RunFolder(Path(run))
    plugins.load_of(config.plugins, "the configuration")
    with _world(config) as world:
        if world.leader:
            folder.check_free(overwrite)
        dataset = _load(config, world)
        resolved = from_toml(world.share(to_toml(resolve(config, dataset))))
        training = build(resolved, dataset, folder, observer, world)
        shown = _loggers(folder, resolved, observer, world)
        with _one_writer(folder, world):
            if world.leader:  # only now, so that what cannot be built leaves no folder behind
                folder.create(resolved, overwrite)
            world.sync()
            with folder.logging_to(shown):
                return training.run()


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
) -> dict[str, Any]:
    """Continue a run from its newest whole checkpoint. A finished run returns its summary.

    Args:
        run: the run's folder.
        observer: is told how it goes.
        device: train on another device.
        threads: train with another number of CPU threads.
        root: folder that holds the data, where it has moved.
        runtime: train with another one that trains the same.
        mesh: train on other processes.
    """
    folder = RunFolder(Path(run))
    config = with_changes(folder.built_config(), device, threads, root, runtime, mesh)
    try:
        summary = folder.summary()
    except DamagedRecordError as error:
        summary = None
        (observer or Quiet()).on_warning(f"{error}; it is written anew")
    if summary is not None:
        _check_unedited(folder.config(), summary, run)
        return summary
    with _world(config) as world:
        dataset = _load(config, world)
        training = build(resolve(config, dataset), dataset, folder, observer, world)
        shown = _loggers(folder, config, observer, world)
        with _one_writer(folder, world):
            training.restore()
            with folder.logging_to(shown):
                return training.run()


def _check_unedited(config: RunConfig, summary: dict[str, Any], run: str | Path) -> None:
    """Refuse to pass a finished run off as what its config.toml says since somebody edited it.

    Raises:
        UsageError: the summary is of another configuration.
    """
    if summary.get("digest") not in (None, digest(config)):
        raise UsageError(
            f"{run} has already finished, and its config.toml was changed since, which trains nothing; for a run of "
            f"its own: locallearn train --config {Path(run) / 'config.toml'} --run NEW"
        )


@contextlib.contextmanager
def _one_writer(folder: RunFolder, world: Alone | ProcessWorld) -> Iterator[None]:
    """Keep others from training this run; where the disk is full, say how to go on. The leader does so for all."""
    if world.leader:
        folder.claim()
    try:
        yield
    except DiskError as error:
        kept = (folder.path / "config.toml").is_file()
        how = f"locallearn train --resume {folder.path}" if kept else "the same command"
        raise DiskError(f"{error}; make room and continue with: {how}") from None
    finally:
        folder.release()


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
    return observer if observer is not None and world.leader else Quiet()


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
