"""The run of an ``ll.Trainer``: begun in a new folder or continued, and what its processes give back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from locallearn.config import RunConfig, to_dict, to_toml
from locallearn.core.network import LocalNetwork
from locallearn.core.split_network import SplitNetwork
from locallearn.errors import UsageError
from locallearn.files import write_atomically
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training.checkpoint import load_network
from locallearn.training.described import identity_of
from locallearn.training.loggers import Loggers
from locallearn.training.loop import Loop
from locallearn.training.record import RunFolder
from locallearn.training.shared_folder import one_writer


def has_begun(folder: RunFolder, config: RunConfig, world: Alone | ProcessWorld) -> bool:
    """Whether the run has begun; the processes ask together.

    Raises:
        UsageError: it is another training's, or the folder holds something else.
    """
    begun = (folder.path / "config.toml").is_file() if world.leader else False
    begun = bool(world.share("begun" if begun else ""))
    if begun and world.leader:
        _check_same(folder, config)
    elif world.leader and not folder.is_free():
        what = "holds something else than a run" if folder.path.is_dir() else "is no folder"
        raise UsageError(f"run: {folder.path} {what}; name another folder")
    return begun


def resume_in(folder: RunFolder | None) -> str:
    """How to continue a training that was interrupted, in words."""
    if folder is None:
        return "fit begins anew, from the weights of now; with run=FOLDER it continues"
    return f"continue with fit of a Trainer with run={str(folder.path)!r}"


def _check_same(folder: RunFolder, now: RunConfig) -> None:
    """Refuse to continue another training: all but the number of epochs must be as it was."""
    before = folder.config()
    if (identity_of(before), before.seed) != (identity_of(now), now.seed):
        raise UsageError(
            f"run: {folder.path} holds another training ({before.model}, K = {before.depth}, seed "
            f"{before.seed}); use another folder, or the same network and settings"
        )


def train_in(folder: RunFolder, loop: Loop, begun: bool, loggers: Sequence[str]) -> dict[str, Any]:
    """Train from where the run is to the end; the processes do so together.

    Args:
        folder: of the run, which is this training's alone meanwhile.
        loop: the training.
        begun: whether the run has begun.
        loggers: names of those that are told what is recorded.

    Returns:
        The summary; on other processes than the leader nothing.
    """
    world, config, warn = loop.world, loop.config, loop.observer.on_warning
    shown = Loggers(loggers if world.leader else (), folder.path, to_dict(config), warn=warn)
    with one_writer(folder, world):
        if world.leader and not begun:
            folder.create(config)
        with folder.logging_to(shown):
            if begun:
                loop.restore()
                summary = folder.usable_summary(warn)
                if summary is not None and loop.epochs_done >= loop.epochs:
                    return summary if world.leader else {}
                if world.leader:
                    write_atomically(folder.path / "config.toml", to_toml(config))
            world.sync()
            return loop.run()


def gather(loop: Loop, world: ProcessWorld, network: LocalNetwork) -> dict[str, Tensor]:
    """Give the leader the whole network that the processes have trained; all of them call this together.

    Returns:
        On the leader, the moving averages of all weights; nothing elsewhere, or where none are kept.
    """
    weights, averages = world.whole(loop.nodes.weights()), {}
    if loop.work.average:
        with loop.nodes.averaged():
            averages = world.whole(loop.nodes.weights())
    if world.leader and isinstance(network, SplitNetwork):
        network.take_back()
        load_network(network, weights, Path("of all processes"))
    return averages
