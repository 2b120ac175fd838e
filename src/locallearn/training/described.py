"""What an ``ll.Trainer`` trains, as the configuration of a run names it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from locallearn.config import MeshConfig, RunConfig, digest
from locallearn.config.checks import check, positive_int
from locallearn.core.network import LocalNetwork
from locallearn.core.split_network import SplitNetwork
from locallearn.errors import ConfigError


def mesh_of(network: LocalNetwork, runtime: str, replicas: int) -> MeshConfig:
    """How the processes that there are have stages and replicas."""
    positive_int("replicas", replicas)
    if runtime != "distributed":
        check("replicas", replicas, lambda v: v == 1, f"1 with runtime {runtime}, which has one process")
        return MeshConfig()
    if not isinstance(network, SplitNetwork):
        expected = "inline or threads for a network of the package's own, which ll.train spreads over processes"
        raise ConfigError("runtime", runtime, expected)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    check("replicas", replicas, lambda v: processes % v == 0, f"a divisor of the number of processes, {processes}")
    return MeshConfig(depth=processes // replicas, data=replicas)


def described(network: LocalNetwork) -> dict[str, Any]:
    """The network as a configuration names it."""
    stages = [stage for stage in network if stage.name.isdigit()]
    found: dict[str, Any] = {"depth": len(stages), "width": tuple(stage.groups for stage in stages)}
    found |= {"overlap": network.overlap}
    if isinstance(network, SplitNetwork):
        cuts = tuple(piece.path for piece in network.pieces[:-1])
        return {**found, "model": type(network.model).__name__, "cuts": cuts or ("auto",)}
    return {**found, "model": type(network).__name__}


def identity_of(config: RunConfig) -> str:
    """Names what is trained, whatever the number of epochs."""
    train = dataclasses.replace(config.train, epochs=1, evaluate_every=1)
    return digest(dataclasses.replace(config, train=train))
