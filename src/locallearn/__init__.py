"""Local learning for PyTorch: a network trained as K depth modules times G width groups.

>>> import locallearn as ll
>>> config = ll.recipe("gn-dgl")
>>> summary = ll.train(config, "runs/first")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from locallearn.config import (
        DataConfig,
        ObjectiveConfig,
        OptimizerConfig,
        ProbeConfig,
        RunConfig,
        ScheduleConfig,
        TrainConfig,
        from_toml,
        to_toml,
    )
    from locallearn.core.assembly import build_network
    from locallearn.core.image_shape import ImageShape
    from locallearn.core.local_step import LocalStep
    from locallearn.core.methods import Layout, ModuleLayout, methods
    from locallearn.core.network import LocalNetwork
    from locallearn.core.split import split
    from locallearn.core.split_network import SplitNetwork
    from locallearn.costs.nodes import cost
    from locallearn.data.datasets import Dataset, ImageSet, datasets
    from locallearn.data.own import AugmentationInput, augmentations
    from locallearn.data.packing import pack
    from locallearn.data.store import Batch
    from locallearn.errors import LocalLearnError
    from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
    from locallearn.nn.backbones import BackboneInput, Block, backbones
    from locallearn.nn.heads import HeadInput, heads
    from locallearn.recipes.named import recipe
    from locallearn.training.embed import embed
    from locallearn.training.export import export, load_exported
    from locallearn.training.finished import load_run, open_run
    from locallearn.training.loggers import LoggerInput, loggers
    from locallearn.training.optimizers import OptimizerInput, optimizers
    from locallearn.training.probe import probe
    from locallearn.training.runs import resume, train
    from locallearn.training.schedules import ScheduleInput, schedules
    from locallearn.training.trainer import Trainer

__version__ = "0.1.0"

_PLACES = {
    "TrainConfig": "locallearn.config.training",
    "ScheduleConfig": "locallearn.config.training",
    "OptimizerConfig": "locallearn.config.training",
    "ObjectiveConfig": "locallearn.config.objective",
    "LocalStep": "locallearn.core.local_step",
    "DataConfig": "locallearn.config.data",
    "BackboneInput": "locallearn.nn.backbones",
    "Batch": "locallearn.data.store",
    "Block": "locallearn.nn.backbones",
    "AugmentationInput": "locallearn.data.own",
    "Dataset": "locallearn.data.datasets",
    "HeadInput": "locallearn.nn.heads",
    "ImageSet": "locallearn.data.datasets",
    "ImageShape": "locallearn.core.image_shape",
    "Layout": "locallearn.core.methods",
    "LocalLearnError": "locallearn.errors",
    "LocalLoss": "locallearn.losses.objectives",
    "LocalNetwork": "locallearn.core.network",
    "LoggerInput": "locallearn.training.loggers",
    "ModuleLayout": "locallearn.core.methods",
    "Objective": "locallearn.losses.objectives",
    "ObjectiveInput": "locallearn.losses.objectives",
    "OptimizerInput": "locallearn.training.optimizers",
    "ProbeConfig": "locallearn.config",
    "RunConfig": "locallearn.config",
    "ScheduleInput": "locallearn.training.schedules",
    "SplitNetwork": "locallearn.core.split_network",
    "Trainer": "locallearn.training.trainer",
    "backbones": "locallearn.nn.backbones",
    "build_network": "locallearn.core.assembly",
    "cost": "locallearn.costs.nodes",
    "augmentations": "locallearn.data.own",
    "datasets": "locallearn.data.datasets",
    "pack": "locallearn.data.packing",
    "embed": "locallearn.training.embed",
    "export": "locallearn.training.export",
    "from_toml": "locallearn.config",
    "heads": "locallearn.nn.heads",
    "load_exported": "locallearn.training.export",
    "load_run": "locallearn.training.finished",
    "loggers": "locallearn.training.loggers",
    "methods": "locallearn.core.methods",
    "objectives": "locallearn.losses.objectives",
    "open_run": "locallearn.training.finished",
    "optimizers": "locallearn.training.optimizers",
    "probe": "locallearn.training.probe",
    "recipe": "locallearn.recipes.named",
    "resume": "locallearn.training.runs",
    "schedules": "locallearn.training.schedules",
    "split": "locallearn.core.split",
    "to_toml": "locallearn.config",
    "train": "locallearn.training.runs",
}

__all__ = [
    "AugmentationInput",
    "BackboneInput",
    "Batch",
    "Block",
    "DataConfig",
    "Dataset",
    "HeadInput",
    "ImageSet",
    "ImageShape",
    "Layout",
    "LocalLearnError",
    "LocalLoss",
    "LocalNetwork",
    "LocalStep",
    "LoggerInput",
    "ModuleLayout",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveInput",
    "OptimizerConfig",
    "OptimizerInput",
    "ProbeConfig",
    "RunConfig",
    "ScheduleConfig",
    "ScheduleInput",
    "SplitNetwork",
    "TrainConfig",
    "Trainer",
    "augmentations",
    "backbones",
    "build_network",
    "cost",
    "datasets",
    "embed",
    "export",
    "from_toml",
    "heads",
    "load_exported",
    "load_run",
    "loggers",
    "methods",
    "objectives",
    "open_run",
    "optimizers",
    "pack",
    "probe",
    "recipe",
    "resume",
    "schedules",
    "split",
    "to_toml",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: reports and ``--help`` need no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'locallearn' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """The public names, for who completes ``ll.`` in an editor or a notebook."""
    return sorted(__all__)
