"""Local learning for PyTorch: a network trained as K depth modules times G width groups.

>>> import locallearn as ll
>>> config = ll.recipe("gn-dgl")
>>> summary = ll.train(config, "runs/first")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from locallearn.config import ProbeConfig, RunConfig, from_toml, to_toml
    from locallearn.core.network import ImageShape, LocalNetwork, build_network
    from locallearn.costs.nodes import cost
    from locallearn.errors import LocalLearnError
    from locallearn.experiments.recipes import recipe
    from locallearn.training.embed import embed
    from locallearn.training.export import load_exported
    from locallearn.training.finished import open_run
    from locallearn.training.probe import probe
    from locallearn.training.runs import resume, train

_PLACES = {
    "ImageShape": "locallearn.core.network",
    "LocalLearnError": "locallearn.errors",
    "LocalNetwork": "locallearn.core.network",
    "ProbeConfig": "locallearn.config",
    "RunConfig": "locallearn.config",
    "build_network": "locallearn.core.network",
    "cost": "locallearn.costs.nodes",
    "embed": "locallearn.training.embed",
    "from_toml": "locallearn.config",
    "load_exported": "locallearn.training.export",
    "open_run": "locallearn.training.finished",
    "probe": "locallearn.training.probe",
    "recipe": "locallearn.experiments.recipes",
    "resume": "locallearn.training.runs",
    "to_toml": "locallearn.config",
    "train": "locallearn.training.runs",
}

__all__ = [
    "ImageShape",
    "LocalLearnError",
    "LocalNetwork",
    "ProbeConfig",
    "RunConfig",
    "build_network",
    "cost",
    "embed",
    "from_toml",
    "load_exported",
    "open_run",
    "probe",
    "recipe",
    "resume",
    "to_toml",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: reports and ``--help`` need no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'locallearn' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
