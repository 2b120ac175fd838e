"""Start a run, or continue one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from locallearn import plugins
from locallearn.config import RunConfig
from locallearn.data.datasets import Dataset, load
from locallearn.training.asynchronous import AsynchronousTraining
from locallearn.training.loop import Training
from locallearn.training.observer import Observer, Quiet
from locallearn.training.record import RunFolder
from locallearn.training.sequential import SequentialTraining
from locallearn.training.setup import resolve, with_changes


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
        The summary, as in ``summary.json``.

    Raises:
        UsageError: the configuration cannot be trained, the data are not there, or the folder is taken.
        DivergedError: a loss became NaN or infinite; the last good checkpoint is kept.
    """
    folder = RunFolder(Path(run))
    folder.check_free(overwrite)
    plugins.load(config.plugins)
    dataset = load(config.data)
    resolved = resolve(config, dataset)
    training = build(resolved, dataset, folder, observer)
    folder.create(resolved, overwrite)  # only now, so that what cannot be built leaves no folder behind
    return training.run()


def resume(run: str | Path, observer: Observer | None = None, **changes: Any) -> dict[str, Any]:
    """Continue a run from its newest whole checkpoint. A finished run returns its summary.

    Args:
        run: the run's folder.
        observer: is told how it goes.
        changes: fields of ``train`` and ``data`` that may differ on this machine: ``device``, ``threads``, ``root``.
    """
    folder = RunFolder(Path(run))
    config = with_changes(folder.config(), **changes)
    summary = folder.summary()
    if summary is not None:
        return summary
    dataset = load(config.data)
    training = build(resolve(config, dataset), dataset, folder, observer)
    training.restore()
    return training.run()


def build(
    config: RunConfig, dataset: Dataset, folder: RunFolder, observer: Observer | None = None
) -> Training | AsynchronousTraining:
    """The training of a resolved configuration, as its runtime has it; nothing is written yet."""
    kinds = {"inline": Training, "sequential": SequentialTraining, "asynchronous": AsynchronousTraining}
    return kinds[config.runtime](config, dataset, folder, observer or Quiet())
