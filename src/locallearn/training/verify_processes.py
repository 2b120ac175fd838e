"""The distributed runtime beside the inline one, on the user's own configuration and machine."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from locallearn import plugins
from locallearn.config import MeshConfig, RunConfig
from locallearn.core.methods import methods
from locallearn.data.datasets import Dataset
from locallearn.errors import ConfigError
from locallearn.runtime.world import local_device, process_world
from locallearn.training.record import RunFolder
from locallearn.training.runs import build
from locallearn.training.verify_common import in_processes

ROUNDING = 5e-5
"""Largest difference that width and data axes may make, as a share of a tensor's largest value: a smaller convolution
and an average of gradients add up in another order."""


def trial_mesh(config: RunConfig) -> MeshConfig | None:
    """The configuration's own mesh, or two processes that share its depth or width; None where neither can be."""
    if config.mesh.size > 1:
        return config.mesh
    mesh = MeshConfig(depth=2) if config.depth > 1 else MeshConfig(width=2)
    if mesh.width > 1 and (config.groups[0] % 2 or config.method == "single-thread" or config.dropout):
        return None
    try:
        methods.build(config.method, dataclasses.replace(config, runtime="distributed", mesh=mesh))
    except ConfigError:  # the method trains in one process only
        return None
    return mesh


def train_on_processes(config: RunConfig, dataset: Dataset, path: Path) -> None:
    """Train into a run folder on as many processes as the configuration's mesh has.

    Raises:
        LocalLearnError: one of them failed.
    """
    in_processes(config.mesh.size, config.train.threads or 1, partial(_train, config, dataset, path))


def _train(config: RunConfig, dataset: Dataset, path: Path) -> None:
    plugins.load_of(config.plugins, "the configuration")
    folder = RunFolder(path)
    with process_world(config, local_device(config)) as world:
        training = build(config, dataset, folder, None, world)
        if world.leader:
            folder.create(config)
        world.sync()
        training.run()


def on_mesh(config: RunConfig, mesh: MeshConfig) -> tuple[RunConfig, RunConfig]:
    """The configuration inline and on a mesh, with one thread a process: threads add up in an order of their own."""
    train = dataclasses.replace(config.train, threads=1)
    inline = dataclasses.replace(config, runtime="inline", mesh=MeshConfig(), train=train)
    return inline, dataclasses.replace(inline, runtime="distributed", mesh=mesh)
